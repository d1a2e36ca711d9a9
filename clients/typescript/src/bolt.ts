import type {
  AllMiddlewareArgs,
  AnyMiddlewareArgs,
  App,
  Assistant,
  Receiver,
  ReceiverEvent,
} from "@slack/bolt";
import type { Delivery } from "./delivery.js";
import {
  Busy,
  Dropped,
  Duplicate,
  GaveUp,
  InProgress,
  NotGranted,
  OncegateError,
  Overloaded,
  Reject,
  TurnLost,
  Unavailable,
} from "./errors.js";
import { type Gate, run } from "./gate.js";
import { lookAgain } from "./handle.js";
import type { TurnOptions } from "./options.js";
import * as slack from "./slack.js";
import { type Time, toMs } from "./time.js";
import type { Turn } from "./turn.js";

declare module "@slack/bolt" {
  interface Context {
    /** The event's turn, in a listener of a guarded app. */
    turn?: Turn;
  }
}

type ListenerArgs = AnyMiddlewareArgs & AllMiddlewareArgs;
/** Also a middleware. */
type Listener = (args: ListenerArgs) => Promise<void>;

export interface GuardOptions extends Omit<TurnOptions, "codec" | "patience" | "signal"> {
  /**
   * How long a listener waits for its conversation, after the acknowledgement. Default: 10 min. With
   * 0 an event is refused instead, and Slack delivers it again: for a process that ends with its
   * response, as on AWS Lambda.
   */
  readonly wait?: Time | undefined;
  /** Called if the conversation is busy, before the listener waits: for an ephemeral message. */
  readonly onBusy?: ((args: ListenerArgs, busy: Busy) => unknown) | undefined;
  /**
   * Acknowledges an event after its listeners, and refuses it if one of them throws. Slack then delivers
   * it again, also if this process is killed, or if a listener needs more than 3 s: what arrives while it
   * works is refused. Over HTTP, set the receiver's option of this name as well, or Bolt logs errors
   * after 3 s. Default: false, acknowledge before the listeners.
   */
  readonly processBeforeResponse?: boolean | undefined;
  /** Names the delivery by its body. Default: `slack.delivery`. */
  readonly delivery?: ((body: ReceiverEvent["body"]) => Delivery) | undefined;
}

/** Slack waits 3 s for the acknowledgement. */
const patienceBeforeAck = "2.5s";
const patienceAfterAck = "30s";

/** Slack delivers an event that is not acknowledged three more times. */
const lastRetry = 3;

/**
 * Guards the listeners of an app: each event is handled once, and those of a thread one at a time,
 * over all processes. A turn begins before the acknowledgement, when the first listener matches, and
 * ends after all listeners. `context.turn` is the turn.
 *
 * Call it with the receiver before the app is made, or with the app before middleware and listeners are
 * added. Not guarded are `app.options`, which only asks, and what a middleware does or throws itself, be it
 * global or of a listener.
 */
export function guard<T extends Receiver | App>(target: T, gate: Gate, options: GuardOptions = {}): T {
  if ("processEvent" in target) {
    guardApp(target, gate, options);
    answerRefusals((target as unknown as { receiver: Receiver }).receiver);
  } else {
    const init = target.init.bind(target);
    target.init = (app) => {
      guardApp(app, gate, options);
      init(app);
    };
    answerRefusals(target);
  }
  return target;
}

function guardApp(app: App, gate: Gate, options: GuardOptions): void {
  const processEvent = app.processEvent.bind(app);
  app.processEvent = (event) => new Dispatch(gate, options, event).process(processEvent);
  for (const name of ["event", "message", "action", "command", "shortcut", "view", "function"] as const) {
    const register = app[name].bind(app) as (...args: unknown[]) => unknown;
    const registerGuarded = (...args: unknown[]) => {
      const before = args
        .slice(0, -1)
        .map((arg) => (typeof arg === "function" ? followed(arg as Listener) : arg));
      return register(...before, guarded(args.at(-1) as Listener));
    };
    Object.assign(app, { [name]: registerGuarded });
  }
  const use = app.use.bind(app) as (middleware: Listener) => App;
  app.use = (middleware) => use(followed(middleware as Listener));
  const addAssistant = app.assistant.bind(app);
  app.assistant = (assistant) => addAssistant(guardAssistant(assistant));
}

/** Private, but the only place that knows whether the assistant matches. */
type AssistantParts = Record<"threadStarted" | "threadContextChanged" | "userMessage", Listener[]> & {
  processEvent: Listener;
};

function guardAssistant(assistant: Assistant): Assistant {
  const parts = assistant as unknown as AssistantParts;
  return Object.assign(assistant, {
    threadStarted: parts.threadStarted.map(followed),
    threadContextChanged: parts.threadContextChanged.map(followed),
    userMessage: parts.userMessage.map(followed),
    processEvent: guarded(parts.processEvent.bind(assistant)),
  });
}

/** Where a listener finds the delivery that it is called for. */
const dispatch = Symbol("oncegate");

function dispatchOf({ context }: ListenerArgs): Dispatch {
  return (context as unknown as { [dispatch]: Dispatch })[dispatch];
}

function guarded(listener: Listener): Listener {
  return (args) => dispatchOf(args).run(listener, args);
}

/** A middleware may call `next` and not wait for it. The turn does. */
function followed(middleware: Listener): Listener {
  return (args) => middleware({ ...args, next: () => dispatchOf(args).follow(args.next()) });
}

/** One delivery on its way through the app. */
class Dispatch {
  readonly #gate: Gate;
  readonly #options: TurnOptions;
  readonly #wait: Time;
  readonly #onBusy: GuardOptions["onBusy"];
  /** Whether an event can be refused until its listeners have ended. */
  readonly #decidesLast: boolean;
  readonly #delivery: Delivery;
  readonly #event: ReceiverEvent;
  /** Bolt acknowledges an event before it looks for listeners. An interaction's listener does it. */
  readonly #isEvent: boolean;
  /** The acknowledgement, while the delivery can still be refused. */
  #deferredAck: (() => Promise<void>) | undefined;
  #isDecided = false;
  #isAcknowledged = false;
  #refusal: unknown;
  #turn: Promise<Turn | undefined> | undefined;
  /** Settles when the turn has ended. */
  #ended: Promise<unknown> | undefined;
  #endTurn: (() => void) | undefined;
  /** What the listeners threw, and why one could not run. */
  readonly #failures: { readonly error: unknown }[] = [];
  /** What middleware has called and may not wait for. */
  readonly #following = new Set<Promise<void>>();
  #isOver = false;

  constructor(gate: Gate, options: GuardOptions, event: ReceiverEvent) {
    const {
      wait = "10m",
      onBusy,
      processBeforeResponse = false,
      delivery = slack.delivery,
      ...turnOptions
    } = options;
    this.#gate = gate;
    this.#options = turnOptions;
    this.#wait = wait;
    this.#onBusy = onBusy;
    this.#delivery = delivery(event.body);
    this.#event = event;
    this.#isEvent = event.body.event !== undefined;
    this.#decidesLast = processBeforeResponse && this.#isEvent;
  }

  /** Lets the app process the delivery, and ends its turn. Throws to refuse it. */
  async process(processEvent: App["processEvent"]): Promise<void> {
    const customProperties = { ...this.#event.customProperties, [dispatch]: this };
    const ack = (response: unknown) => this.#ack(response);
    const processed = processEvent({ ...this.#event, customProperties, ack });
    // Bolt's own error handler throws what the listeners threw.
    await Promise.allSettled([processed]);
    while (this.#following.size > 0) await Promise.allSettled(this.#following);
    this.#isOver = true;
    this.#endTurn?.();
    const [end] = await Promise.allSettled([this.#ended]);
    await processed;
    if (this.#refusal) throw this.#refusal;
    // The app's error handler has seen what the listeners threw.
    if (end.status === "rejected" && !this.#failures.some(({ error }) => error === end.reason))
      throw end.reason;
    const failure = this.#firstFailure;
    if (failure && !this.#isDecided) throw new Refused({ cause: failure.error });
    // No listener matched, or all have ended.
    await this.#decide();
  }

  get #firstFailure() {
    return this.#failures.find(({ error }) => !(error instanceof Reject));
  }

  /** The turn ends after this. */
  async follow(next: Promise<void>): Promise<void> {
    this.#following.add(next);
    try {
      await next;
    } finally {
      this.#following.delete(next);
    }
  }

  /** Runs a listener that matches in the turn of the delivery, or not at all. */
  async run(listener: Listener, args: ListenerArgs): Promise<void> {
    if (this.#isOver) {
      throw new OncegateError(
        "a middleware called next() after the end of its event; call it before it returns",
      );
    }
    try {
      this.#turn ??= this.#begin(args);
      const turn = await this.#turn;
      if (!turn) return;
      if (turn.lostReason) throw new TurnLost(turn.lostReason);
      args.context.turn = turn;
      await listener(args);
    } catch (error) {
      this.#failures.push({ error });
      if (!(error instanceof Reject)) throw error;
    }
  }

  async #begin(args: ListenerArgs): Promise<Turn | undefined> {
    const turn = await this.#admit(args);
    if (!turn) return undefined;
    this.#ended = run(
      turn,
      () =>
        new Promise<void>((resolve, reject) => {
          this.#endTurn = () => {
            // An event that one listener rejects is still to be handled by the one that threw.
            const failure = this.#firstFailure ?? this.#failures[0];
            if (failure) reject(failure.error);
            else resolve();
          };
        }),
    );
    if (!this.#decidesLast) await this.#decide();
    return turn;
  }

  /** The turn. Undefined: the delivery is acknowledged or refused, and no listener runs. */
  async #admit(args: ListenerArgs): Promise<Turn | undefined> {
    const { redelivers } = this.#delivery;
    const isLast = redelivers && Number(this.#event.retryNum ?? 0) >= lastRetry;
    const canRefuse = redelivers && !isLast;
    try {
      // While Slack delivers it again, an event needs no answer of the gate's option.
      const onUnavailable = canRefuse ? { onUnavailable: "raise" as const } : {};
      const options: TurnOptions = { ...this.#options, ...onUnavailable, patience: patienceBeforeAck };
      return await this.#gate.begin(this.#delivery, options);
    } catch (error) {
      if (isSettled(error)) {
        await this.#acknowledge();
        return undefined;
      }
      if (error instanceof Busy && !(canRefuse && toMs(this.#wait, "wait") === 0)) {
        await this.#acknowledge();
        await this.#reportBusy(args, error);
        return this.#beginLater();
      }
      if (isLast && isTemporary(error)) {
        await this.#acknowledge();
        return this.#beginLater();
      }
      if (error instanceof InProgress && !redelivers) {
        await this.#acknowledge();
        return undefined;
      }
      this.#refusal = isTemporary(error) ? new Refused({ cause: error }) : error;
      return undefined;
    }
  }

  /** After the acknowledgement this process has the only copy of the delivery. */
  async #beginLater(): Promise<Turn | undefined> {
    const begin = async (wait: Time) => {
      try {
        return await this.#gate.begin(this.#delivery, { ...this.#options, wait, patience: patienceAfterAck });
      } catch (error) {
        if (error instanceof NotGranted) return error;
        throw error;
      }
    };
    const begun = await lookAgain(this.#wait, begin);
    if (isSettled(begun)) return undefined;
    if (begun instanceof NotGranted) throw begun;
    return begun;
  }

  async #reportBusy(args: ListenerArgs, busy: Busy): Promise<void> {
    try {
      await this.#onBusy?.(args, busy);
    } catch (error) {
      args.logger.error("onBusy failed; the listener waits for its conversation all the same", error);
    }
  }

  /** What the app and its listeners call. */
  async #ack(response: unknown): Promise<void> {
    const ack = () => this.#event.ack(response);
    if (this.#isDecided) return this.#isAcknowledged ? undefined : ack();
    if (this.#isEvent) {
      this.#deferredAck = ack;
    } else {
      this.#isAcknowledged = true;
      await ack();
    }
  }

  #acknowledge(): Promise<void> {
    return this.#decide(this.#deferredAck ?? (() => this.#event.ack()));
  }

  /** From now on the delivery is not refused. */
  async #decide(ack = this.#deferredAck): Promise<void> {
    this.#isDecided = true;
    if (this.#isAcknowledged || !ack) return;
    this.#isAcknowledged = true;
    await ack();
  }
}

/** Whether there is nothing to do for the event, here or later. */
function isSettled(error: unknown): error is Duplicate | GaveUp | Dropped {
  return error instanceof Duplicate || error instanceof GaveUp || error instanceof Dropped;
}

function isTemporary(error: unknown): boolean {
  const kinds = [InProgress, Busy, Unavailable, Overloaded];
  return kinds.some((kind) => error instanceof kind);
}

/** The delivery is refused, so that Slack delivers it again. `cause` says why. */
export class Refused extends Error {
  constructor(options: ErrorOptions) {
    super("the delivery is refused; Slack delivers it again", options);
    this.name = "Refused";
  }
}

interface ProcessEventErrorArgs {
  error: unknown;
  response?: { headersSent: boolean; writeHead(status: number, headers: object): { end(): void } };
}

/**
 * Answers a refusal with status 503 instead of an error in the log and status 500. The handler is an
 * option of all receivers but that of AWS Lambda, which keeps 500. In Socket Mode there is no answer.
 */
function answerRefusals(receiver: Receiver): void {
  const receiving = receiver as {
    processEventErrorHandler?: (args: ProcessEventErrorArgs) => Promise<boolean>;
  };
  const inner = receiving.processEventErrorHandler;
  if (!inner) return;
  receiving.processEventErrorHandler = async (args) => {
    if (!(args.error instanceof Refused)) return inner(args);
    if (!args.response || args.response.headersSent) return false;
    args.response.writeHead(503, { "retry-after": "1" }).end();
    return true; // answered
  };
}
