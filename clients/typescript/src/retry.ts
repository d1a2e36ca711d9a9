import type { DescMessage, DescMethodUnary, MessageShape } from "@bufbuild/protobuf";
import { CallError, Code } from "./call-error.js";
import type { Core } from "./core.js";
import { leastTryMs, Patience } from "./patience.js";
import { type Clock, sleep } from "./time.js";
import type { CallOptions } from "./transport.js";

/** How one try is made: the first is number 0. */
export type Plan = (attempt: number, leftMs: number) => CallOptions;

/** Each try may take all the time that is left. */
const longTries: Plan = (_, leftMs) => ({ deadlineMs: Math.min(10_000, Math.max(leastTryMs, leftMs)) });

/**
 * Several tries fit into the time that is left, in turn over the calls' and the streams'
 * connection: one that answers nothing must not use all of it.
 */
export const shortTries: Plan = (attempt, leftMs) => ({
  deadlineMs: Math.max(250, Math.min(5000, leftMs / 3)),
  over: attempt % 2 === 0 ? "calls" : "streams",
});

/**
 * Repeats an attempt while the server is unavailable or overloaded. Throws the latest error that says more
 * than that the time was over, or the reason of the caller's signal.
 */
export async function repeat<T>(
  patience: Patience,
  clock: Clock,
  caller: { readonly signal?: AbortSignal | undefined },
  attempt: (number: number) => Promise<T>,
): Promise<T> {
  let cause: CallError | undefined;
  let hasRenewed = false;
  for (let number = 0; ; number += 1) {
    try {
      return await attempt(number);
    } catch (error) {
      if (!(error instanceof CallError && error.isRetryable)) throw error;
      if (error.isOutdated && !hasRenewed) {
        hasRenewed = true;
        continue;
      }
      if (cause === undefined || error.code !== Code.DEADLINE_EXCEEDED) cause = error;
      const pause = patience.pause(error, clock.now(), Math.random());
      if (pause === undefined) throw cause;
      await sleep(pause, caller.signal);
    }
  }
}

export interface Effort {
  readonly clock: Clock;
  readonly effortMs: number;
  readonly plan: Plan;
  readonly signal?: AbortSignal | undefined;
}

/** Makes a repeatable call, and repeats it as `repeat` does. */
export function retry<T>(
  { clock, effortMs, plan, signal }: Effort,
  call: (options: CallOptions) => Promise<T>,
): Promise<T> {
  const patience = new Patience(effortMs, 0, clock.now());
  return repeat(patience, clock, { signal }, (attempt) =>
    call({ ...plan(attempt, patience.givesUpAt - clock.now()), signal }),
  );
}

/** Makes a repeatable call within the patience. Throws the library's own errors. */
export function patientCall<I extends DescMessage, O extends DescMessage>(
  { transport, clock }: Core,
  method: DescMethodUnary<I, O>,
  request: MessageShape<I>,
  patienceMs: number,
): Promise<MessageShape<O>> {
  return patiently(clock, patienceMs, undefined, (options) => transport.unary(method, request, options));
}

/** Makes whatever a repeatable call is part of within the patience. Throws the library's own errors. */
export async function patiently<T>(
  clock: Clock,
  patienceMs: number,
  signal: AbortSignal | undefined,
  call: (options: CallOptions) => Promise<T>,
): Promise<T> {
  try {
    return await retry({ clock, effortMs: patienceMs, plan: longTries, signal }, call);
  } catch (error) {
    throw error instanceof CallError ? error.toError() : error;
  }
}
