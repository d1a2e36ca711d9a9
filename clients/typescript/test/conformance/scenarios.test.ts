import { describe, test } from "vitest";
import { run } from "./run.js";
import { canRun, loadAll, notePass, stores } from "./scenario.js";

for (const store of stores) {
  describe.concurrent(`scenarios on ${store}`, () => {
    for (const scenario of loadAll().filter((scenario) => canRun(scenario, store))) {
      test(`${scenario.file}: ${scenario.name}`, async () => {
        await run(scenario, store);
        notePass(scenario, store);
      });
    }
  });
}
