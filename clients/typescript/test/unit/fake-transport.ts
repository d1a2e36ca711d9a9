/** A server in this process: grants everything, and answers calls as the test says. */

import { create, type DescMessage, type DescMethodUnary, type MessageShape } from "@bufbuild/protobuf";
import type { CallError } from "../../src/call-error.js";
import {
  HoldSessionLeaseResponseSchema,
  ReleaseSessionLeaseResponseSchema,
  RenewSessionLeaseResponseSchema,
} from "../../src/gen/oncegate/v1/idempotency_service_pb.js";
import {
  FinishTurnResponseSchema,
  RenewTurnResponseSchema,
  type RunTurnRequest,
  type RunTurnResponse,
  RunTurnResponseSchema,
} from "../../src/gen/oncegate/v1/turn_service_pb.js";
import { Gate, type GateOptions } from "../../src/index.js";
import { toDuration } from "../../src/time.js";
import type { CallOptions, Receiver, Stream, Transport } from "../../src/transport.js";

/** A unary call that was made. */
export interface Call extends CallOptions {
  readonly name: string;
  readonly request: unknown;
}

type Answer = (call: Call) => unknown;

export class FakeTransport implements Transport {
  readonly calls: Call[] = [];
  /** What streams were opened with. */
  readonly requests: unknown[] = [];
  /** The outcomes of the ends on streams, and their details. */
  readonly ends: string[] = [];
  readonly details: string[] = [];
  /** By the method's name; may throw or return a promise. */
  readonly answers: { [method: string]: Answer } = {};
  /** What the stream answers to an end; undefined: "finished". "silent": nothing. */
  endAnswer: CallError | "silent" | undefined;
  /** The receivers of the streams that are open. */
  readonly streams: Stream<unknown, unknown>[] = [];
  remainingMs = 30_000;
  /** How long a stream takes to answer its request. */
  answersAfterMs = 0;
  /** What RunTurn answers instead of a grant. */
  insteadOfGrant: RunTurnResponse["news"] | undefined;
  /** Called as soon as a request has its answer. */
  answered: () => void = () => {};

  called(name: string): Call[] {
    return this.calls.filter((call) => call.name === name);
  }

  async unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    options: CallOptions,
  ): Promise<MessageShape<O>> {
    const call = { name: method.name, request, ...options };
    this.calls.push(call);
    const answer = (await this.answers[method.name]?.(call)) ?? this.#answer(method.name);
    return (answer ?? create(method.output)) as MessageShape<O>;
  }

  #answer(name: string): unknown {
    const remaining = toDuration(this.remainingMs);
    switch (name) {
      case "RenewTurn":
        return create(RenewTurnResponseSchema, { turn: { turnId: "t", attempt: 1, remaining } });
      case "RenewSessionLease":
        return create(RenewSessionLeaseResponseSchema, { lease: { leaseId: "l", remaining } });
      case "ReleaseSessionLease":
        return create(ReleaseSessionLeaseResponseSchema, { released: true });
      case "FinishTurn":
        return create(FinishTurnResponseSchema);
      default:
        return undefined;
    }
  }

  stream<I, O>(method: { name: string }, first: I, receiver: Receiver<O>): Stream<I, O> {
    this.requests.push(first);
    const stream: Stream<I, O> = {
      receiver,
      send: (message) => this.#hear(message as RunTurnRequest, stream as Stream<unknown, unknown>),
      halfClose: () => {},
      cancel: () => {},
    };
    this.streams.push(stream as Stream<unknown, unknown>);
    const remaining = toDuration(this.remainingMs);
    const granted =
      method.name === "RunTurn"
        ? create(RunTurnResponseSchema, {
            news: this.insteadOfGrant ?? {
              case: "granted",
              value: { turn: { turnId: "t", attempt: 1, remaining } },
            },
          })
        : create(HoldSessionLeaseResponseSchema, {
            news: { case: "granted", value: { lease: { leaseId: "l", remaining } } },
          });
    const answer = () => {
      stream.receiver.message(granted as O);
      this.answered();
    };
    if (this.answersAfterMs > 0) setTimeout(answer, this.answersAfterMs);
    else queueMicrotask(answer);
    return stream;
  }

  #hear({ step }: RunTurnRequest, stream: Stream<unknown, unknown>): void {
    if (step.case !== "end" || this.endAnswer === "silent") return;
    this.ends.push(String(step.value.outcome));
    this.details.push(step.value.detail);
    const answer = this.endAnswer;
    const finished = create(RunTurnResponseSchema, { news: { case: "finished", value: {} } });
    queueMicrotask(() => (answer ? stream.receiver.end(answer) : stream.receiver.message(finished)));
  }

  close(): void {}
}

export function makeGate(options: GateOptions = {}) {
  const transport = new FakeTransport();
  return { transport, gate: new Gate(options, transport) };
}

/** A promise that a test resolves. */
export function deferred() {
  let resolve!: (value: undefined) => void;
  const promise = new Promise<undefined>((settle) => {
    resolve = settle;
  });
  return { promise, resolve };
}
