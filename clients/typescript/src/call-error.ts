import { fromBinary } from "@bufbuild/protobuf";
import {
  Denied,
  EpicMismatch,
  Internal,
  Invalid,
  type LostReason,
  type OncegateError,
  Overloaded,
  PayloadMismatch,
  TurnLost,
  Unavailable,
} from "./errors.js";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  RetryInfoSchema,
  StatusSchema,
} from "./gen/oncegate/client/status_pb.js";
import { fromDuration } from "./time.js";

/** The codes of gRPC that this library looks at. */
export const Code = {
  CANCELLED: 1,
  UNKNOWN: 2,
  INVALID_ARGUMENT: 3,
  DEADLINE_EXCEEDED: 4,
  PERMISSION_DENIED: 7,
  RESOURCE_EXHAUSTED: 8,
  FAILED_PRECONDITION: 9,
  OUT_OF_RANGE: 11,
  INTERNAL: 13,
  UNAVAILABLE: 14,
  UNAUTHENTICATED: 16,
} as const;

/** The gRPC status of a call that failed. */
export class CallError extends Error {
  /** The value of `Reason`; empty if the server did not send the status. */
  readonly reason: string;
  readonly info: { readonly [key: string]: string };
  readonly retryAfterMs: number | undefined;
  /** The invalid field; empty if none is. */
  readonly field: string;
  /** Whether there is a newer token or client certificate: it is worth a try at once. */
  readonly isOutdated: boolean;

  constructor(
    readonly code: number,
    message: string,
    details: Details = {},
  ) {
    super(message);
    this.name = "CallError";
    this.reason = details.reason ?? "";
    this.info = details.info ?? {};
    this.retryAfterMs = details.retryAfterMs;
    this.field = details.field ?? "";
    this.isOutdated = details.isOutdated ?? false;
  }

  /** Why the turn or lease of the call is lost, if the server says so. */
  get lost(): LostReason | undefined {
    const { reason } = this;
    return reason === "CLAIM_LOST" || reason === "LEASE_LOST" || reason === "MAX_HOLD" ? reason : undefined;
  }

  /** Whether the server does not accept the caller. */
  get isDenied(): boolean {
    return this.code === Code.UNAUTHENTICATED || this.code === Code.PERMISSION_DENIED;
  }

  /** Why what is held is lost by this, if it is. */
  get loss(): LostReason | undefined {
    return this.lost ?? (this.isDenied ? "DENIED" : undefined);
  }

  /** Whether a limit is reached that a later call may find free. */
  get isOverload(): boolean {
    return this.code === Code.RESOURCE_EXHAUSTED && this.retryAfterMs !== undefined;
  }

  /** Whether the same request may succeed later: the server or the way to it failed. */
  get isTransient(): boolean {
    switch (this.code) {
      case Code.UNAVAILABLE:
      case Code.DEADLINE_EXCEEDED:
        return true;
      // A broken connection has many statuses, and none of them has a reason.
      case Code.CANCELLED:
      case Code.UNKNOWN:
      case Code.INTERNAL:
        return this.reason === "";
      default:
        return this.reason === "STREAM_REPLACED";
    }
  }

  /** Whether the same request is worth another try. */
  get isRetryable(): boolean {
    return this.isTransient || this.isOverload;
  }

  /** Whether the server ended a stream because it shuts down: what was granted stays valid. */
  get isDrain(): boolean {
    return this.reason === "DRAINING";
  }

  /** What the author of a bot sees of it. */
  toError(): OncegateError {
    const cause = { cause: this };
    if (this.lost) return new TurnLost(this.lost, undefined, cause);
    if (this.isTransient)
      return new Unavailable(`oncegate is unavailable: ${this.message}`, this.retryAfterMs, cause);
    switch (this.code) {
      case Code.UNAUTHENTICATED:
        return new Denied(this.reason || "UNAUTHENTICATED", this.message, cause);
      case Code.PERMISSION_DENIED:
        return new Denied(this.reason || "PERMISSION_DENIED", this.message, cause);
      case Code.RESOURCE_EXHAUSTED:
        if (this.retryAfterMs !== undefined) return new Overloaded(this.message, this.retryAfterMs, cause);
        return new Invalid(this.field, this.message, cause);
      case Code.INVALID_ARGUMENT:
      case Code.OUT_OF_RANGE:
        return new Invalid(this.field, this.message, cause);
      case Code.FAILED_PRECONDITION:
        if (this.reason === "EPIC_MISMATCH") return new EpicMismatch(this.info.epic_id ?? "", cause);
        if (this.reason === "PAYLOAD_MISMATCH") return new PayloadMismatch(cause);
    }
    return new Internal(this.message, cause);
  }
}

export interface Details {
  reason?: string;
  info?: { [key: string]: string };
  retryAfterMs?: number;
  field?: string;
  isOutdated?: boolean;
}

/** Reads the trailer `grpc-status-details-bin`. One that is broken, such as a proxy's, says nothing. */
export function readDetails(trailer: Uint8Array | undefined): Details {
  try {
    return trailer ? parseDetails(trailer) : {};
  } catch {
    return {};
  }
}

function parseDetails(trailer: Uint8Array): Details {
  const details: Details = {};
  for (const any of fromBinary(StatusSchema, trailer).details) {
    // The messages of status.proto carry other names than Google's.
    const name = any.typeUrl.slice(any.typeUrl.lastIndexOf(".") + 1);
    if (name === "ErrorInfo") {
      const info = fromBinary(ErrorInfoSchema, any.value);
      if (info.domain === "oncegate") Object.assign(details, { reason: info.reason, info: info.metadata });
    } else if (name === "RetryInfo") {
      details.retryAfterMs = fromDuration(fromBinary(RetryInfoSchema, any.value).retryDelay);
    } else if (name === "BadRequest") {
      details.field = fromBinary(BadRequestSchema, any.value).fieldViolations[0]?.field ?? "";
    }
  }
  return details;
}
