/** Each planted bug turns its scenarios red. So a green scenario means something. */

import { execFile } from "node:child_process";
import { rmSync } from "node:fs";
import { promisify } from "node:util";
import { describe, expect, test } from "vitest";
import { bugs, changes, plant } from "./planted.js";
import { canRun, loadAll } from "./scenario.js";
import { program } from "./testbed.js";

const scenarios = new Map(loadAll().map((scenario) => [scenario.file, scenario]));

test("all bugs are planted", () => {
  expect(Object.keys(changes).sort()).toEqual(
    bugs()
      .map(({ name }) => name)
      .sort(),
  );
});

describe.concurrent("planted bugs", () => {
  for (const { name, red } of bugs()) {
    for (const [file, step] of Object.entries(red)) {
      const scenario = scenarios.get(file);
      if (scenario && !canRun(scenario, "sqlite")) continue;
      test(`${name} turns ${file} red`, async ({ expect }) => {
        expect(scenario).toBeDefined();
        const copy = plant(name);
        const args = [
          "--import",
          "tsx",
          "test/conformance/scenario-main.ts",
          JSON.stringify([scenario, "sqlite"]),
        ];
        const env = { ...process.env, ONCEGATE_TESTBED: program };
        const ran = promisify(execFile)(process.execPath, args, { cwd: copy, env });
        const report = await ran.then(
          () => "green",
          (error) => String(error.stderr),
        );
        rmSync(copy, { recursive: true });
        expect(report).toMatch(new RegExp(`Error: step ${step}: .*\\nMismatch: `));
        expect(report, "the planted code itself fails").not.toContain("unexpected");
      });
    }
  }
});
