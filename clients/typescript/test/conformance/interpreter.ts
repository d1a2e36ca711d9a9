/** Executes the steps of a scenario. */

import { setTimeout as sleep } from "node:timers/promises";
import type { Client } from "./client.js";
import { ProcessError } from "./lines.js";
import { Expectations, Mismatch } from "./matching.js";
import type { Json, JsonObject, Scenario, Step } from "./scenario.js";
import type { Testbed } from "./testbed.js";

const withinMs = 15_000;
const pollMs = 30;

/** Verbs whose argument is a delivery, which may be a name in `deliveries`. */
const delivered = new Set(["delivery", "run", "once", "mark", "seen"]);

const failures = ["error", "duplicate", "gave_up", "in_progress", "busy", "dropped"];

/** A step has no result in its time. */
class NotFinished extends Error {
  override readonly name = "NotFinished";
}

export type MakeClient = (name: string, server: string, options: JsonObject) => Client;

/** A step that has been started. */
interface Running {
  readonly step: Step;
  readonly started: number;
  readonly result: Promise<{ result: Json; tookMs: number }>;
}

export class Interpreter {
  readonly #scenario: Scenario;
  readonly #testbed: Testbed;
  readonly #make: MakeClient;
  readonly #clients = new Map<string, Client>();
  readonly #background = new Map<string, Running>();
  /** Of the turns that were detached, by their names. */
  readonly #turnIds = new Map<string, Json>();
  readonly #expectations = new Expectations();

  constructor(scenario: Scenario, testbed: Testbed, make: MakeClient) {
    this.#scenario = scenario;
    this.#testbed = testbed;
    this.#make = make;
  }

  async run(): Promise<void> {
    try {
      for (const [index, step] of this.#scenario.steps.entries()) {
        try {
          await this.#step(step);
        } catch (error) {
          const shown = JSON.stringify(step).slice(0, 600);
          throw new Error(`step ${index + 1}: ${shown}\n${error}`, { cause: error });
        }
      }
      if (this.#background.size > 0) throw new Error(`no step awaits ${[...this.#background.keys()]}`);
    } finally {
      await Promise.all([...this.#clients.values()].map((client) => client.close()));
    }
  }

  async #step(step: Step): Promise<void> {
    if (step.sleep_ms !== undefined) await sleep(Number(step.sleep_ms));
    else if (step.await !== undefined) await this.#finish(this.#awaited(String(step.await)), step);
    else if (step.background === true) this.#background.set(String(step.as), this.#start(step));
    else if (step.within_ms !== undefined && step.expect !== undefined && isLook(step))
      await this.#poll(step);
    else await this.#finish(this.#start(step), step);
  }

  #awaited(name: string): Running {
    const running = this.#background.get(name);
    if (!running) throw new Error(`nothing runs as ${name}`);
    this.#background.delete(name);
    return running;
  }

  /** Repeats a look until it matches. A server that is down may not answer. */
  async #poll(step: Step): Promise<void> {
    const deadline = performance.now() + Number(step.within_ms);
    for (;;) {
      try {
        return await this.#finish(this.#start(step), step);
      } catch (error) {
        const mayMatchLater = error instanceof Mismatch || error instanceof ProcessError;
        if (!mayMatchLater || performance.now() > deadline) throw error;
      }
      await sleep(pollMs);
    }
  }

  #start(step: Step): Running {
    const started = performance.now();
    const timed = async () => {
      const result = await this.#do(step);
      return { result, tookMs: performance.now() - started };
    };
    const result = timed();
    // A step in the background may fail before it is awaited.
    result.catch(() => {});
    return { step, started, result };
  }

  async #finish(running: Running, step: Step): Promise<void> {
    const within = Number(step.within_ms ?? withinMs);
    const left = Math.max(0, running.started + within - performance.now());
    // A time that the scenario gives is a part of what it expects.
    const Late = step.within_ms === undefined ? NotFinished : Mismatch;
    const timer = new AbortController();
    const late = sleep(left, undefined, { signal: timer.signal }).then(() => {
      throw new Late(`not finished after ${within} ms`);
    });
    late.catch(() => {});
    const { result, tookMs } = await Promise.race([running.result, late]).finally(() => timer.abort());
    const finished = `finished after ${tookMs} ms with ${JSON.stringify(result)}`;
    if (tookMs > within) throw new Late(`${finished}, expected within ${within} ms`);
    const atLeast = Number(step.at_least_ms ?? 0);
    if (tookMs < atLeast) throw new Mismatch(`${finished}, expected ${atLeast} ms`);
    if (step.expect !== undefined) this.#expectations.match(step.expect, result);
    else if (!isSuccess(running.step, result)) throw new Mismatch(`the result is ${JSON.stringify(result)}`);
  }

  async #do(step: Step): Promise<Json> {
    const { expect: _1, within_ms: _2, at_least_ms: _3, background: _4, client, testbed, ...verb } = step;
    if (testbed !== undefined) return this.#testbed.do(String(testbed), verb);
    if ("adopt" in verb) {
      const turnId = this.#turnIds.get(String(verb.adopt));
      return this.#client(String(client)).do({ ...verb, adopt: turnId });
    }
    if ("detach" in verb) {
      const { turn_id, ...result } = (await this.#client(String(client)).do(verb)) as JsonObject;
      this.#turnIds.set(String(verb.detach), turn_id ?? null);
      return result;
    }
    return this.#client(String(client)).do(this.#withDeliveries(verb));
  }

  #client(name: string): Client {
    let client = this.#clients.get(name);
    if (!client) {
      const { replica = 0, ...options } = this.#scenario.clients[name] ?? {};
      const server = this.#testbed.replicas[Number(replica)] as string;
      client = this.#make(name, server, { ttl_ms: 3000, ...options });
      this.#clients.set(name, client);
    }
    return client;
  }

  /** Puts deliveries in the place of their names. */
  #withDeliveries(verb: JsonObject): JsonObject {
    const replace = ([key, item]: [string, Json | undefined]) =>
      delivered.has(key) && typeof item === "string" ? [key, this.#scenario.deliveries[item]] : [key, item];
    return Object.fromEntries(Object.entries(verb).map(replace));
  }
}

function isLook(step: Step): boolean {
  const reads = ["state", "hooks", "seen"].some((verb) => verb in step);
  return reads || step.testbed === "look" || step.testbed === "calls";
}

/** Whether a step without `expect` went well. What a look reports is data. */
function isSuccess(step: Step, result: Json): boolean {
  if (isLook(step) || typeof result !== "object" || result === null) return true;
  return !failures.some((key) => key in result);
}
