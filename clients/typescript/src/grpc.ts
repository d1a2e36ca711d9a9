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
import type { Access, Credentials } from "./access.js";
import { CallError, Code, readDetails } from "./call-error.js";
import { Channels } from "./channels.js";
import { describe } from "./describe.js";
import { Invalid, Unavailable } from "./errors.js";
import type { CallOptions, Receiver, Stream, Transport } from "./transport.js";

/** The transport of Node: grpc-js. */
export class GrpcTransport implements Transport {
  readonly #access: Access;
  readonly #channels: Channels;
  #closed = false;

  constructor(access: Access) {
    this.#access = access;
    this.#channels = new Channels(access);
  }

  #refuseIfClosed(): void {
    if (this.#closed) throw new Unavailable("the gate is closed", undefined);
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
      // Over TLS a call must not wait for a connection: only a call that fails says why there is none.
      const credentials = this.#access.credentials(performance.now());
      const metadata = metadataOf(credentials, { waitForReady: !this.#access.isTls });
      const { certificates } = credentials;
      const { client, done } =
        over === "streams" ? this.#channels.forStream(certificates) : this.#channels.forCall(certificates);
      const abort = () => call.cancel();
      const call = client.makeUnaryRequest(
        path(method),
        unchanged,
        (data: Buffer) => fromBinary(method.output, data),
        data,
        metadata,
        { deadline: Date.now() + deadlineMs },
        (error, response) => {
          done();
          signal?.removeEventListener("abort", abort);
          if (response) resolve(response);
          else if (signal?.aborted) reject(signal.reason);
          else reject(error ? toCallError(error, credentials) : new CallError(Code.UNKNOWN, "no answer"));
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
    const credentials = this.#access.credentials(performance.now());
    const metadata = metadataOf(credentials);
    const { client, done } = this.#channels.forStream(credentials.certificates);
    const deserialize = (data: Buffer) => fromBinary(method.output, data);
    const call =
      method.methodKind === "bidi_streaming"
        ? client.makeBidiStreamRequest(path(method), unchanged, deserialize, metadata)
        : client.makeServerStreamRequest(path(method), unchanged, deserialize, data, metadata);
    const stream = new GrpcStream(
      call,
      (message: MessageShape<I>) => encode(method.input, message),
      receiver,
      { ended: done, credentials },
    );
    if (method.methodKind === "bidi_streaming") stream.write(data);
    return stream;
  }

  close(): void {
    this.#closed = true;
    this.#channels.close();
  }
}

type Call<O> = grpc.ClientDuplexStream<Buffer, O> | grpc.ClientReadableStream<O>;

class GrpcStream<I, O> implements Stream<I, O> {
  readonly #call: Call<O>;
  readonly #encode: (message: I) => Buffer;
  receiver: Receiver<O>;
  #cancelled = false;

  constructor(
    call: Call<O>,
    encode: (message: I) => Buffer,
    receiver: Receiver<O>,
    owner: { ended(): void; readonly credentials: Credentials },
  ) {
    this.#call = call;
    this.#encode = encode;
    this.receiver = receiver;
    call.on("data", (message: O) => {
      if (!this.#cancelled) this.receiver.message(message);
    });
    // The status follows every error, and says the same.
    call.on("error", () => {});
    call.on("status", (status: grpc.StatusObject) => {
      owner.ended();
      if (this.#cancelled) return;
      const isOk = status.code === grpc.status.OK;
      this.receiver.end(isOk ? undefined : toCallError(status, owner.credentials));
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

function metadataOf({ authorization }: Credentials, options: grpc.MetadataOptions = {}): grpc.Metadata {
  const metadata = new grpc.Metadata(options);
  if (authorization !== undefined) metadata.set("authorization", authorization);
  return metadata;
}

function toCallError(status: grpc.StatusObject, credentials: Credentials): CallError {
  const [trailer] = status.metadata.get("grpc-status-details-bin");
  const error = new CallError(status.code, explain(status), readDetails(trailer as Buffer | undefined));
  return credentials.judge(error, performance.now());
}

/** The alerts of TLS by which the server refuses a client's certificate, or misses one: RFC 8446, section 6. */
const certificateAlerts = new Set([42, 43, 44, 45, 46, 48, 49, 116]);

/** What Node says of certificates; otherwise its messages are those of an outage. */
function explain({ code, details }: grpc.StatusObject): string {
  if (code !== grpc.status.UNAVAILABLE) return details;
  // An alert comes from the server, whatever its name says of certificates.
  const alert = /\bSSL alert number (\d+)/.exec(details)?.[1];
  if (alert !== undefined) {
    if (!certificateAlerts.has(Number(alert))) return details;
    return `it does not accept the client certificate of tlsCert, or needs one (${details})`;
  }
  if (!/Last error: .*certificate/.test(details)) return details;
  return `its certificate is not from a CA of tlsCa, not valid for its name, or expired (${details})`;
}
