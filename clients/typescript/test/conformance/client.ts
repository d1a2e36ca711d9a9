/** The verbs of one client: a gate with its open turns and leases. */

import { Gate, type Hooks, type Lease, type Turn } from "../../src/index.js";
import * as mapping from "./mapping.js";
import { type Json, type JsonObject, type Step, write } from "./scenario.js";

export interface Client {
  do(step: Step): Promise<Json>;
  close(): Promise<void>;
}

/** One open turn or lease. Its body waits for the step that ends it. */
class Scope {
  held: Turn | Lease | undefined;
  readonly entered: Promise<Json>;
  readonly left: Promise<Json>;
  readonly caller = new AbortController();
  readonly #ignoresLoss: boolean;
  readonly #ending: Promise<Step>;
  enter!: (result: Json) => void;
  end!: (step: Step) => void;

  constructor(step: Step, body: (scope: Scope) => Promise<Json>) {
    this.#ignoresLoss = step.ignores_loss === true;
    const entered = new Promise<Json>((resolve) => {
      this.enter = resolve;
    });
    this.#ending = new Promise((resolve) => {
      this.end = resolve;
    });
    this.left = body(this).catch(mapping.failure);
    // A scope that is left without having been entered was not granted.
    this.entered = Promise.race([entered, this.left]);
  }

  /** What a body does: it enters, and waits for the step that ends it, or for its cancellation. */
  async body(held: Turn | Lease): Promise<unknown> {
    this.held = held;
    this.enter(mapping.granted(held));
    const cancelled = new Promise<never>((_, reject) => {
      const stop = () => reject(held.signal.reason);
      if (held.signal.aborted) stop();
      else held.signal.addEventListener("abort", stop);
    });
    cancelled.catch(() => {});
    return mapping.bodyOf(await (this.#ignoresLoss ? this.#ending : Promise.race([this.#ending, cancelled])));
  }
}

/** What the hooks of a gate were called with. */
class Called {
  #begun = 0;
  readonly #queued: number[] = [];
  readonly #lost: string[] = [];
  readonly #ended: string[] = [];

  readonly hooks: Hooks = {
    onBegin: () => {
      this.#begun += 1;
    },
    onQueued: (position) => this.#queued.push(position),
    onLost: (reason) => this.#lost.push(reason),
    onEnd: (outcome) => this.#ended.push(outcome),
  };

  report(): Json {
    return { begun: this.#begun, queued: this.#queued, lost: this.#lost, ended: this.#ended };
  }
}

export class LocalClient implements Client {
  readonly #called = new Called();
  readonly #gate: Gate;
  readonly #scopes = new Map<string, Scope>();

  constructor(name: string, server: string, options: JsonObject) {
    const { hooks } = this.#called;
    this.#gate = new Gate({ ...mapping.gateOptions(name, server, options), hooks });
  }

  async do(step: Step): Promise<Json> {
    try {
      return await this.#do(step);
    } catch (error) {
      return mapping.failure(error);
    }
  }

  async close(): Promise<void> {
    for (const scope of this.#scopes.values()) scope.end({});
    await this.#gate.close();
  }

  async #do(step: Step): Promise<Json> {
    const gate = this.#gate;
    if (step.open === "turn") return this.#open(step, (scope) => this.#turn(step, scope));
    if (step.open === "lease") return this.#open(step, (scope) => this.#lease(step, scope));
    if ("adopt" in step) return this.#open(step, (scope) => this.#adopt(String(step.adopt), scope));
    if ("end" in step) return this.#end(step);
    if ("detach" in step) return this.#detach(this.#scope(step.detach));
    if ("state" in step) return mapping.state(this.#held(step.state));
    if ("check" in step && !("block_ms" in step)) return this.#check(step.check);
    if ("run" in step) return this.#run(step);
    if ("once" in step) return this.#once(step);
    if ("mark" in step) {
      const { first, eventId } = await gate.mark(mapping.delivery(step.mark));
      return { first, event_id: eventId };
    }
    if ("seen" in step) {
      const includeResult = step.include_result === true;
      const seen = await gate.seen(mapping.delivery(step.seen), { includeResult });
      const { state, eventId, outcome, result } = seen;
      return { state, event_id: eventId, outcome: outcome ?? null, result: write(result) };
    }
    if ("mark_all" in step) {
      const given = mapping.manyDeliveries(step);
      const items = [];
      for await (const item of gate.markAll(given)) items.push(item);
      return mapping.marks(given, items);
    }
    if ("many" in step) return this.#many(Number(step.count), String(step.team));
    if ("block_ms" in step) {
      const until = performance.now() + Number(step.block_ms);
      while (performance.now() < until);
      return step.check === undefined ? null : this.#check(step.check);
    }
    if ("hooks" in step) return this.#called.report();
    if ("close" in step) await gate.close();
    else if ("drain_ms" in step) await gate.drain(Number(step.drain_ms));
    else throw new Error(`no verb in ${JSON.stringify(step)}`);
    return null;
  }

  #open(step: Step, body: (scope: Scope) => Promise<Json>): Promise<Json> {
    const scope = new Scope(step, body);
    this.#scopes.set(String(step.as), scope);
    return scope.entered;
  }

  async #turn(step: Step, scope: Scope): Promise<Json> {
    const options = { ...mapping.turnOptions(step), signal: callerSignal(step, scope.caller) };
    const delivery = mapping.delivery(step.delivery);
    return mapping.outcome(await this.#gate.turn(delivery, options, (turn) => scope.body(turn)));
  }

  async #lease(step: Step, scope: Scope): Promise<Json> {
    const options = { ...mapping.turnOptions(step), signal: callerSignal(step, scope.caller) };
    await using lease = await this.#gate.lease(mapping.session(step.session), options);
    const result = await scope.body(lease);
    await lease.release();
    return { ran: write(result) };
  }

  async #adopt(turnId: string, scope: Scope): Promise<Json> {
    await using turn = await this.#gate.adopt(turnId, { signal: scope.caller.signal });
    const result = await scope.body(turn);
    await turn.succeed(result);
    return { ran: write(result) };
  }

  #end(step: Step): Promise<Json> {
    const scope = this.#scope(step.end);
    if (step.cancel) scope.caller.abort();
    else scope.end(step);
    return scope.left;
  }

  async #detach(scope: Scope): Promise<Json> {
    const turn = scope.held as Turn;
    const turnId = await turn.detach();
    scope.end({});
    return { ...((await scope.left) as JsonObject), turn_id: turnId };
  }

  async #run(step: Step): Promise<Json> {
    const signal = callerSignal(step, new AbortController());
    const handler = async (turn: Turn) => {
      await pause(Number(step.body_ms ?? 0), turn.signal);
      return mapping.bodyOf(step);
    };
    const options = { ...mapping.turnOptions(step), signal };
    return mapping.outcome(await this.#gate.turn(mapping.delivery(step.run), options, handler));
  }

  async #once(step: Step): Promise<Json> {
    let hasRun = false;
    const body = () => {
      hasRun = true;
      return mapping.bodyOf(step);
    };
    const make = () => mapping.delivery(step.once);
    if (step.typed === true) {
      const options = { codec: mapping.dateCodec };
      const returned = await this.#gate.once(make, () => new Date(String(body())), options)();
      const isTyped = returned instanceof Date;
      return { returned: isTyped ? mapping.isoDate(returned) : null, body_ran: hasRun, type_ok: isTyped };
    }
    const returned = await this.#gate.once(make, body)();
    return { returned: write(returned), body_ran: hasRun, type_ok: true };
  }

  /** So many turns; each is ended when all have begun. */
  async #many(count: number, team: string): Promise<Json> {
    let entered = 0;
    let allEntered!: () => void;
    const all = new Promise<void>((resolve) => {
      allEntered = resolve;
    });
    const handler = async () => {
      entered += 1;
      if (entered === count) allEntered();
      await all;
    };
    const names = Array.from({ length: count }, (_, number) => `many-${number}`);
    const outcomes = names.map((name) => this.#gate.turn({ team, event: name, session: name }, handler));
    const ran = (await Promise.all(outcomes)).filter(({ kind }) => kind === "ran");
    return { ran: ran.length };
  }

  #check(name: Json | undefined): Json {
    this.#held(name).check();
    return { ok: true };
  }

  #scope(name: Json | undefined): Scope {
    const scope = this.#scopes.get(String(name));
    if (!scope) throw new Error(`no scope ${name}`);
    return scope;
  }

  #held(name: Json | undefined): Turn | Lease {
    const { held } = this.#scope(name);
    if (!held) throw new Error(`${name} was not entered`);
    return held;
  }
}

/** The caller cancels by a signal of its own, or by a timeout. */
function callerSignal(step: Step, caller: AbortController): AbortSignal {
  return step.timeout_ms === undefined ? caller.signal : AbortSignal.timeout(Number(step.timeout_ms));
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
