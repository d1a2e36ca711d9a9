import type { LostReason } from "./errors.js";

/** What a message of the server says about the end of a turn or lease. */
export interface Measured {
  /** How long the server had worked on the call when it measured. */
  readonly elapsedMs: number;
  /** From the moment of sending to the end: elapsed and remaining, of the part that ends first. */
  readonly endsAfterMs: number;
}

export interface Terms {
  readonly ttlMs: number;
  /** How long the server keeps a turn after its stream broke. Undefined: a break ends nothing. */
  readonly graceMs: number | undefined;
  readonly keptBy: KeptBy;
}

export type KeptBy = "stream" | "renew";

export type Step = "renew" | "lost" | undefined;

/** Longest time between two tries of a renewal that failed. */
const retryMs = 200;

/** Silence on a stream after which the holder renews by a call, as a share of the TTL. */
const silence = 0.4;

/** The latest moment of that call, as a share of the trusted time: a short grace leaves less of it. */
const latestProbe = 0.9;

/** The same if the trusted time is over before the server renews: then the call is needed anyway. */
const earlyProbe = 0.5;

/** What is taken off an end at the server, for the speed of clocks and the delay of timers. */
export function marginMs(ttlMs: number): number {
  return Math.min(1000, ttlMs / 10);
}

/**
 * The state of one turn or lease that is held: its trusted end, who renews it, and what to do
 * next. It does no I/O; every moment is passed in, in milliseconds of one monotonic clock.
 */
export class Keeping {
  readonly #terms: Terms;
  readonly #marginMs: number;
  #keptBy: KeptBy;
  #end: number;
  /** The earliest moment at which the server can have measured that end. */
  #measuredAt: number;
  /** Until when the server keeps the turn if the stream broke right after its latest news. */
  #graceEnd: number;
  /** When a call renews at the latest, unless the stream reports a later end. */
  #probeBy: number;
  /** When the next renewal by a call is due. */
  #renewAt: number;
  #renewing = false;
  #isStreamOpen: boolean;
  #lost: LostReason | undefined;

  constructor(terms: Terms, sent: number, granted: Measured, now: number) {
    this.#terms = terms;
    this.#marginMs = marginMs(terms.ttlMs);
    this.#keptBy = terms.keptBy;
    this.#isStreamOpen = terms.keptBy === "stream";
    this.#end = this.#endOf(sent, granted);
    this.#measuredAt = sent + granted.elapsedMs;
    this.#graceEnd = this.#graceEndOf(sent, granted);
    this.#probeBy = this.#latestProbe(now);
    this.#renewAt = this.#isStreamOpen ? this.#probeAt(now) : this.#renewalDue(sent);
  }

  get keptBy(): KeptBy {
    return this.#keptBy;
  }

  get lost(): LostReason | undefined {
    return this.#lost;
  }

  /** The moment until which the holder may work: earlier than the end at the server. */
  get trustedEnd(): number {
    return this.#keptBy === "stream" ? Math.min(this.#end, this.#graceEnd) : this.#end;
  }

  /** When `next` has something to do. */
  get wakeAt(): number {
    return this.#renewing ? this.trustedEnd : Math.min(this.trustedEnd, this.#renewAt);
  }

  /** The stream sent a message, and with `measured` a new end, counted from `sent`. */
  heard(now: number, sent: number, measured?: Measured): void {
    if (measured) {
      this.#move(sent, measured);
      this.#graceEnd = Math.max(this.#graceEnd, this.#graceEndOf(sent, measured));
      this.#probeBy = this.#latestProbe(now);
    }
    if (this.#keptBy === "stream") this.#renewAt = this.#probeAt(now);
  }

  /**
   * The stream has ended, and not because the turn is lost.
   * @param isDrain the server ended it, and will not count a grace
   */
  broke(now: number, isDrain: boolean): void {
    this.#isStreamOpen = false;
    if (isDrain) this.#graceEnd = Infinity;
    if (this.#keptBy === "stream") this.#renewAt = now;
  }

  /** A renewal by a call succeeded: from now on the end of the stream changes nothing. */
  renewed(sent: number, measured: Measured): void {
    this.#renewing = false;
    this.#keptBy = "renew";
    this.#move(sent, measured);
    this.#renewAt = this.#renewalDue(sent);
  }

  /** A renewal by a call failed. `retryAfterMs`: as an overloaded server asks. */
  notRenewed(now: number, retryAfterMs = 0): void {
    this.#renewing = false;
    const isSilent = this.#keptBy === "renew" || !this.#isStreamOpen || this.#renewAt <= now;
    const left = Math.max(0, this.trustedEnd - now);
    if (isSilent) this.#renewAt = now + Math.min(Math.max(retryMs, retryAfterMs), left / 3);
  }

  lose(reason: LostReason): void {
    this.#lost ??= reason;
  }

  /** What is due now. After "renew" call `renewed`, `notRenewed` or `lose`. */
  next(now: number): Step {
    if (this.#lost) return undefined;
    if (now >= this.trustedEnd) {
      this.#lost = "EXPIRED";
      return "lost";
    }
    if (this.#renewing || now < this.#renewAt) return undefined;
    this.#renewing = true;
    return "renew";
  }

  /** When a call renews after one that was sent then. The server may have granted less than the TTL. */
  #renewalDue(sent: number): number {
    return sent + Math.min(this.#terms.ttlMs / 3, (this.trustedEnd - sent) / 2);
  }

  #probeAt(now: number): number {
    return Math.min(now + silence * this.#terms.ttlMs, this.#probeBy);
  }

  #latestProbe(now: number): number {
    const left = this.trustedEnd - now;
    const isRenewedInTime = latestProbe * left > this.#terms.ttlMs / 3;
    return now + left * (isRenewedInTime ? latestProbe : earlyProbe);
  }

  /** The latest measurement counts: the end comes earlier if the server's clock was set forward. */
  #move(sent: number, measured: Measured): void {
    const measuredAt = sent + measured.elapsedMs;
    if (measuredAt < this.#measuredAt) return;
    this.#measuredAt = measuredAt;
    this.#end = this.#endOf(sent, measured);
  }

  #endOf(sent: number, { endsAfterMs }: Measured): number {
    return sent + endsAfterMs - this.#marginMs;
  }

  #graceEndOf(sent: number, { elapsedMs }: Measured): number {
    const { graceMs } = this.#terms;
    return graceMs === undefined ? Infinity : sent + elapsedMs + graceMs - this.#marginMs;
  }
}
