/** Makes random runs, of arguments that are given as JSON, and prints the report as JSON. */

import { randomRuns } from "./random-runs.js";

const [store, runs, seed, options] = JSON.parse(process.argv[2] ?? "");
console.log(JSON.stringify(await randomRuns(store, runs, seed, options)));
