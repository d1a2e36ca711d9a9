import { readFileSync } from "node:fs";
import { create, type DescMessage, fromBinary, type MessageShape, toBinary } from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import {
  IdempotencyService,
  MarkProcessedResponseSchema,
} from "../../src/gen/oncegate/v1/idempotency_service_pb.js";
import {
  FinishTurnResponseSchema,
  RenewTurnResponseSchema,
  RunTurnRequestSchema,
  RunTurnResponseSchema,
  TurnFinishedSchema,
  TurnGrantedSchema,
  TurnSchema,
  TurnService,
} from "../../src/gen/oncegate/v1/turn_service_pb.js";
import { toDuration } from "../../src/time.js";
import type { Pair } from "./certificates.js";

/** How calls end. */
export interface Refusal {
  readonly code: grpc.status;
  readonly details: string;
  readonly metadata?: grpc.Metadata;
}

export const unknown: Refusal = { code: grpc.status.UNAUTHENTICATED, details: "unknown caller" };

export interface PeerOptions {
  /** Undefined: no TLS. */
  readonly pair?: Pair;
  /** Client certificates of this CA are required. */
  readonly clientCa?: string;
}

type AnyCall = grpc.ServerUnaryCall<Buffer, Buffer> | grpc.ServerDuplexStream<Buffer, Buffer>;

/** A server of grpc-js that records who calls, and answers as a test says. */
export class Peer {
  /** What each call had in `authorization`. */
  readonly tokens: (string | undefined)[] = [];
  /** The client certificate of each call, in DER. */
  readonly certificates: (string | undefined)[] = [];
  refusal: Refusal | undefined;
  /** The callers that it does not know: values of `authorization`, and certificates in DER. */
  unknown: string[] = [];
  /** Runs before a call is looked at. */
  onCall: () => void = () => {};
  readonly #server = new grpc.Server();
  readonly #turns = new Set<grpc.ServerDuplexStream<Buffer, Buffer>>();
  readonly #scheme: string;
  #port = 0;

  private constructor(isTls: boolean) {
    this.#scheme = isTls ? "https" : "http";
    const { markProcessed } = IdempotencyService.method;
    const { finishTurn, renewTurn } = TurnService.method;
    this.#unary(markProcessed.parent.typeName, "MarkProcessed", MarkProcessedResponseSchema, {
      first: true,
      event: { eventId: "E1" },
    });
    this.#unary(renewTurn.parent.typeName, "RenewTurn", RenewTurnResponseSchema, { turn: granted() });
    this.#unary(finishTurn.parent.typeName, "FinishTurn", FinishTurnResponseSchema, {});
    this.#add(TurnService.typeName, "RunTurn", true, (call: grpc.ServerDuplexStream<Buffer, Buffer>) => {
      const refusal = this.#refusalOf(call);
      if (refusal) {
        end(call, refusal);
        return;
      }
      this.#turns.add(call);
      call.on("data", (data: Buffer) => {
        const { step } = fromBinary(RunTurnRequestSchema, data);
        const begun = { case: "granted", value: create(TurnGrantedSchema, { turn: granted() }) } as const;
        const ended = { case: "finished", value: create(TurnFinishedSchema) } as const;
        call.write(encoded(RunTurnResponseSchema, { news: step.case === "begin" ? begun : ended }));
        if (step.case === "end") call.end();
      });
      call.on("error", () => {});
    });
  }

  static async start({ pair, clientCa }: PeerOptions = {}): Promise<Peer> {
    const peer = new Peer(pair !== undefined);
    const credentials = pair
      ? grpc.ServerCredentials.createSsl(
          clientCa === undefined ? null : readFileSync(clientCa),
          [{ private_key: readFileSync(pair.key), cert_chain: readFileSync(pair.cert) }],
          clientCa !== undefined,
        )
      : grpc.ServerCredentials.createInsecure();
    peer.#port = await new Promise((resolve, reject) => {
      peer.#server.bindAsync("127.0.0.1:0", credentials, (error, port) =>
        error ? reject(error) : resolve(port),
      );
    });
    return peer;
  }

  get address(): string {
    return `${this.#scheme}://localhost:${this.#port}`;
  }

  /** Ends the streams of the turns that run. */
  endTurns(refusal: Refusal): void {
    for (const call of this.#turns) end(call, refusal);
    this.#turns.clear();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.forceShutdown();
  }

  #refusalOf(call: AnyCall): Refusal | undefined {
    this.onCall();
    const token = call.metadata.get("authorization")[0]?.toString();
    this.tokens.push(token);
    const certificate = call.getAuthContext().sslPeerCertificate?.raw?.toString("base64");
    this.certificates.push(certificate);
    const isKnown = !this.unknown.some((caller) => caller === token || caller === certificate);
    return isKnown ? this.refusal : unknown;
  }

  #unary<D extends DescMessage>(service: string, method: string, schema: D, answer: Init<D>): void {
    this.#add(
      service,
      method,
      false,
      (call: grpc.ServerUnaryCall<Buffer, Buffer>, done: grpc.sendUnaryData<Buffer>) => {
        const refusal = this.#refusalOf(call);
        if (refusal) done(refusal);
        else done(null, encoded(schema, answer));
      },
    );
  }

  #add(service: string, method: string, streams: boolean, handle: grpc.UntypedHandleCall): void {
    const definition = {
      path: `/${service}/${method}`,
      requestStream: streams,
      responseStream: streams,
      requestSerialize: unchanged,
      requestDeserialize: unchanged,
      responseSerialize: unchanged,
      responseDeserialize: unchanged,
    };
    this.#server.addService({ [method]: definition }, { [method]: handle });
  }
}

type Init<D extends DescMessage> = Parameters<typeof create<D>>[1];

const unchanged = (data: Buffer) => data;

function encoded<D extends DescMessage>(schema: D, message: Init<D>): Buffer {
  const made: MessageShape<D> = create(schema, message);
  return Buffer.from(toBinary(schema, made));
}

function granted() {
  return create(TurnSchema, {
    turnId: "turn",
    attempt: 1,
    remaining: toDuration(30_000),
    elapsed: toDuration(0),
  });
}

function end(call: grpc.ServerDuplexStream<Buffer, Buffer>, refusal: Refusal): void {
  call.emit("error", { ...refusal, metadata: refusal.metadata ?? new grpc.Metadata() });
}
