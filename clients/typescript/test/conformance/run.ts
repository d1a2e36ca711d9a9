/** Runs a scenario on a testbed of its own. */

import { ChildClient } from "./child.js";
import { LocalClient } from "./client.js";
import { Interpreter } from "./interpreter.js";
import type { JsonObject, Scenario, Store } from "./scenario.js";
import { Testbed } from "./testbed.js";

/** Verbs that block the event loop, or keep it busy: other scenarios share that of the runner. */
const heavy = ["block_ms", "many"];

export async function run(scenario: Scenario, store: Store): Promise<void> {
  const make = (name: string, server: string, { own_process, ...options }: JsonObject) => {
    const isHeavy = scenario.steps.some((step) => step.client === name && heavy.some((verb) => verb in step));
    return own_process === true || isHeavy
      ? new ChildClient(name, server, options)
      : new LocalClient(name, server, options);
  };
  await using testbed = await Testbed.start(store, scenario.replicas, scenario.server);
  try {
    await new Interpreter(scenario, testbed, make).run();
  } catch (error) {
    throw new Error(`${(error as Error).message}\nlog of the server:\n${testbed.log}`, { cause: error });
  }
}
