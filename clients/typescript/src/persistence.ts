import type { DeliveryInit } from "./delivery.js";
import { Busy, InProgress } from "./errors.js";
import type { Gate, Handler } from "./gate.js";
import type { TurnOptions } from "./options.js";
import { monotonic, sleep, type Time, toMs } from "./time.js";

/**
 * Makes an attempt, and another one while another run has the event: that run may fail, and nobody
 * may deliver the event again. Throws InProgress when `wait` is over.
 * @param attempt gets what is left of `wait`, in milliseconds
 */
export async function lookAgain<T>(wait: Time, attempt: (waitMs: number) => Promise<T>): Promise<T> {
  const end = monotonic.now() + toMs(wait, "wait");
  for (;;) {
    const left = Math.max(0, end - monotonic.now());
    try {
      return await attempt(left);
    } catch (error) {
      if (!(error instanceof InProgress) || left === 0) throw error;
      await sleep(Math.min(error.retryAfterMs, left));
    }
  }
}

/**
 * Runs the handler in the turn of a delivery that has to be handled here: queues while its
 * conversation is busy, and looks again while another run has its event. Throws Busy or InProgress
 * when `wait` is over.
 */
export async function handleOnce(
  gate: Gate,
  delivery: DeliveryInit,
  { wait = "10m", ...options }: TurnOptions,
  handler: Handler<void>,
): Promise<void> {
  await lookAgain(wait, async (waitMs) => {
    const outcome = await gate.turn(delivery, { ...options, wait: waitMs }, handler);
    if (outcome instanceof Busy || outcome instanceof InProgress) throw outcome;
  });
}
