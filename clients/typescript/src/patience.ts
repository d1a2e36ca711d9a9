import type { CallError } from "./call-error.js";

const firstPauseMs = 50;
const longestPauseMs = 1000;

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

  get givesUpAt(): number {
    return this.#givesUpAt;
  }

  /** The server was heard of. */
  heard(now: number): void {
    this.#givesUpAt = Math.max(this.#waitEnd, now) + this.#patienceMs;
    this.#pauseMs = firstPauseMs;
  }

  /**
   * How long to pause before the request is repeated; undefined: give up.
   * @param chance from 0 to 1, so that many callers do not come back at once
   */
  pause({ retryAfterMs }: Pick<CallError, "retryAfterMs">, now: number, chance: number): number | undefined {
    const pause = Math.max(retryAfterMs ?? 0, this.#pauseMs) * (1 + chance / 4);
    this.#pauseMs = Math.min(longestPauseMs, this.#pauseMs * 2);
    return now + pause < this.#givesUpAt ? pause : undefined;
  }
}
