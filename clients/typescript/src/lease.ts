import { create } from "@bufbuild/protobuf";
import { CallError } from "./call-error.js";
import type { Cancellation } from "./cancellation.js";
import type { Core } from "./core.js";
import { LeaseLost, type LostReason } from "./errors.js";
import {
  type HoldSessionLeaseRequest,
  type HoldSessionLeaseResponse,
  IdempotencyService,
  ReleaseSessionLeaseRequestSchema,
  RenewSessionLeaseRequestSchema,
} from "./gen/oncegate/v1/idempotency_service_pb.js";
import type { SessionKey, SessionLease } from "./gen/oncegate/v1/session_pb.js";
import { Hold } from "./hold.js";
import type { Measured } from "./keeping.js";
import { retry, shortTries } from "./retry.js";
import { toDuration } from "./time.js";
import type { CallOptions, Stream } from "./transport.js";
import { measureLease } from "./wire.js";

type LeaseStream = Stream<HoldSessionLeaseRequest, HoldSessionLeaseResponse>;

/** What a lease was granted with. */
export interface LeaseGrant {
  readonly lease: SessionLease;
  readonly key: SessionKey;
  readonly sent: number;
  readonly stream: LeaseStream;
  readonly ttlMs: number;
}

/** How long a release is tried; then the lease ends with its TTL. */
const releaseEffortMs = 5000;

/** The right to work on one session, without an event. */
export class Lease extends Hold {
  readonly #core: Core;
  readonly #grant: LeaseGrant;
  #stream: LeaseStream | undefined;
  #isCarried = false;
  /** The loss that the stream reported before it was carried. */
  #lossBefore: LostReason | undefined;

  /** @internal */
  constructor(core: Core, scope: Cancellation, grant: LeaseGrant) {
    super(core, scope, {
      sent: grant.sent,
      measured: measureLease(grant.lease),
      // It is renewed by a call before it is used, and then outlives its stream.
      terms: { ttlMs: grant.ttlMs, graceMs: undefined, keptBy: "stream" },
    });
    this.#core = core;
    this.#grant = grant;
    this.#stream = grant.stream;
    grant.stream.receiver = {
      message: ({ news }) => {
        if (news.case === "waiting") this.setWaiters(news.value.waiters);
        const lease = news.case === "renewed" ? news.value.lease : undefined;
        this.heard(grant.sent, lease && measureLease(lease));
      },
      end: (error) => {
        this.#stream = undefined;
        // Its release also ends the stream.
        if (!this.isOpen) return;
        if (!this.#isCarried) this.#lossBefore = error?.lost;
        else if (error?.lost) this.lose(error.lost, error);
        else this.broke(error);
      },
    };
  }

  /** The fencing token, to be sent with each write. */
  get fence(): bigint {
    return this.#grant.lease.fencingToken;
  }

  /** The canonical id of the session. */
  get session(): string {
    return this.#grant.lease.sessionId;
  }

  /** The work that the session is bound to; empty: none. */
  get epic(): string {
    return this.#grant.lease.epicId;
  }

  /** Releases it. Throws LeaseLost if it was lost before. */
  async release(): Promise<void> {
    if (this.lostReason) throw this.lossError(this.lostReason);
    await this[Symbol.asyncDispose]();
  }

  /** Releases it. Nothing is released if it was lost, and nothing is thrown. */
  async [Symbol.asyncDispose](): Promise<void> {
    if (!this.isOpen) return;
    const { key: session, lease } = this.#grant;
    const request = create(ReleaseSessionLeaseRequestSchema, { session, leaseId: lease.leaseId });
    await this.end(async () => {
      try {
        const options = { deadlineMs: releaseEffortMs };
        await this.#core.transport.unary(IdempotencyService.method.releaseSessionLease, request, options);
      } catch (error) {
        this.#core.debug("a lease could not be released; it ends with its TTL: %s", error);
      }
    });
  }

  protected abandon(): Promise<void> {
    return this[Symbol.asyncDispose]();
  }

  /**
   * Renews it once by a call, so that the end of its stream does not release it. False if it was
   * lost before.
   * @internal
   */
  async carry(signal: AbortSignal): Promise<boolean> {
    const { clock } = this.#core;
    const effort = { clock, effortMs: this.leftMs, plan: shortTries, signal };
    try {
      await retry(effort, async (options) => {
        const sent = clock.now();
        this.renewed(sent, await this.renew(options));
      });
      signal.throwIfAborted();
    } catch (error) {
      if (!(error instanceof CallError)) {
        await this[Symbol.asyncDispose]();
        throw error;
      }
      this.drop();
      if (error.lost || error.isRetryable) return false;
      throw error;
    }
    if (this.#lossBefore || this.leftMs <= 0) {
      this.drop();
      return false;
    }
    this.#isCarried = true;
    this.keep();
    return true;
  }

  protected async renew(options: CallOptions): Promise<Measured> {
    const { key: session, lease, ttlMs } = this.#grant;
    const request = create(RenewSessionLeaseRequestSchema, {
      session,
      leaseId: lease.leaseId,
      ttl: toDuration(ttlMs),
    });
    const answer = await this.#core.transport.unary(
      IdempotencyService.method.renewSessionLease,
      request,
      options,
    );
    return measureLease(answer.lease);
  }

  protected lossError(reason: LostReason, cause?: CallError): LeaseLost {
    return new LeaseLost(reason, cause && { cause });
  }

  protected cancelStream(): void {
    this.#stream?.cancel();
    this.#stream = undefined;
  }
}
