import { CallError } from "./call-error.js";
import type { LostReason } from "./errors.js";
import type { Keeping, Measured } from "./keeping.js";
import { shortTries } from "./retry.js";
import { type Clock, timeout } from "./time.js";
import type { CallOptions } from "./transport.js";

/** A timer that fires later than this was held up by a blocked event loop. */
const lateMs = 100;

/** How long the loop gets to read what arrived while it was blocked. */
export const settleMs = 50;

/** What the keeper needs of the turn or lease. */
export interface Kept {
  /** Renews by a call, and returns the new end. */
  renew(options: CallOptions): Promise<Measured>;
  /** Called once. `cause`: the status that reported it. */
  lost(reason: LostReason, cause: CallError | undefined): void;
}

/** Drives the state of a turn or lease that is held: timers and renewals. It never rejects. */
export class Keeper {
  readonly #state: Keeping;
  readonly #clock: Clock;
  readonly #kept: Kept;
  #timer: NodeJS.Timeout | undefined;
  #timerAt = Infinity;
  #isStopped = false;
  /** How many renewals failed since the latest that succeeded. */
  #failed = 0;

  constructor(state: Keeping, clock: Clock, kept: Kept) {
    this.#state = state;
    this.#clock = clock;
    this.#kept = kept;
    this.#schedule();
  }

  /** The stream sent a message, and with `measured` a new end, counted from `sent`. */
  heard(sent: number, measured?: Measured): void {
    this.#state.heard(this.#clock.now(), sent, measured);
    this.#schedule();
  }

  /** The stream has ended, and not because the turn is lost. */
  broke(isDrain: boolean): void {
    this.#state.broke(this.#clock.now(), isDrain);
    this.#advance();
  }

  lose(reason: LostReason, cause?: CallError): void {
    if (this.#isStopped) return;
    this.#state.lose(reason);
    this.stop();
    this.#kept.lost(reason, cause);
  }

  /** Nothing is renewed any more. */
  stop(): void {
    this.#isStopped = true;
    clearTimeout(this.#timer);
  }

  #advance(): void {
    if (this.#isStopped) return;
    switch (this.#state.next(this.#clock.now())) {
      case "renew":
        void this.#renew();
        break;
      case "lost":
        this.stop();
        this.#kept.lost("EXPIRED", undefined);
        return;
    }
    this.#schedule();
  }

  async #renew(): Promise<void> {
    const sent = this.#clock.now();
    try {
      const measured = await this.#kept.renew(shortTries(this.#failed, this.#state.trustedEnd - sent));
      this.#failed = 0;
      this.#state.renewed(sent, measured);
    } catch (error) {
      const status = error instanceof CallError ? error : undefined;
      if (status?.loss) return this.lose(status.loss, status);
      this.#failed += 1;
      this.#state.notRenewed(this.#clock.now(), status?.retryAfterMs);
    }
    this.#schedule();
  }

  /** Most news moves the next step away: then the timer stays, and finds nothing to do. */
  #schedule(): void {
    const at = this.#state.wakeAt;
    if (this.#isStopped || at >= this.#timerAt) return;
    this.#setTimer(at, Math.max(0, at - this.#clock.now()), () => {
      const isLate = this.#clock.now() - at > lateMs;
      // The server may have renewed meanwhile: its messages wait in the socket.
      if (isLate) this.#setTimer(-Infinity, settleMs, () => this.#wake());
      else this.#wake();
    });
  }

  #wake(): void {
    this.#timerAt = Infinity;
    this.#advance();
  }

  #setTimer(at: number, inMs: number, run: () => void): void {
    clearTimeout(this.#timer);
    this.#timerAt = at;
    this.#timer = timeout(run, inMs);
  }
}
