/** The interpreter counts the time of a step from its start to its own end. */

import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import type { Client } from "./client.js";
import { Interpreter } from "./interpreter.js";
import type { Json, Scenario, Step } from "./scenario.js";
import type { Testbed } from "./testbed.js";

const slowMs = 50;

/** Has a slow verb, and one that waits until the slow one is done. */
class FakeClient implements Client {
  #slow: Promise<void> = Promise.resolve();

  async do(step: Step): Promise<Json> {
    if (step.open === "slow") {
      this.#slow = sleep(slowMs);
      await this.#slow;
    } else if ("wait" in step) await this.#slow;
    return { granted: { attempt: 1 } };
  }

  async close(): Promise<void> {}
}

async function run(steps: Step[]): Promise<void> {
  const scenario = { steps, clients: {}, deliveries: {} } as unknown as Scenario;
  const testbed = { replicas: ["nowhere"] } as unknown as Testbed;
  await new Interpreter(scenario, testbed, () => new FakeClient()).run();
}

const slow = { client: "a", open: "slow", as: "t", background: true };
const wait = { client: "a", wait: true };
const quick = { client: "a", open: "quick", as: "t", background: true };
const pause = { sleep_ms: 500 };
const granted = { expect: { granted: { attempt: 1 } } };

test.each<[Step[]]>([
  [[slow, wait, { await: "t", at_least_ms: 40, within_ms: 15_000, ...granted }]],
  [[quick, pause, { await: "t", within_ms: 15_000, ...granted }]],
])("steps in their time: %j", async (steps) => {
  await run(steps);
});

test.each<[Step[]]>([
  [[quick, pause, { await: "t", at_least_ms: 500, ...granted }]],
  [[slow, wait, { await: "t", within_ms: 10, ...granted }]],
  [[slow, { await: "t", within_ms: 10, ...granted }]],
  [[{ ...slow, background: false, within_ms: 10 }]],
])("steps out of their time: %j", async (steps) => {
  await expect(run(steps)).rejects.toThrow(/Mismatch: (not )?finished after/);
});
