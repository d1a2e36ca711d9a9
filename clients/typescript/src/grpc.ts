import {
  type DescMessage,
  type DescMethod,
  type DescMethodBiDiStreaming,
  type DescMethodServerStreaming,
  type DescMethodUnary,
  fromBinary,
  type MessageShape,
  toBinary,
} from "@bufbuild/protobuf";
import * as grpc from "@grpc/grpc-js";
import { CallError, Code, readDetails } from "./call-error.js";
import { describe } from "./describe.js";
import { Invalid, Unavailable } from "./errors.js";
import { IdempotencyService } from "./gen/oncegate/v1/idempotency_service_pb.js";
import { TurnService } from "./gen/oncegate/v1/turn_service_pb.js";
import type { CallOptions, Receiver, Stream, Transport } from "./transport.js";

/** Below the server's limit of 1,024 calls a connection. */
const streamsPerChannel = 900;

/** Each unary call is repeatable, by its request id, turn id or lease id. */
const unaryRetries = {
  maxAttempts: 5,
  initialBackoff: "0.1s",
  maxBackoff: "2s",
  backoffMultiplier: 2,
  retryableStatusCodes: ["UNAVAILABLE"],
};

const unaryNames = [IdempotencyService, TurnService].flatMap((service) =>
  service.methods
    .filter((method) => method.methodKind === "unary")
    .map((method) => ({ service: service.typeName, method: method.name })),
);

function channelOptions(server: string): grpc.ChannelOptions {
  return {
    "grpc.keepalive_time_ms": 20_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.initial_reconnect_backoff_ms": 100,
    "grpc.max_reconnect_backoff_ms": 2000,
    // grpc-js shares connections of equal channels in a process: streams and calls would not be apart.
    "grpc.use_local_subchannel_pool": 1,
    "grpc.service_config": JSON.stringify({
      loadBalancingConfig: [server.startsWith("dns:") ? { round_robin: {} } : { pick_first: {} }],
      methodConfig: [{ name: unaryNames, retryPolicy: unaryRetries }],
    }),
  };
}

interface StreamChannel {
  readonly client: grpc.Client;
  live: number;
}

/** The transport of Node: grpc-js, with channels that are made on first use. */
export class GrpcTransport implements Transport {
  readonly #server: string;
  #calls: grpc.Client | undefined;
  readonly #streams: StreamChannel[] = [];
  #closed = false;

  /** @param server `HOST:PORT`, `unix:/path` or a target of gRPC such as `dns:///name:port`. */
  constructor(server: string) {
    this.#server = server;
  }

  #refuseIfClosed(): void {
    if (this.#closed) throw new Unavailable("the gate is closed", undefined);
  }

  #client(): grpc.Client {
    return new grpc.Client(this.#server, grpc.credentials.createInsecure(), channelOptions(this.#server));
  }

  #callClient(): grpc.Client {
    this.#calls ??= this.#client();
    return this.#calls;
  }

  #streamChannel(): StreamChannel {
    let channel = this.#streams.find(({ live }) => live < streamsPerChannel);
    if (!channel) {
      channel = { client: this.#client(), live: 0 };
      this.#streams.push(channel);
    }
    return channel;
  }

  unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    { deadlineMs, signal, over }: CallOptions,
  ): Promise<MessageShape<O>> {
    return new Promise((resolve, reject) => {
      this.#refuseIfClosed();
      signal?.throwIfAborted();
      const data = encode(method.input, request);
      const client = over === "streams" ? this.#streamChannel().client : this.#callClient();
      const abort = () => call.cancel();
      const call = client.makeUnaryRequest(
        path(method),
        unchanged,
        (data: Buffer) => fromBinary(method.output, data),
        data,
        new grpc.Metadata({ waitForReady: true }),
        { deadline: Date.now() + deadlineMs },
        (error, response) => {
          signal?.removeEventListener("abort", abort);
          if (response) resolve(response);
          else if (signal?.aborted) reject(signal.reason);
          else reject(error ? toCallError(error) : new CallError(Code.UNKNOWN, "no answer"));
        },
      );
      signal?.addEventListener("abort", abort, { once: true });
    });
  }

  stream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodBiDiStreaming<I, O> | DescMethodServerStreaming<I, O>,
    first: MessageShape<I>,
    receiver: Receiver<MessageShape<O>>,
  ): Stream<MessageShape<I>, MessageShape<O>> {
    this.#refuseIfClosed();
    const data = encode(method.input, first);
    const channel = this.#streamChannel();
    const deserialize = (data: Buffer) => fromBinary(method.output, data);
    channel.live += 1;
    const call =
      method.methodKind === "bidi_streaming"
        ? channel.client.makeBidiStreamRequest(path(method), unchanged, deserialize)
        : channel.client.makeServerStreamRequest(path(method), unchanged, deserialize, data);
    const ended = () => {
      channel.live -= 1;
    };
    const stream = new GrpcStream(
      call,
      (message: MessageShape<I>) => encode(method.input, message),
      receiver,
      ended,
    );
    if (method.methodKind === "bidi_streaming") stream.write(data);
    return stream;
  }

  close(): void {
    this.#closed = true;
    this.#calls?.close();
    for (const { client } of this.#streams) client.close();
  }
}

type Call<O> = grpc.ClientDuplexStream<Buffer, O> | grpc.ClientReadableStream<O>;

class GrpcStream<I, O> implements Stream<I, O> {
  readonly #call: Call<O>;
  readonly #encode: (message: I) => Buffer;
  receiver: Receiver<O>;
  #cancelled = false;

  constructor(call: Call<O>, encode: (message: I) => Buffer, receiver: Receiver<O>, ended: () => void) {
    this.#call = call;
    this.#encode = encode;
    this.receiver = receiver;
    call.on("data", (message: O) => {
      if (!this.#cancelled) this.receiver.message(message);
    });
    // The status follows every error, and says the same.
    call.on("error", () => {});
    call.on("status", (status: grpc.StatusObject) => {
      ended();
      if (!this.#cancelled) {
        this.receiver.end(status.code === grpc.status.OK ? undefined : toCallError(status));
      }
    });
  }

  send(message: I): void {
    this.write(this.#encode(message));
  }

  write(data: Buffer): void {
    if ("write" in this.#call && this.#call.writable) this.#call.write(data);
  }

  halfClose(): void {
    if ("end" in this.#call) this.#call.end();
  }

  cancel(): void {
    this.#cancelled = true;
    this.#call.cancel();
  }
}

function path(method: DescMethod): string {
  return `/${method.parent.typeName}/${method.name}`;
}

/** Messages are encoded before a call begins: a mistake of the caller must not look like an outage. */
function encode<D extends DescMessage>(schema: D, message: MessageShape<D>): Buffer {
  try {
    const data = toBinary(schema, message);
    return Buffer.from(data.buffer, data.byteOffset, data.byteLength);
  } catch (error) {
    throw new Invalid("", `a value of the request is invalid: ${describe(error)}`, { cause: error });
  }
}

const unchanged = (data: Buffer) => data;

function toCallError(status: grpc.StatusObject): CallError {
  const [trailer] = status.metadata.get("grpc-status-details-bin");
  return new CallError(status.code, status.details, readDetails(trailer as Buffer | undefined));
}
