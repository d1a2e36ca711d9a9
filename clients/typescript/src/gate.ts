import { Access } from "./access.js";
import { CallError, Code } from "./call-error.js";
import { Cancellation } from "./cancellation.js";
import { Core } from "./core.js";
import { type DeliveryInit, type SessionInit, toDelivery, toSession } from "./delivery.js";
import { Dropped, Duplicate, Internal, NotGranted, Reject, TurnLost, Unavailable } from "./errors.js";
import { TurnService } from "./gen/oncegate/v1/turn_service_pb.js";
import { GrpcTransport } from "./grpc.js";
import type { Hold } from "./hold.js";
import type { Lease } from "./lease.js";
import { type MarkItem, Marks, type Seen } from "./marks.js";
import { open } from "./opening.js";
import {
  type AdoptOptions,
  defaultHolder,
  type GateOptions,
  type LeaseOptions,
  type TurnOptions,
  toSettings,
  toTurnSettings,
} from "./options.js";
import type { Outcome } from "./outcome.js";
import { type Consumers, LeaseRequest, TurnRequest } from "./requests.js";
import { patiently } from "./retry.js";
import { monotonic, settlesWithin, type Time, toMs } from "./time.js";
import type { Transport } from "./transport.js";
import { Turn } from "./turn.js";
import { renewTurnRequest } from "./turn-requests.js";

export type Handler<T> = (turn: Turn) => T | Promise<T>;

/** The client: one a process. It connects on first use. */
export class Gate {
  readonly #options: GateOptions;
  readonly #core: Core;
  readonly #consumers: Consumers;
  readonly #marks: Marks;
  /** The requests that wait for their grant. */
  readonly #waiting = new Set<Cancellation>();
  #closed: string | undefined;

  constructor(options?: GateOptions);
  /** @internal */
  constructor(options: GateOptions, transport: Transport);
  constructor(options: GateOptions = {}, transport?: Transport) {
    const consumer = options.consumer ?? "";
    const connect = () => new GrpcTransport(new Access(options, (problem) => this.#core.report(problem)));
    const holder = options.holder ?? defaultHolder(consumer);
    this.#options = options;
    this.#core = new Core(transport ?? connect(), monotonic, options.hooks ?? {}, holder);
    const shareSessions = options.shareSessions ?? false;
    this.#consumers = { event: consumer, session: shareSessions ? "" : consumer, shareSessions };
    this.#marks = new Marks(this.#core, consumer, toTurnSettings(options, {}).patienceMs);
  }

  /** @internal For the modules of this package that make calls of their own. */
  get internals() {
    const { patienceMs } = toSettings(this.#options, {});
    return { core: this.#core, consumers: this.#consumers, patienceMs };
  }

  /**
   * Runs the handler in the event's turn, and returns the outcome. The handler's own
   * errors are thrown; they fail the turn, and the next delivery gets the event.
   */
  turn<T>(delivery: DeliveryInit, handler: Handler<T>): Promise<Outcome<T>>;
  turn<T>(delivery: DeliveryInit, options: TurnOptions<NoInfer<T>>, handler: Handler<T>): Promise<Outcome<T>>;
  async turn<T>(
    delivery: DeliveryInit,
    ...rest: [Handler<T>] | [TurnOptions<T>, Handler<T>]
  ): Promise<Outcome<T>> {
    const [options, handler] = rest.length === 1 ? [{}, rest[0]] : rest;
    let turn: Turn;
    try {
      turn = await this.begin(delivery, options as TurnOptions);
    } catch (error) {
      if (error instanceof NotGranted) return error as Outcome<T>;
      throw error;
    }
    return run(turn, handler);
  }

  /**
   * Begins a turn, or throws NotGranted. Ends with `turn.succeed(result)`; `await using` fails it
   * otherwise.
   */
  async begin(delivery: DeliveryInit, options: TurnOptions = {}): Promise<Turn> {
    const settings = toTurnSettings(this.#options, options);
    const read = toDelivery(delivery);
    const unguarded = () =>
      new Turn(this.#core, new Cancellation(options.signal), settings.codec, undefined, undefined);
    try {
      return await this.#waitFor(options.signal, (scope) => {
        const request = () => new TurnRequest(this.#core, this.#consumers, read, settings, scope);
        return open(request, settings, this.#core.clock, scope);
      });
    } catch (error) {
      if (error instanceof CallError && error.reason === "NO_KEY") {
        this.#core.warn(
          `no key:${read.kind}`,
          `a ${read.kind} delivery names no event; it is handled without a turn`,
        );
        return unguarded();
      }
      const shown = error instanceof CallError ? error.toError() : error;
      if (shown instanceof Unavailable && this.#closed === undefined) {
        if (settings.onUnavailable === "run") {
          this.#core.warn("unguarded", "oncegate is unavailable; the handler runs without a turn");
          return unguarded();
        }
        if (settings.onUnavailable === "drop") throw new Dropped({ cause: shown });
      }
      throw shown;
    }
  }

  /**
   * A function that handles an event once: its result is stored, and returned again to a caller
   * that repeats it. Throws NotGranted while another run has the event.
   */
  once<A extends unknown[], T>(
    makeDelivery: (...args: A) => DeliveryInit,
    handler: (...args: A) => T | Promise<T>,
    options: TurnOptions<NoInfer<T>> = {},
  ): (...args: A) => Promise<T> {
    return async (...args) => {
      const delivery = toDelivery(makeDelivery(...args)).withoutSession();
      const outcome = await this.turn(delivery, options, () => handler(...args));
      if (outcome.kind === "ran") return outcome.result;
      if (outcome instanceof Duplicate) return outcome.replay();
      throw outcome;
    };
  }

  /** Acquires a session without an event, or throws Busy. `await using` releases it. */
  async lease(session: SessionInit, options: LeaseOptions = {}): Promise<Lease> {
    const settings = toSettings(this.#options, options);
    const { session: consumer } = this.#consumers;
    const wanted = toSession(session);
    try {
      return await this.#waitFor(options.signal, (scope) => {
        const request = () => new LeaseRequest(this.#core, consumer, wanted, settings, scope);
        return open(request, settings, this.#core.clock, scope);
      });
    } catch (error) {
      throw error instanceof CallError ? error.toError() : error;
    }
  }

  /** Marks an event as handled: for work that a crash may lose. */
  mark<D extends DeliveryInit>(delivery: D): Promise<MarkItem<D>> {
    return this.#marks.mark(delivery);
  }

  /**
   * Marks any number of events, in order. An invalid one fails alone, in its item's `error`. Events
   * are marked before they are yielded: a loop that breaks off loses those of the same batch.
   */
  markAll<D extends DeliveryInit>(deliveries: Iterable<D> | AsyncIterable<D>): AsyncIterable<MarkItem<D>> {
    return this.#marks.markAll(deliveries);
  }

  /** Reads the state of an event. */
  seen(delivery: DeliveryInit, options: { includeResult?: boolean } = {}): Promise<Seen> {
    const { codec } = toSettings(this.#options, {});
    return this.#marks.seen(toDelivery(delivery), options.includeResult ?? false, codec);
  }

  /** Carries on the turn that another process began and detached. Throws TurnLost if it has ended. */
  async adopt(turnId: string, options: AdoptOptions = {}): Promise<Turn> {
    const { ttlMs, patienceMs, codec } = toSettings(this.#options, options);
    const eventTtlMs = options.eventTtl === undefined ? undefined : toMs(options.eventTtl, "eventTtl");
    const terms = { ttlMs, graceMs: undefined };
    const request = renewTurnRequest(turnId, terms);
    const { renewTurn } = TurnService.method;
    const { transport, clock } = this.#core;
    const adopt = (scope: Cancellation) =>
      patiently(clock, patienceMs, scope.signal, async (callOptions) => {
        const sent = clock.now();
        const { turn } = await transport.unary(renewTurn, request, callOptions);
        if (!turn) throw new Internal("the server left the turn out of its answer");
        const grant = { turn, sent, stream: undefined, terms };
        const adopted = new Turn(this.#core, scope, codec, eventTtlMs, grant);
        if (adopted.leftMs > 0) return adopted;
        adopted.drop();
        throw new CallError(Code.UNAVAILABLE, "an answer came after the trusted end");
      });
    const adopted = await this.#waitFor(options.signal, adopt);
    adopted.begun();
    return adopted;
  }

  /** Grants nothing new, waits for what is open, then fails the turns and releases the leases that remain. */
  async drain(time: Time): Promise<void> {
    await this.#shut("the gate is drained", toMs(time, "time"));
  }

  /** Drains without waiting, and closes the connections. Nothing is left behind. */
  async close(): Promise<void> {
    await this.#shut("the gate is closed", 0);
    this.#core.transport.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #shut(why: string, waitMs: number): Promise<void> {
    this.#closed ??= why;
    for (const scope of this.#waiting) scope.abort(new Unavailable(why, undefined));
    const { holds } = this.#core;
    await settlesWithin(this.#core.idle(), waitMs);
    await Promise.all([...holds].map((hold) => hold.close()));
  }

  #refuseIfClosed(): void {
    if (this.#closed !== undefined) throw new Unavailable(this.#closed, undefined);
  }

  /** A caller that stops waiting, and a gate that is shut, end what was granted in the same moment. */
  async #waitFor<H extends Hold>(
    signal: AbortSignal | undefined,
    ask: (scope: Cancellation) => Promise<H>,
  ): Promise<H> {
    this.#refuseIfClosed();
    const scope = new Cancellation(signal);
    this.#waiting.add(scope);
    let hold: H | undefined;
    try {
      hold = await ask(scope);
      scope.throwIfAborted();
      return hold;
    } catch (error) {
      void hold?.abandon("its holder stopped waiting");
      scope.leave();
      throw error;
    } finally {
      this.#waiting.delete(scope);
    }
  }
}

/** Runs the handler in the turn, and ends the turn. */
export async function run<T>(turn: Turn, handler: Handler<T>): Promise<Outcome<T>> {
  let result: T;
  try {
    result = await handler(turn);
  } catch (error) {
    if (error instanceof Reject) {
      await orFail(turn, turn.reject(error.detail));
      return { kind: "ran", result: undefined as T };
    }
    await turn.fail(error);
    // Functions of Node that the loss aborts throw an error of their own.
    if (turn.lostReason && isAbort(error)) throw new TurnLost(turn.lostReason, undefined, { cause: error });
    throw error;
  }
  // The handler may have ended or detached it.
  const isEnded = !turn.isOpen && turn.lostReason === undefined;
  if (isEnded) return { kind: "ran", result };
  await orFail(turn, turn.succeed(result));
  return { kind: "ran", result };
}

/** An end that could not be sent at all, such as for its result, leaves the turn open: it fails. */
async function orFail(turn: Turn, end: Promise<void>): Promise<void> {
  try {
    await end;
  } catch (error) {
    await turn.fail(error);
    throw error;
  }
}

function isAbort(error: unknown): boolean {
  return error instanceof Error && error.name === "AbortError";
}
