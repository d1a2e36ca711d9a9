import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import type { Cancellation } from "./cancellation.js";
import { decodeOrError } from "./codec.js";
import type { Core } from "./core.js";
import type { Delivery, Session } from "./delivery.js";
import { Busy, Duplicate, GaveUp, InProgress } from "./errors.js";
import {
  type HoldSessionLeaseRequest,
  HoldSessionLeaseRequestSchema,
  type HoldSessionLeaseResponse,
  IdempotencyService,
} from "./gen/oncegate/v1/idempotency_service_pb.js";
import type { LeaseHeld, SessionLease } from "./gen/oncegate/v1/session_pb.js";
import {
  BeginTurnRequestSchema,
  type RunTurnRequest,
  RunTurnRequestSchema,
  type RunTurnResponse,
  type TurnDuplicate,
  type TurnGaveUp,
  type TurnInProgress,
  TurnService,
  type Turn as WireTurn,
} from "./gen/oncegate/v1/turn_service_pb.js";
import { Lease } from "./lease.js";
import type { Answer, Request } from "./opening.js";
import type { Settings, TurnSettings } from "./options.js";
import { fromDuration, toDuration } from "./time.js";
import type { Receiver, Stream } from "./transport.js";
import { Turn } from "./turn.js";
import { turnTtls } from "./turn-requests.js";
import { cutLease, outcomeName } from "./wire.js";

/** How long an abandoned request may still be answered. */
const abandonMs = 250;

/** The gate's consumers of an event and of a session; a delivery may name its own. */
export interface Consumers {
  readonly event: string;
  readonly session: string;
  /** Whether all consumers have the same sessions. */
  readonly shareSessions: boolean;
}

/** RunTurn, from its request to its grant. */
export class TurnRequest implements Request<RunTurnRequest, RunTurnResponse, WireTurn, Turn> {
  readonly #core: Core;
  readonly #delivery: Delivery;
  readonly #settings: TurnSettings;
  readonly #scope: Cancellation;
  readonly #begin;

  constructor(
    core: Core,
    consumers: Consumers,
    delivery: Delivery,
    settings: TurnSettings,
    scope: Cancellation,
  ) {
    this.#core = core;
    this.#delivery = delivery;
    this.#settings = settings;
    this.#scope = scope;
    const own = consumers.shareSessions ? undefined : delivery.consumer;
    const session = delivery.toSessionKey(own ?? consumers.session);
    this.#begin = {
      event: delivery.toEventKey(consumers.event),
      ...(session && { session }),
      holder: core.holder,
      requestId: randomUUID(),
      ...turnTtls(settings),
      epicId: settings.epic,
      maxAttempts: settings.maxAttempts,
      labels: { ...settings.labels },
      payloadDigest: delivery.digest,
      grace: toDuration(settings.graceMs),
    };
  }

  start(waitMs: number, receiver: Receiver<RunTurnResponse>): Stream<RunTurnRequest, RunTurnResponse> {
    const value = create(BeginTurnRequestSchema, { ...this.#begin, wait: toDuration(waitMs) });
    const first = create(RunTurnRequestSchema, { step: { case: "begin", value } });
    return this.#core.transport.stream(TurnService.method.runTurn, first, receiver);
  }

  read({ news }: RunTurnResponse): Answer<WireTurn> {
    switch (news.case) {
      case "queued":
        return { queued: news.value.position };
      case "granted":
        return news.value.turn && { granted: news.value.turn };
      case "duplicate":
        return { instead: this.#duplicate(news.value) };
      case "gaveUp":
        return { instead: gaveUp(news.value) };
      case "inProgress":
        return { instead: inProgress(news.value) };
      case "busy":
        return { instead: busy(news.value) };
      default:
        return undefined;
    }
  }

  accept(turn: WireTurn, stream: Stream<RunTurnRequest, RunTurnResponse>, sent: number): Turn {
    const { codec } = this.#settings;
    const grant = { turn, sent, stream, terms: this.#settings };
    return new Turn(this.#core, this.#scope, codec, this.#delivery.ttlMs, grant);
  }

  abandon(stream: Stream<RunTurnRequest, RunTurnResponse>): void {
    // A turn that is granted just now fails at once by the half-close, and else after its grace.
    const timer = setTimeout(() => stream.cancel(), abandonMs).unref();
    stream.receiver = { message: () => {}, end: () => clearTimeout(timer) };
    stream.halfClose();
  }

  queued(position: number): void {
    this.#core.notify((hooks) => hooks.onQueued?.(position));
  }

  /** The outcome of an event that has been handled, also if its result cannot be decoded. */
  #duplicate({ event, result, resultType }: TurnDuplicate): Duplicate {
    const outcome = event && outcomeName(event.outcome);
    const detail = event?.detail ?? "";
    if (outcome !== "SUCCEEDED") {
      return new Duplicate(undefined, outcome === "REJECTED" ? outcome : undefined, detail);
    }
    const decoded = decodeOrError(this.#settings.codec, result, resultType);
    return "error" in decoded
      ? new Duplicate(undefined, outcome, detail, { cause: decoded.error })
      : new Duplicate(decoded.result, outcome, detail);
  }
}

/** HoldSessionLease, from its request to its grant. */
export class LeaseRequest
  implements Request<HoldSessionLeaseRequest, HoldSessionLeaseResponse, SessionLease, Lease>
{
  readonly #core: Core;
  readonly #settings: Settings;
  readonly #scope: Cancellation;
  readonly #key;
  readonly #ttlMs: number;
  readonly #requestId = randomUUID();

  constructor(core: Core, consumer: string, session: Session, settings: Settings, scope: Cancellation) {
    this.#core = core;
    this.#settings = settings;
    this.#scope = scope;
    this.#key = session.toKey(consumer);
    this.#ttlMs = cutLease(settings.ttlMs);
  }

  start(waitMs: number, receiver: Receiver<HoldSessionLeaseResponse>) {
    const { epic, labels } = this.#settings;
    const first = create(HoldSessionLeaseRequestSchema, {
      session: this.#key,
      holder: this.#core.holder,
      requestId: this.#requestId,
      ttl: toDuration(this.#ttlMs),
      wait: toDuration(waitMs),
      epicId: epic,
      labels: { ...labels },
    });
    return this.#core.transport.stream(IdempotencyService.method.holdSessionLease, first, receiver);
  }

  read({ news }: HoldSessionLeaseResponse): Answer<SessionLease> {
    switch (news.case) {
      case "queued":
        return { queued: news.value.position };
      case "granted":
        return news.value.lease && { granted: news.value.lease };
      case "held":
        return { instead: busy(news.value) };
      default:
        return undefined;
    }
  }

  accept(
    lease: SessionLease,
    stream: Stream<HoldSessionLeaseRequest, HoldSessionLeaseResponse>,
    sent: number,
  ) {
    const grant = { lease, key: this.#key, sent, stream, ttlMs: this.#ttlMs };
    return new Lease(this.#core, this.#scope, grant);
  }

  abandon(stream: Stream<HoldSessionLeaseRequest, HoldSessionLeaseResponse>): void {
    stream.cancel();
  }

  queued(position: number): void {
    this.#core.notify((hooks) => hooks.onQueued?.(position));
  }
}

function gaveUp({ event }: TurnGaveUp): GaveUp {
  return new GaveUp(event?.attempt ?? 0, event?.detail ?? "");
}

function inProgress({ holder, attempt, retryAfter }: TurnInProgress): InProgress {
  return new InProgress(holder, attempt, fromDuration(retryAfter));
}

function busy({ holder, queueLength, retryAfter }: LeaseHeld): Busy {
  return new Busy(holder, queueLength, fromDuration(retryAfter));
}
