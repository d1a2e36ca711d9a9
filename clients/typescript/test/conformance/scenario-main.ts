/** Runs one scenario, given as JSON, on a store. Fails with the step that did not go as it says. */

import { run } from "./run.js";

const [scenario, store] = JSON.parse(process.argv[2] ?? "");
await run(scenario, store);
