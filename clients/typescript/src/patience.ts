import type { CallError } from "./call-error.js";

const firstPauseMs = 50;
const longestPauseMs = 1000;

/** The least time that a request and a long try have for their answer, also without patience. */
export const leastTryMs = 500;

/**
 * How long a request is repeated: while the server is unavailable or overloaded, for `patience`; once it
 * was heard of, also until `wait` is over. It does no I/O; every moment is passed in.
 */
export class Patience {
  readonly #patienceMs: number;
  readonly #waitEnd: number;
  #givesUpAt: number;
  #pauseMs = firstPauseMs;

  constructor(patienceMs: number, waitMs: number, now: number) {
    this.#patienceMs = patienceMs;
    this.#waitEnd = now + waitMs;
    this.#givesUpAt = now + patienceMs;
  }

  /** How much of `wait` is left. */
  waitLeft(now: number): number {
    return Math.max(0, this.#waitEnd - now);
  }

  /** When the last try is made. */
  get givesUpAt(): number {
    return this.#givesUpAt;
  }

  /** When a try that was sent then has had its time. */
  tryEndsAt(sent: number): number {
    return Math.max(this.#givesUpAt, sent + leastTryMs);
  }

  /** The server was heard of. */
  heard(now: number): void {
    // The answer at the end of `wait` needs its time as well.
    this.#givesUpAt = Math.max(this.#waitEnd, now) + Math.max(leastTryMs, this.#patienceMs);
    this.#pauseMs = firstPauseMs;
  }

  /**
   * How long to pause before the request is repeated. The last pause ends with the patience. Undefined:
   * give up, because the patience is over or the server asks for a longer pause than is left.
   * @param chance from 0 to 1, so that many callers do not come back at once
   */
  pause(
    { retryAfterMs = 0 }: Pick<CallError, "retryAfterMs">,
    now: number,
    chance: number,
  ): number | undefined {
    const left = this.#givesUpAt - now;
    if (left <= 0 || retryAfterMs > left) return undefined;
    const pause = Math.max(retryAfterMs, this.#pauseMs) * (1 + chance / 4);
    this.#pauseMs = Math.min(longestPauseMs, this.#pauseMs * 2);
    return Math.min(pause, left);
  }
}
