import { expect, test } from "vitest";
import { randomRuns } from "./random-runs.js";
import { stores } from "./scenario.js";

const runs = 500;

for (const store of stores) {
  test(`${runs} random runs on ${store}`, async () => {
    const seed = Number(process.env.ONCEGATE_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31));
    const summary = await randomRuns(store, runs, seed);
    console.log(summary);
    expect(summary).toContain("faults:");
  });
}
