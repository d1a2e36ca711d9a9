import type { DeliveryInit } from "./delivery.js";
import { describe } from "./describe.js";
import { Busy, InProgress } from "./errors.js";
import type { Gate, Handler } from "./gate.js";
import type { TurnOptions } from "./options.js";
import { monotonic, sleep, type Time, toMs } from "./time.js";

/** The longest wait that the server accepts. */
const longestWaitMs = 600_000;
/** Between two waits. */
const pauseMs = 1000;

/**
 * Makes an attempt, and another one while another run has the event: that run may fail, and nobody
 * may deliver the event again. Returns the last outcome, which is InProgress or Busy when `wait` is over.
 * @param attempt gets what is left of `wait`, in milliseconds, and at most what the server accepts
 */
export async function lookAgain<T>(wait: Time, attempt: (waitMs: number) => Promise<T>): Promise<T> {
  const end = monotonic.now() + toMs(wait, "wait");
  for (;;) {
    const left = Math.max(0, end - monotonic.now());
    const outcome = await attempt(Math.min(longestWaitMs, left));
    if (outcome instanceof InProgress && left > 0) await sleep(Math.min(outcome.retryAfterMs, left));
    else if (outcome instanceof Busy && left > longestWaitMs) await sleep(pauseMs);
    else return outcome;
  }
}

async function reportBusy(gate: Gate, onBusy: (busy: Busy) => unknown, busy: Busy): Promise<void> {
  try {
    await onBusy(busy);
  } catch (error) {
    const { core } = gate.internals;
    core.warn(
      "onBusy",
      `onBusy threw ${describe(error)}; the handler waits for its conversation all the same`,
    );
  }
}

export interface HandleOptions extends Omit<TurnOptions, "codec" | "signal"> {
  /** How long to wait for the conversation, or for another run of the event. Default: 10 min. */
  readonly wait?: Time | undefined;
}

/**
 * Runs the handler in the turn of a delivery that has to be handled here: queues while its
 * conversation is busy, and looks again while another run has its event. Throws Busy or InProgress
 * when `wait` is over.
 * @param onBusy is called before it queues. What it throws is a warning.
 */
export async function handleHere(
  gate: Gate,
  delivery: DeliveryInit,
  { wait = "10m", ...options }: HandleOptions,
  onBusy: ((busy: Busy) => unknown) | undefined,
  handler: Handler<void>,
): Promise<void> {
  // What the handler itself throws is none of these outcomes, even if it is of the same class.
  const attempt = (waitMs: number) => gate.turn(delivery, { ...options, wait: waitMs }, handler);
  if (onBusy) {
    const first = await attempt(0);
    if (first instanceof Busy) await reportBusy(gate, onBusy, first);
    else if (!(first instanceof InProgress)) return;
  }
  const outcome = await lookAgain(wait, attempt);
  if (outcome instanceof Busy || outcome instanceof InProgress) throw outcome;
}
