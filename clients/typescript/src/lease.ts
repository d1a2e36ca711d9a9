import { create } from "@bufbuild/protobuf";
import type { CallError } from "./call-error.js";
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
        if (error?.loss) this.lose(error.loss, error);
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

  /**
   * Releases it. Throws LeaseLost if its loss is known. What the server answers reports none: a repeat
   * does not find what the try before it has released.
   */
  async release(): Promise<void> {
    await this.catchUp();
    this.throwIfLost();
    await this.abandon();
  }

  /** Releases it. Nothing is released if it was lost, and nothing is thrown. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.abandon();
  }

  /** @internal */
  async abandon(): Promise<void> {
    if (!this.isOpen) return;
    const { transport, clock, debug } = this.#core;
    const { key: session, lease } = this.#grant;
    const { releaseSessionLease } = IdempotencyService.method;
    const request = create(ReleaseSessionLeaseRequestSchema, { session, leaseId: lease.leaseId });
    const call = (options: CallOptions) => transport.unary(releaseSessionLease, request, options);
    await this.end(async () => {
      try {
        await retry({ clock, effortMs: releaseEffortMs, plan: shortTries }, call);
      } catch (error) {
        debug("a lease could not be released; it ends with its TTL: %s", error);
      }
    });
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
