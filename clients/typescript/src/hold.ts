import { CallError, Code } from "./call-error.js";
import type { Cancellation } from "./cancellation.js";
import type { LostReason, OncegateError } from "./errors.js";
import { Keeper, settleMs } from "./keeper.js";
import { Keeping, type KeptBy, type Measured, type Terms } from "./keeping.js";
import { retry, shortTries } from "./retry.js";
import { type Clock, settlesWithin, sleep } from "./time.js";
import type { CallOptions } from "./transport.js";

/** How long a gate that closes waits for an end that is under way. */
const endEffortMs = 5000;

/** What a turn or lease is granted with. */
export interface Grant {
  readonly sent: number;
  readonly measured: Measured;
  readonly terms: Terms;
}

/** What a gate gives to its turns and leases. */
export interface Owner {
  readonly clock: Clock;
  opened(hold: Hold): void;
  ended(hold: Hold): void;
  lost(reason: LostReason): void;
}

/** What a turn and a lease have in common. */
export abstract class Hold {
  /** Resolves when it is lost, and never rejects. */
  readonly lost: Promise<LostReason>;
  readonly #owner: Owner;
  readonly #scope: Cancellation;
  readonly #keeping: Keeping | undefined;
  #keeper: Keeper | undefined;
  #lostReason: LostReason | undefined;
  #resolveLost!: (reason: LostReason) => void;
  #lossCause: CallError | undefined;
  /** Whether its holder has got it. */
  #hasBegun = false;
  #isOpen = true;
  /** The end that is under way. */
  #ending: Promise<unknown> | undefined;
  #waiters = 0;

  /** @internal Without a grant it is unguarded: nothing is held, and nothing can be lost. */
  protected constructor(owner: Owner, scope: Cancellation, grant: Grant | undefined) {
    this.#owner = owner;
    this.#scope = scope;
    this.lost = new Promise((resolve) => {
      this.#resolveLost = resolve;
    });
    if (!grant) return;
    this.#keeping = new Keeping(grant.terms, grant.sent, grant.measured, owner.clock.now());
    owner.opened(this);
  }

  /** @internal From now on it is renewed. */
  protected keep(): void {
    if (!this.#keeping) return;
    this.#keeper ??= new Keeper(this.#keeping, this.#owner.clock, {
      renew: (options) => this.renew(options),
      lost: (reason, cause) => this.#lose(reason, cause),
    });
  }

  /** Whether it is held now. False for an unguarded turn. */
  get held(): boolean {
    return this.#keeping !== undefined && this.#isOpen && this.#lostReason === undefined;
  }

  /** Aborted when it is lost, with the error, or when the caller's own `signal` is. */
  get signal(): AbortSignal {
    return this.#scope.signal;
  }

  get lostReason(): LostReason | undefined {
    return this.#lostReason;
  }

  /** Who renews it: the server, while the stream lives, or this library by calls. */
  get keptBy(): KeptBy | undefined {
    return this.#keeping?.keptBy;
  }

  /** How many callers wait for the session. */
  get waiters(): number {
    return this.#waiters;
  }

  /** Milliseconds to the trusted end. Negative once it has passed. */
  get leftMs(): number {
    return this.#keeping ? this.#keeping.trustedEnd - this.#owner.clock.now() : Infinity;
  }

  /**
   * Throws if it is lost, its trusted end has passed, or it has ended. Call it before an outside write.
   * An unguarded turn always passes.
   */
  check(): void {
    this.throwIfLost();
    if (!this.isGuarded) return;
    if (!this.#isOpen) throw this.lossError("ENDED");
    if (this.leftMs <= 0) throw this.lossError("EXPIRED");
  }

  /** @internal The gate is closed: nothing that is held may stay. An end that is under way is sent. */
  async close(detail = "the gate was closed"): Promise<void> {
    if (this.#ending) {
      await settlesWithin(this.#ending, endEffortMs);
      return;
    }
    const ended = this.abandon(detail);
    this.lose("CLOSED");
    await ended;
  }

  /** @internal Ends it for a holder that did not. It never rejects. */
  abstract abandon(detail: string): Promise<void>;
  /** @internal */
  protected abstract renew(options: CallOptions): Promise<Measured>;
  /** @internal */
  protected abstract lossError(reason: LostReason, cause?: CallError, value?: unknown): OncegateError;
  /** @internal It was lost before its end began. */
  protected endedByLoss(): void {}
  /** @internal Breaks the stream. */
  protected abstract cancelStream(): void;

  /**
   * @internal Gives it to its holder, trusted. Returns false if it was lost on its way. What its holder
   * does not get for another reason is given back.
   */
  async begin(effortMs: number): Promise<boolean> {
    try {
      if (!this.#keeper) await this.#carry(effortMs);
      this.#scope.throwIfAborted();
    } catch (error) {
      if (!(error instanceof CallError && error.lost)) {
        void this.abandon("its holder did not begin");
        throw error;
      }
      this.drop();
    }
    if (!this.#isOpen) return false;
    this.begun();
    return true;
  }

  /** @internal Its holder gets it: from now on it is renewed, and its loss reported. */
  begun(): void {
    this.#hasBegun = true;
    this.keep();
  }

  /** @internal */
  protected get hasBegun(): boolean {
    return this.#hasBegun;
  }

  /** Renews it once by a call: from then on the end of its stream changes nothing. */
  async #carry(effortMs: number): Promise<void> {
    const { clock } = this.#owner;
    const effort = { clock, effortMs, plan: shortTries, signal: this.signal };
    await retry(effort, async (options) => {
      const sent = clock.now();
      this.#keeping?.renewed(sent, await this.renew(options));
      if (this.leftMs <= 0) throw new CallError(Code.UNAVAILABLE, "an answer came after the trusted end");
    });
  }

  /** @internal Whether its end has not begun. */
  get isOpen(): boolean {
    return this.#isOpen;
  }

  /** @internal */
  protected get isGuarded(): boolean {
    return this.#keeping !== undefined;
  }

  /** @internal */
  protected get trustedEnd(): number {
    return this.#keeping?.trustedEnd ?? Infinity;
  }

  /** @internal */
  protected heard(sent: number, measured?: Measured): void {
    this.#keeper?.heard(sent, measured);
  }

  /** @internal */
  protected setWaiters(waiters: number): void {
    this.#waiters = waiters;
  }

  /** @internal */
  protected broke(error: CallError | undefined): void {
    this.#keeper?.broke(error?.isDrain ?? false);
  }

  /** @internal `value`: what its handler returned all the same. */
  protected throwIfLost(value?: unknown): void {
    if (this.#lostReason) throw this.lossError(this.#lostReason, this.#lossCause, value);
  }

  /** @internal */
  protected lose(reason: LostReason, cause?: CallError): void {
    if (this.#isOpen && this.#keeper) this.#keeper.lose(reason, cause);
    else this.#lose(reason, cause);
  }

  /**
   * @internal Decides whether a trusted end that has passed is a loss: after a blocked event loop
   * the server's messages are still to be read.
   */
  protected async catchUp(): Promise<void> {
    if (!this.#isOpen || this.leftMs > 0) return;
    await sleep(settleMs);
    if (this.#isOpen && this.leftMs <= 0) this.lose("EXPIRED");
  }

  /** @internal The holder leaves it: it is not kept any more, and `send` ends it. */
  protected async end(send: () => Promise<void>): Promise<void> {
    this.#stopKeeping();
    this.#ending = send();
    try {
      await this.#ending;
    } finally {
      this.leave();
    }
  }

  #stopKeeping(): void {
    this.#keeper?.stop();
    this.#isOpen = false;
  }

  /** @internal It is not held any more. The scope stays, such as for the next request. */
  drop(): void {
    this.#stopKeeping();
    this.cancelStream();
    this.#owner.ended(this);
  }

  /** @internal It has ended: nothing is left behind. */
  protected leave(): void {
    this.drop();
    this.#scope.leave();
  }

  #lose(reason: LostReason, cause: CallError | undefined): void {
    if (!this.#hasBegun) {
      if (this.#isOpen) this.drop(); // another one is asked for
      return;
    }
    if (this.#lostReason) return;
    this.#lostReason = reason;
    this.#lossCause = cause;
    this.#resolveLost(reason);
    this.#scope.abort(this.lossError(reason, cause));
    // If its end is on the way, the end leaves it.
    const isOver = this.#isOpen;
    if (isOver) this.leave();
    this.#owner.lost(reason);
    if (isOver) this.endedByLoss();
  }
}
