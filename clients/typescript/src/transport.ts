import type {
  DescMessage,
  DescMethodBiDiStreaming,
  DescMethodServerStreaming,
  DescMethodUnary,
  MessageShape,
} from "@bufbuild/protobuf";
import type { CallError } from "./call-error.js";

/** What the library needs of the wire. Errors are `CallError`s. */
export interface Transport {
  unary<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageShape<I>,
    options: CallOptions,
  ): Promise<MessageShape<O>>;

  /** Opens a stream and sends its first message. */
  stream<I extends DescMessage, O extends DescMessage>(
    method: DescMethodBiDiStreaming<I, O> | DescMethodServerStreaming<I, O>,
    first: MessageShape<I>,
    receiver: Receiver<MessageShape<O>>,
  ): Stream<MessageShape<I>, MessageShape<O>>;

  /** Breaks what is open. */
  close(): void;
}

export interface CallOptions {
  /** How long the call may take, waiting for the connection included. */
  readonly deadlineMs: number;
  readonly signal?: AbortSignal | undefined;
  /** The connection: that of the calls, or one of those that streams use. Default: calls. */
  readonly over?: "calls" | "streams";
}

export interface Receiver<O> {
  message(message: O): void;
  /** Called once; never after `cancel`. Without an error the server closed the stream in good order. */
  end(error: CallError | undefined): void;
}

export interface Stream<I, O> {
  /** Takes over from the receiver that the stream was opened with. */
  receiver: Receiver<O>;
  send(message: I): void;
  halfClose(): void;
  cancel(): void;
}
