import { randomUUID } from "node:crypto";
import {
  create,
  type DescMessage,
  type DescMethodUnary,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { CallError } from "./call-error.js";
import type { Codec } from "./codec.js";
import type { Core } from "./core.js";
import { type Delivery, type DeliveryInit, toDelivery } from "./delivery.js";
import { Internal, type OncegateError } from "./errors.js";
import { EventState } from "./gen/oncegate/v1/event_pb.js";
import {
  BatchMarkProcessedRequestSchema,
  type BatchMarkProcessedResult,
  IdempotencyService,
  IsProcessedRequestSchema,
  type MarkProcessedRequest,
  MarkProcessedRequestSchema,
  type MarkProcessedResponse,
} from "./gen/oncegate/v1/idempotency_service_pb.js";
import { patientCall } from "./retry.js";
import { toDuration } from "./time.js";
import { outcomeName } from "./wire.js";

/** The limits of one request. */
const mostMarks = 1000;
const mostBytes = 1024 * 1024;

/** What one item adds to a request beside itself: its tag and its length. */
const itemOverhead = 8;

/** One delivery of `markAll`, or of `mark`. */
export interface MarkItem<D extends DeliveryInit = DeliveryInit> {
  /** True for exactly one caller: it must handle the event. */
  readonly first: boolean;
  /** The delivery as it was given. */
  readonly delivery: D;
  /** The event's id as stored; empty with an error. */
  readonly eventId: string;
  /** Why this delivery alone could not be marked. */
  readonly error: OncegateError | undefined;
}

/** The state of an event. */
export interface Seen {
  readonly state: "NOT_SEEN" | "IN_PROGRESS" | "PROCESSED";
  readonly eventId: string;
  /** How it was settled; undefined for a mark, and unless it is processed. */
  readonly outcome: ReturnType<typeof outcomeName>;
  readonly attempt: number;
  readonly holder: string;
  readonly detail: string;
  /** Only with `includeResult`. */
  readonly result: unknown;
}

/** Marks and looks at events, for one gate. */
export class Marks {
  readonly #core: Core;
  readonly #consumer: string;
  readonly #patienceMs: number;

  constructor(core: Core, consumer: string, patienceMs: number) {
    this.#core = core;
    this.#consumer = consumer;
    this.#patienceMs = patienceMs;
  }

  async mark<D extends DeliveryInit>(delivery: D): Promise<MarkItem<D>> {
    const request = this.#request(toDelivery(delivery));
    return toItem(delivery, await this.#call(IdempotencyService.method.markProcessed, request));
  }

  /** In order, in requests that are as large as the server allows. */
  async *markAll<D extends DeliveryInit>(
    deliveries: Iterable<D> | AsyncIterable<D>,
  ): AsyncGenerator<MarkItem<D>> {
    let batch: { delivery: D; request: MarkProcessedRequest }[] = [];
    let bytes = 0;
    for await (const delivery of deliveries) {
      const request = this.#request(toDelivery(delivery));
      const size = toBinary(MarkProcessedRequestSchema, request).length + itemOverhead;
      if (batch.length === mostMarks || (bytes + size > mostBytes && batch.length > 0)) {
        yield* await this.#markBatch(batch);
        batch = [];
        bytes = 0;
      }
      batch.push({ delivery, request });
      bytes += size;
    }
    if (batch.length > 0) yield* await this.#markBatch(batch);
  }

  async seen(delivery: Delivery, includeResult: boolean, codec: Codec): Promise<Seen> {
    const request = create(IsProcessedRequestSchema, {
      event: delivery.toEventKey(this.#consumer),
      includeResult,
    });
    const { state, event, result, resultType } = await this.#call(
      IdempotencyService.method.isProcessed,
      request,
    );
    return {
      state: stateName(state),
      eventId: event?.eventId ?? "",
      outcome: event && outcomeName(event.outcome),
      attempt: event?.attempt ?? 0,
      holder: event?.holder ?? "",
      detail: event?.detail ?? "",
      result: includeResult ? codec.decode(result, resultType) : undefined,
    };
  }

  async #markBatch<D extends DeliveryInit>(
    batch: readonly { delivery: D; request: MarkProcessedRequest }[],
  ): Promise<MarkItem<D>[]> {
    const requests = batch.map(({ request }) => request);
    const request = create(BatchMarkProcessedRequestSchema, { requests });
    const { results } = await this.#call(IdempotencyService.method.batchMarkProcessed, request);
    return batch.map(({ delivery }, index) => readResult(delivery, results[index]));
  }

  #call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
  ) {
    return patientCall(this.#core, method, request, this.#patienceMs);
  }

  #request(delivery: Delivery): MarkProcessedRequest {
    const ttl = delivery.ttlMs === undefined ? {} : { ttl: toDuration(delivery.ttlMs) };
    return create(MarkProcessedRequestSchema, {
      event: delivery.toEventKey(this.#consumer),
      requestId: randomUUID(),
      payloadDigest: delivery.digest,
      ...ttl,
    });
  }
}

function toItem<D extends DeliveryInit>(delivery: D, { first, event }: MarkProcessedResponse): MarkItem<D> {
  return { first, delivery, eventId: event?.eventId ?? "", error: undefined };
}

function readResult<D extends DeliveryInit>(
  delivery: D,
  result: BatchMarkProcessedResult | undefined,
): MarkItem<D> {
  switch (result?.result.case) {
    case "response":
      return toItem(delivery, result.result.value);
    case "error": {
      const { code, message, reason, field } = result.result.value;
      const error = new CallError(code, message, { reason, field: field.replace(/^requests\[\d+\]\./, "") });
      return { first: false, delivery, eventId: "", error: error.toError() };
    }
    default:
      return { first: false, delivery, eventId: "", error: new Internal("the server left an item out") };
  }
}

function stateName(state: EventState): Seen["state"] {
  switch (state) {
    case EventState.IN_PROGRESS:
      return "IN_PROGRESS";
    case EventState.PROCESSED:
      return "PROCESSED";
    default:
      return "NOT_SEEN";
  }
}
