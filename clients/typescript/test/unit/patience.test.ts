import { describe, expect, test } from "vitest";
import { Patience } from "../../src/patience.js";

const unknown = { retryAfterMs: undefined };

describe("patience", () => {
  test("is over when the server was unavailable for so long", () => {
    const patience = new Patience(1000, 0, 0);
    expect(patience.givesUpAt).toBe(1000);
    expect(patience.pause(unknown, 940, 0)).toBe(50);
    expect(patience.pause(unknown, 1000, 0)).toBeUndefined();
  });

  test("has its last try when it is over", () => {
    const patience = new Patience(1000, 0, 0);
    patience.pause(unknown, 0, 0);
    expect(patience.pause(unknown, 940, 0)).toBe(60);
    expect(patience.pause(unknown, 940, 1)).toBe(60);
  });

  test("gives each try the time for an answer", () => {
    const patience = new Patience(0, 0, 0);
    expect(patience.tryEndsAt(0)).toBe(500);
    expect(new Patience(1000, 0, 0).tryEndsAt(0)).toBe(1000);
    expect(new Patience(1000, 0, 0).tryEndsAt(1000)).toBe(1500);
  });

  test("grows its pauses, up to a second", () => {
    const patience = new Patience(100_000, 0, 0);
    const pauses = Array.from({ length: 7 }, () => patience.pause(unknown, 0, 0));
    expect(pauses).toEqual([50, 100, 200, 400, 800, 1000, 1000]);
  });

  test("spreads its pauses by chance", () => {
    expect(new Patience(1000, 0, 0).pause(unknown, 0, 1)).toBe(62.5);
  });

  test("waits as long as the server says", () => {
    const patience = new Patience(10_000, 0, 0);
    expect(patience.pause({ retryAfterMs: 3000 }, 0, 0)).toBe(3000);
    expect(patience.pause({ retryAfterMs: 30_000 }, 0, 0)).toBeUndefined();
  });

  test("does not cover the wait before the server was heard of", () => {
    expect(new Patience(1000, 60_000, 0).givesUpAt).toBe(1000);
  });

  test("has time for the answer at the end of the wait, however little it is", () => {
    const patience = new Patience(0, 60_000, 0);
    patience.heard(10);
    expect(patience.givesUpAt).toBe(60_500);
  });

  test("begins anew when the server is heard of, and covers the wait", () => {
    const patience = new Patience(1000, 60_000, 0);
    patience.heard(500);
    expect(patience.givesUpAt).toBe(61_000);
    patience.heard(60_500); // the wait is over
    expect(patience.givesUpAt).toBe(61_500);
  });

  test("repeats the request with what is left of the wait", () => {
    const patience = new Patience(1000, 60_000, 0);
    expect(patience.waitLeft(20_000)).toBe(40_000);
    expect(patience.waitLeft(70_000)).toBe(0);
  });
});
