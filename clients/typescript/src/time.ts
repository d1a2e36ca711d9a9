import type { Duration } from "@bufbuild/protobuf/wkt";
import { durationFromMs } from "@bufbuild/protobuf/wkt";
import { Invalid } from "./errors.js";

/** A duration: milliseconds, or a text such as "500ms", "20s", "2m" or "1h". */
export type Time = number | `${number}${"ms" | "s" | "m" | "h"}`;

const unitMs = { ms: 1, s: 1000, m: 60_000, h: 3_600_000 } as const;

/** The time in milliseconds. `name` is the option that an error names. */
export function toMs(time: Time, name: string): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h)$/.exec(String(time));
  const ms =
    typeof time === "number"
      ? time
      : match
        ? Number(match[1]) * unitMs[match[2] as keyof typeof unitMs]
        : NaN;
  if (!Number.isFinite(ms) || ms < 0) {
    throw new Invalid(
      name,
      `${name}: ${time} is not a valid duration; use milliseconds or a text such as "20s"`,
    );
  }
  return ms;
}

export function toDuration(ms: number): Duration {
  return durationFromMs(Math.round(ms));
}

export function fromDuration(duration: Duration | undefined): number {
  return duration ? Number(duration.seconds) * 1000 + duration.nanos / 1e6 : 0;
}

/** Milliseconds on a clock that never goes back. */
export interface Clock {
  now(): number;
}

export const monotonic: Clock = { now: () => performance.now() };

/** How much earlier than asked for a timer of Node may fire. */
export const earlyMs = 1;

/** Node fires a timer at once if it is set for longer. */
const longestTimerMs = 2 ** 31 - 1;

/** A timer that waits for as long as it can, however long the time is. */
export function timeout(run: () => void, ms: number): NodeJS.Timeout {
  return setTimeout(run, Math.min(ms, longestTimerMs));
}

/** Waits, or rejects with the signal's reason. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason);
    const stop = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = timeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms + earlyMs);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** Whether the promise settled within the time. */
export async function settlesWithin(promise: Promise<unknown>, ms: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<boolean>((resolve) => {
    timer = timeout(() => resolve(false), ms);
  });
  const settled = promise.then(
    () => true,
    () => true,
  );
  try {
    return await Promise.race([settled, late]);
  } finally {
    clearTimeout(timer);
  }
}
