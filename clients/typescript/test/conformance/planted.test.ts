/** Each planted bug turns its scenarios red, and some turn random runs red. So a green one means something. */

import { execFile } from "node:child_process";
import { rmSync } from "node:fs";
import { promisify } from "node:util";
import { describe, expect, test } from "vitest";
import { bugs, changes, plant } from "./planted.js";
import type { Report } from "./random-runs.js";
import { canRun, loadAll } from "./scenario.js";
import { program } from "./testbed.js";

const scenarios = new Map(loadAll().map((scenario) => [scenario.file, scenario]));

/** A random run in which the bug has no effect is repeated with the next seed. */
const seeds = Array.from({ length: 10 }, (_, index) => index);
const randomRunCount = 120;

/** Runs a program of this folder in a copy of the library that has the bug. */
async function withBug<T>(bug: string, work: (run: Run) => Promise<T>): Promise<T> {
  const copy = plant(bug);
  const env = { ...process.env, ONCEGATE_TESTBED: program };
  try {
    return await work(async (file, args) => {
      const all = ["--import", "tsx", `test/conformance/${file}`, JSON.stringify(args)];
      return (await promisify(execFile)(process.execPath, all, { cwd: copy, env })).stdout;
    });
  } finally {
    rmSync(copy, { recursive: true });
  }
}

type Run = (file: string, args: unknown[]) => Promise<string>;

test("all bugs are planted", () => {
  expect(Object.keys(changes).sort()).toEqual(
    bugs()
      .map(({ name }) => name)
      .sort(),
  );
});

describe.concurrent("planted bugs", () => {
  for (const { name, red, random } of bugs()) {
    for (const [file, step] of Object.entries(red)) {
      const scenario = scenarios.get(file);
      if (scenario && !canRun(scenario, "sqlite")) continue;
      test(`${name} turns ${file} red`, async ({ expect }) => {
        expect(scenario).toBeDefined();
        const report = await withBug(name, (run) =>
          run("scenario-main.ts", [scenario, "sqlite"]).then(
            () => "green",
            (error) => String(error.stderr),
          ),
        );
        expect(report).toMatch(new RegExp(`Error: step ${step}: .*\\nMismatch: `));
        expect(report, "the planted code itself fails").not.toContain("unexpected");
      });
    }
    if (!random) continue;
    test(`${name} breaks ${random.rule} in random runs`, async ({ expect }) => {
      // The replica without faults grants what the holders of the other one may have lost.
      const options = { kinds: random.faults, faulty: 1, settles: false };
      const isFound = await withBug(name, async (run) => {
        for (const seed of seeds) {
          const args = ["postgres", randomRunCount, seed, options];
          const { broken }: Report = JSON.parse(await run("random-main.ts", args));
          if (broken.some((fault) => fault.startsWith(`${random.rule}: `))) return true;
        }
        return false;
      });
      expect(isFound, `${seeds.length} random runs have not broken ${random.rule}`).toBe(true);
    });
  }
});
