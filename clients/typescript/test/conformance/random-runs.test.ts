import { expect, test } from "vitest";
import { kinds } from "./faults.js";
import { deliveriesOfAnEvent, randomRuns } from "./random-runs.js";
import { stores } from "./scenario.js";

const runs = 500;

for (const store of stores) {
  test(`${runs} random runs on ${store}`, async () => {
    const seed = Number(process.env.ONCEGATE_TEST_SEED ?? Math.floor(Math.random() * 2 ** 31));
    const report = await randomRuns(store, runs, seed);
    console.log(report);
    expect(report.broken).toEqual([]);
    // Less would prove little.
    expect(Object.keys(report.faults).sort()).toEqual([...new Set(kinds)].sort());
    const { ran = 0, duplicate = 0, gaveUp = 0, TurnLost = 0 } = report.answers;
    expect(report.bodies).toBeGreaterThanOrEqual(runs / deliveriesOfAnEvent);
    expect(ran).toBeGreaterThanOrEqual((runs / deliveriesOfAnEvent) * 0.9);
    expect(duplicate).toBeGreaterThanOrEqual(runs / 50);
    expect(gaveUp).toBeGreaterThanOrEqual(1);
    expect(TurnLost).toBeGreaterThanOrEqual(1);
    expect(report.forced).toBeGreaterThanOrEqual(1);
  }, 600_000);
}
