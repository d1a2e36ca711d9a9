import { randomUUID } from "node:crypto";
import {
  create,
  type DescMessage,
  type DescMethodUnary,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import { CallError } from "./call-error.js";
import { type Codec, decodeOrError } from "./codec.js";
import type { Core } from "./core.js";
import { type Delivery, type DeliveryInit, toDelivery } from "./delivery.js";
import { describe } from "./describe.js";
import { Internal, Invalid, OncegateError } from "./errors.js";
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
import { pause, withPauses } from "./pauses.js";
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
  /** Only with `includeResult`. Undefined if it cannot be decoded. */
  readonly result: unknown;
  /** Why the codec cannot decode the result. */
  readonly error: unknown;
}

/** A delivery of `markAll` that is to be sent, or that cannot be. */
type Prepared<D> = { readonly delivery: D; readonly size: number } & (
  | { readonly request: MarkProcessedRequest }
  | { readonly error: OncegateError }
);

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

  /**
   * In order, in requests that are as large as the server allows, or as the source has items ready.
   * A caller that breaks off loses the items that were marked with the latest one.
   */
  async *markAll<D extends DeliveryInit>(
    deliveries: Iterable<D> | AsyncIterable<D>,
  ): AsyncGenerator<MarkItem<D>> {
    let batch: Prepared<D>[] = [];
    let bytes = 0;
    for await (const delivery of withPauses(deliveries)) {
      const item = delivery === pause ? undefined : this.#prepare(delivery);
      const isFull = item && (batch.length === mostMarks || bytes + item.size > mostBytes);
      if (batch.length > 0 && (isFull || !item)) {
        yield* await this.#markBatch(batch);
        batch = [];
        bytes = 0;
      }
      if (!item) continue;
      batch.push(item);
      bytes += item.size;
    }
    if (batch.length > 0) yield* await this.#markBatch(batch);
  }

  #prepare<D extends DeliveryInit>(delivery: D): Prepared<D> {
    try {
      const request = this.#request(toDelivery(delivery));
      const size = toBinary(MarkProcessedRequestSchema, request).length + itemOverhead;
      if (size > mostBytes)
        throw new Invalid("", `the delivery is invalid: it has more than ${mostBytes} bytes`);
      return { delivery, size, request };
    } catch (error) {
      if (error instanceof OncegateError) return { delivery, size: 0, error };
      const invalid = new Invalid("", `the delivery is invalid: ${describe(error)}`, { cause: error });
      return { delivery, size: 0, error: invalid };
    }
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
      result: undefined,
      error: undefined,
      ...(includeResult && decodeOrError(codec, result, resultType)),
    };
  }

  async #markBatch<D extends DeliveryInit>(batch: readonly Prepared<D>[]): Promise<MarkItem<D>[]> {
    const requests = batch.flatMap((item) => ("request" in item ? [item.request] : []));
    const results = requests.length > 0 ? (await this.#callBatch(requests)).results.values() : [].values();
    return batch.map((item) =>
      "request" in item
        ? readResult(item.delivery, results.next().value)
        : failedItem(item.delivery, item.error),
    );
  }

  #callBatch(requests: MarkProcessedRequest[]) {
    const request = create(BatchMarkProcessedRequestSchema, { requests });
    return this.#call(IdempotencyService.method.batchMarkProcessed, request);
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

function failedItem<D extends DeliveryInit>(delivery: D, error: OncegateError): MarkItem<D> {
  return { first: false, delivery, eventId: "", error };
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
      return failedItem(delivery, error.toError());
    }
    default:
      return failedItem(delivery, new Internal("the server left an item out"));
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
