/** Deliveries that have to be handled here: how long, and how often, they are asked for. */

import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { lookAgain } from "../../src/handle.js";
import { Busy } from "../../src/index.js";

beforeEach(() => {
  vi.useFakeTimers();
});

afterEach(() => {
  vi.useRealTimers();
});

test("a wait that is longer than the server accepts is several", async () => {
  const busy = new Busy("another", 1, 5_000);
  const waits: number[] = [];
  const asked = lookAgain("25m", (waitMs) => {
    waits.push(waitMs);
    return new Promise((resolve) => setTimeout(() => resolve(busy), waitMs));
  });
  await vi.advanceTimersByTimeAsync(25 * 60_000);
  expect(await asked).toBe(busy);
  expect(waits.slice(0, 2)).toEqual([600_000, 600_000]);
  expect(waits[2]).toBeCloseTo(298_000, -2);
  expect(waits).toHaveLength(3);
});
