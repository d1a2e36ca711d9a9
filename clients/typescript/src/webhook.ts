import type { ServerResponse } from "node:http";
import { jsonCodec } from "./codec.js";
import type { Body, Delivery, HeaderInit } from "./delivery.js";
import {
  Busy,
  Dropped,
  Duplicate,
  EpicMismatch,
  GaveUp,
  InProgress,
  Invalid,
  OutcomeUnknown,
  Overloaded,
  PayloadMismatch,
  TurnLost,
  Unavailable,
} from "./errors.js";
import { type Gate, run } from "./gate.js";
import type { TurnOptions } from "./options.js";
import type { Turn } from "./turn.js";

/**
 * Makes the delivery of a request, such as `github.delivery`. Whether a function gets the headers is
 * decided by the parameters that it declares. One that has a default value does not count, nor do those
 * after it.
 */
export type ByHeaders = (headers: HeaderInit, body: Body) => Delivery;
/** The same from the body alone, such as `teams.delivery`. */
export type ByBody = (body: Body) => Delivery;

/** Decides, when a route is made, what the function gets. */
export function withHeaders(make: ByHeaders | ByBody): ByHeaders {
  if (make.length === 0) {
    const message =
      "the function that makes a delivery must declare its parameters: body, or headers and body";
    throw new Invalid("delivery", message);
  }
  return make.length > 1 ? (make as ByHeaders) : (_, body) => (make as ByBody)(body);
}

export interface WebhookOptions extends Omit<TurnOptions, "codec" | "signal"> {
  /** How long to queue while the session is busy. Default: 5 s, or not at all if the sender redelivers. */
  readonly wait?: TurnOptions["wait"];
  /** How long the turn is tried while the server is unavailable. Default: 5 s. */
  readonly patience?: TurnOptions["patience"];
}

/** Senders wait 10 s and longer. */
const defaultPatience = "5s";
const waitWithoutRedelivery = "5s";

export interface Reply {
  readonly status: number;
  readonly headers: { readonly [name: string]: string };
  readonly body: Uint8Array;
}

/** Begins the turn of a request. Returns what to answer if there is none. */
export async function admit(
  gate: Gate,
  make: ByHeaders,
  headers: HeaderInit,
  body: Body,
  options: WebhookOptions,
): Promise<Admitted | Reply> {
  try {
    const delivery = make(headers, body);
    const wait = options.wait ?? (delivery.redelivers ? 0 : waitWithoutRedelivery);
    const patience = options.patience ?? defaultPatience;
    return new Admitted(await gate.begin(delivery, { ...options, wait, patience, codec: jsonCodec }));
  } catch (error) {
    return instead(error);
  }
}

/** A request that has its turn. */
export class Admitted {
  #thrown: { readonly error: unknown } | undefined;

  constructor(readonly turn: Turn) {}

  /** What the handler threw. The framework makes a response of it. */
  threw(error: unknown): void {
    this.#thrown ??= { error };
  }

  /**
   * Ends the turn by what the handler threw, or by the response that `handle` returns. Returns the response
   * to send. Throws what `handle` throws.
   */
  async end(handle: () => Reply | Promise<Reply>): Promise<Reply> {
    const { turn } = this;
    let reply: Reply | undefined;
    let failure: { readonly error: unknown } | undefined;
    try {
      await run(turn, async () => {
        try {
          reply = await handle();
          this.#throwFailure(reply);
          return toRecord(reply);
        } catch (error) {
          failure = { error };
          throw error;
        }
      });
      // If it is rejected, its sender need not deliver it again.
      return failure || !reply ? answer(200) : reply;
    } catch (error) {
      // The redelivery finds out whether the event is handled.
      if (turn.lostReason) return again(undefined);
      if (error !== failure?.error) return instead(error);
      if (!reply) throw error;
      return reply;
    }
  }

  #throwFailure({ status }: Reply): void {
    if (this.#thrown && !isResponse(this.#thrown.error)) throw this.#thrown.error;
    if (status >= 500) throw new Error(`the handler answered ${status}`);
  }
}

/**
 * Whether an error is a response that the handler has chosen: of http-errors, or an HTTPException of Hono.
 * The status of any other error may be that of another server, which the handler has called.
 */
function isResponse(error: unknown): boolean {
  if (typeof error !== "object" || error === null) return false;
  return ("expose" in error && error.expose === true) || "getResponse" in error;
}

/** How long a handler may work on after its client has gone. */
const handlerAfterCloseMs = 60_000;

/**
 * Ends the turn of a handler that never answers, so that it does not keep its event after its client
 * has gone. Until then the handler may do its work: its response is for the redelivery. Where
 * the runtime does not report that, the server ends the turn after its longest time.
 */
export function endIfAbandoned(turn: Turn, client: ServerResponse | AbortSignal | undefined): void {
  if (!client) return;
  const abandon = () => {
    if (!turn.held) return;
    const close = () => turn.held && turn.close("the client is gone and the handler does not answer");
    setTimeout(close, handlerAfterCloseMs).unref();
  };
  // A signal of another realm is no instance of this one's AbortSignal.
  const isSignal = "aborted" in client;
  // The client may have gone while the turn was waited for.
  if (isSignal ? client.aborted : client.destroyed) abandon();
  else if (isSignal) client.addEventListener("abort", abandon, { once: true });
  else client.once("close", abandon);
}

/** What a request is answered without its handler, or instead of what its handler answered. */
function instead(error: unknown): Reply {
  if (error instanceof Duplicate) return isRecorded(error.result) ? fromRecord(error.result) : answer(200);
  if (error instanceof GaveUp || error instanceof Dropped) return answer(200);
  if (error instanceof PayloadMismatch) return answer(422, "the key was used with another payload");
  if (error instanceof EpicMismatch) return answer(409, "the conversation belongs to other work");
  if (error instanceof Invalid) return answer(400, error.message);
  if (error instanceof InProgress || error instanceof Busy) return again(error.retryAfterMs);
  if (error instanceof Unavailable || error instanceof Overloaded) return again(error.retryAfterMs);
  // The redelivery finds out whether the event is handled.
  if (error instanceof TurnLost || error instanceof OutcomeUnknown) return again(undefined);
  throw error;
}

function answer(status: number, text = "", headers: Reply["headers"] = {}): Reply {
  return { status, headers, body: new TextEncoder().encode(text) };
}

function again(retryAfterMs: number | undefined): Reply {
  const seconds = Math.max(1, Math.ceil((retryAfterMs ?? 0) / 1000));
  return answer(503, "retry later", { "retry-after": String(seconds) });
}

/** A response as the turn stores it: the same JSON in every language. */
interface Recorded {
  readonly status: number;
  readonly headers: { readonly [name: string]: string };
  /** Base64. */
  readonly body: string;
}

/** False for what was handled otherwise, such as by a mark. */
function isRecorded(result: unknown): result is Recorded {
  if (typeof result !== "object" || result === null) return false;
  const { status, headers, body } = result as { [key: string]: unknown };
  const isStatus = typeof status === "number" && status >= 100 && status <= 999;
  return isStatus && typeof headers === "object" && headers !== null && typeof body === "string";
}

/** Headers that belong to a response, and not to the exchange that it was made in. */
const recordedHeaders = new Set([
  "content-language",
  "content-location",
  "content-type",
  "etag",
  "last-modified",
  "location",
]);

/** Of a turn, in bytes. */
const longestResult = 64 * 1024;

function toRecord({ status, headers, body }: Reply): Recorded {
  const recorded = Object.entries(headers).filter(([name]) => recordedHeaders.has(name.toLowerCase()));
  const record = {
    status,
    headers: Object.fromEntries(recorded),
    body: Buffer.from(body).toString("base64"),
  };
  const isStorable = jsonCodec.encode(record).data.length <= longestResult;
  // A duplicate of a long response gets the status alone.
  return isStorable ? record : { status, headers: {}, body: "" };
}

function fromRecord({ status, headers, body }: Recorded): Reply {
  return { status, headers, body: Buffer.from(body, "base64") };
}
