/** Why a turn or a lease ended without its holder. */
export type LostReason =
  /** The claim lapsed, or the event was finished otherwise. */
  | "CLAIM_LOST"
  /** The lease ended, or an operator took it away. */
  | "LEASE_LOST"
  /** The server's maximum lifetime, renewals included. */
  | "MAX_HOLD"
  /** The server does not accept the caller any more: its token or certificate, its role or its team. */
  | "DENIED"
  /** The trusted end passed without news from the server. */
  | "EXPIRED"
  /** The gate was closed, its drain was over, or the client of a webhook has gone. */
  | "CLOSED"
  /** It was not lost: its holder has ended it. Only from `check()`. */
  | "ENDED";

/** The base of every error of this library. `cause` has the gRPC status. */
export class OncegateError extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** There is no turn. Scopes raise it; `gate.turn` returns it as an outcome. */
export abstract class NotGranted extends OncegateError {
  abstract readonly kind: "duplicate" | "gaveUp" | "inProgress" | "busy" | "dropped";
}

/** The event has been handled. Acknowledge it. */
export class Duplicate<T = unknown> extends NotGranted {
  readonly kind = "duplicate";
  constructor(
    /** What the turn that handled it returned; undefined for a mark, and if the codec cannot decode it. */
    readonly result: T | undefined,
    /** Undefined for a mark. */
    readonly outcome: "SUCCEEDED" | "REJECTED" | undefined,
    /** Why the event was rejected. */
    readonly detail: string,
    options?: ErrorOptions,
  ) {
    super("the event has been handled; acknowledge it", options);
  }

  /** The result. Throws this error if it cannot be decoded: then the codec's error is the cause. */
  replay(): T {
    if ("cause" in this) throw this;
    return this.result as T;
  }
}

/** All attempts were used and none succeeded: nobody has handled the event. Acknowledge it. */
export class GaveUp extends NotGranted {
  readonly kind = "gaveUp";
  constructor(
    readonly attempts: number,
    /** Why the latest attempt failed. */
    readonly detail: string,
  ) {
    super(`the event was given up after ${attempts} attempts; acknowledge it, and look at its last error`);
  }
}

/** Another run handles the event. Refuse the delivery if its sender redelivers. */
export class InProgress extends NotGranted {
  readonly kind = "inProgress";
  constructor(
    readonly holder: string,
    readonly attempt: number,
    readonly retryAfterMs: number,
  ) {
    super(`${holder} handles the event; refuse the delivery, so that its sender delivers it again`);
  }
}

/** Another holder has the session. Refuse the delivery if its sender redelivers, or wait longer. */
export class Busy extends NotGranted {
  readonly kind = "busy";
  constructor(
    readonly holder: string,
    readonly queueLength: number,
    readonly retryAfterMs: number,
  ) {
    super(`${holder || "another holder"} has the session; set \`wait\` to queue, or refuse the delivery`);
  }
}

/** The server is unavailable, and `onUnavailable` is "drop". */
export class Dropped extends NotGranted {
  readonly kind = "dropped";
  constructor(options?: ErrorOptions) {
    super("the server is unavailable and the delivery was dropped, as `onUnavailable` says", options);
  }
}

function lossMessage(what: string, reason: LostReason, danger: string): string {
  if (reason === "ENDED") return `the ${what} has ended; write before its end`;
  return `the ${what} was lost (${reason}); stop working, ${danger}`;
}

/** The turn is lost: another run may have the event. Stop working. */
export class TurnLost extends OncegateError {
  constructor(
    readonly reason: LostReason,
    /** What the handler returned all the same. It was not stored. */
    readonly value?: unknown,
    options?: ErrorOptions,
  ) {
    super(lossMessage("turn", reason, "another run may have the event"), options);
  }
}

/** The lease is lost: another holder may have the session. Stop working. */
export class LeaseLost extends OncegateError {
  constructor(
    readonly reason: LostReason,
    options?: ErrorOptions,
  ) {
    super(lossMessage("lease", reason, "another holder may have the session"), options);
  }
}

/** The end of a turn was sent and has no answer. Refuse the delivery: its redelivery finds out. */
export class OutcomeUnknown extends OncegateError {
  constructor(
    readonly turnId: string,
    readonly value: unknown,
    options?: ErrorOptions,
  ) {
    super(
      "the end of the turn has no answer; refuse the delivery, or ask `gate.seen` later whether it is handled",
      options,
    );
  }
}

/** The server is unavailable, or the gate is closed. Nothing is held, as far as is known. */
export class Unavailable extends OncegateError {
  constructor(
    message: string,
    readonly retryAfterMs: number | undefined,
    options?: ErrorOptions,
  ) {
    super(`${message}; refuse the delivery, or try again later`, options);
  }
}

/** A limit of the server is reached. Try again after `retryAfterMs`. */
export class Overloaded extends OncegateError {
  constructor(
    message: string,
    readonly retryAfterMs: number,
    options?: ErrorOptions,
  ) {
    super(`${message}; try again after ${Math.ceil(retryAfterMs)} ms`, options);
  }
}

/** The server does not know the caller, or the caller may not do this. A retry does not help. */
export class Denied extends OncegateError {
  constructor(
    /**
     * TEAM_DENIED, ROLE_DENIED or another reason of the contract; without one, UNAUTHENTICATED or
     * PERMISSION_DENIED.
     */
    readonly reason: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(
      `the server denies the call (${reason}): ${message}; check the gate's token or certificate, and its role and teams in the server's --auth file`,
      options,
    );
  }
}

/** An option of the gate, or the file that it names, cannot be used. Fix it. */
export class Misconfigured extends OncegateError {
  constructor(
    readonly option: string,
    problem: string,
  ) {
    super(`${option}: ${problem}; fix the options of the gate`);
  }
}

/** The session is bound to another epic. Use another session, or bind it anew. */
export class EpicMismatch extends OncegateError {
  constructor(
    readonly bound: string,
    options?: ErrorOptions,
  ) {
    super(
      `the session is bound to epic ${bound}; use another session, or bind it to the other epic`,
      options,
    );
  }
}

/** Two payloads share a name. Name them differently. */
export class PayloadMismatch extends OncegateError {
  constructor(options?: ErrorOptions) {
    super("the event is on record with another payload digest; name the two events differently", options);
  }
}

/** The caller breaks a rule. Fix the caller. */
export class Invalid extends OncegateError {
  constructor(
    /** The field or option; empty if none is at fault. */
    readonly field: string,
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** A fault of the server, or of this library. Report it with its message. */
export class Internal extends OncegateError {
  constructor(message: string, options?: ErrorOptions) {
    super(`${message}; report it`, options);
  }
}

/** Thrown by a handler: the event is refused for good and never delivered again. */
export class Reject extends Error {
  constructor(
    /** Shown to operators; at most 2 KiB. */
    readonly detail: string,
  ) {
    super(detail);
    this.name = "Reject";
  }
}
