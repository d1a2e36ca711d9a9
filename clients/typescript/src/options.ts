import { hostname } from "node:os";
import { basename } from "node:path";
import type { AccessOptions } from "./access.js";
import { type Codec, jsonCodec } from "./codec.js";
import { Invalid, type LostReason } from "./errors.js";
import { marginMs } from "./keeping.js";
import { type Time, toMs } from "./time.js";
import type { Turn } from "./turn.js";

/** What happens if the server is unavailable for longer than the patience. */
export type OnUnavailable =
  /** `Unavailable` is thrown. */
  | "raise"
  /** The handler runs without a turn: `turn.held` is false. */
  | "run"
  /** The outcome is `dropped`. */
  | "drop";

/** How a turn ended. */
export type EndOutcome = "SUCCEEDED" | "FAILED" | "REJECTED" | "UNKNOWN" | "LOST";

/** Callbacks for metrics and logs. What one throws is a warning of the process. */
export interface Hooks {
  /** A turn was granted or adopted. Neither this nor `onEnd` is called for a turn that is unguarded. */
  onBegin?(turn: Turn): void;
  /** The caller waits for the session; 1 is next. */
  onQueued?(position: number): void;
  onLost?(reason: LostReason): void;
  /** Not called for a turn that is detached: the gate that adopts it reports its end. */
  onEnd?(outcome: EndOutcome): void;
}

export interface GateOptions extends AccessOptions {
  /** The application: each consumer handles an event once. Default: all callers share. */
  readonly consumer?: string | undefined;
  /** Whether all consumers take turns in a conversation. Default: each has its own sessions. */
  readonly shareSessions?: boolean | undefined;
  /** This process, as others see it. Default: consumer or program, host and process id. */
  readonly holder?: string | undefined;
  /** How long a turn or lease stays with a holder that is not heard of; a lease at most 15 min. Default: 45 s. */
  readonly ttl?: Time | undefined;
  /** How long a turn stays with a holder whose connection broke. Default: half the TTL, at least 5 s. */
  readonly grace?: Time | undefined;
  /** How long a call is tried while the server is unavailable or overloaded. Default: 10 s. */
  readonly patience?: Time | undefined;
  /** Default: "raise". */
  readonly onUnavailable?: OnUnavailable | undefined;
  /** How many attempts an event has. Default: 5. */
  readonly maxAttempts?: number | undefined;
  /** How results are stored. Default: as JSON. */
  readonly codec?: Codec | undefined;
  readonly hooks?: Hooks | undefined;
}

export interface TurnOptions<T = unknown> {
  /** How long to queue while the session is busy. Default: not at all. */
  readonly wait?: Time | undefined;
  readonly ttl?: Time | undefined;
  readonly grace?: Time | undefined;
  readonly maxAttempts?: number | undefined;
  /** The work that the session is bound to, such as an issue. */
  readonly epic?: string | undefined;
  /** Shown to operators with the session. */
  readonly labels?: { readonly [name: string]: string } | undefined;
  readonly onUnavailable?: OnUnavailable | undefined;
  readonly patience?: Time | undefined;
  readonly codec?: Codec<T> | undefined;
  /** Cancels the waiting, and aborts `turn.signal`. */
  readonly signal?: AbortSignal | undefined;
}

export type LeaseOptions = Pick<TurnOptions, "wait" | "ttl" | "epic" | "labels" | "patience" | "signal">;

export interface AdoptOptions extends Pick<TurnOptions, "ttl" | "codec" | "patience" | "signal"> {
  /** How long the event stays handled. Default: 24 h. */
  readonly eventTtl?: Time | undefined;
}

/** Options with every default filled in, in milliseconds. */
export interface Settings {
  readonly ttlMs: number;
  readonly waitMs: number;
  readonly patienceMs: number;
  readonly maxAttempts: number;
  readonly onUnavailable: OnUnavailable;
  readonly epic: string;
  readonly labels: { readonly [name: string]: string };
  readonly codec: Codec;
}

/** What RunTurn needs beside them. */
export interface TurnSettings extends Settings {
  readonly graceMs: number;
}

export function toTurnSettings(gate: GateOptions, call: TurnOptions): TurnSettings {
  const settings = toSettings(gate, call);
  return { ...settings, graceMs: toGraceMs(call.grace ?? gate.grace, settings.ttlMs) };
}

/** The settings of one call: its own options, else the gate's, else the defaults. */
export function toSettings(gate: GateOptions, call: Omit<TurnOptions, "grace">): Settings {
  return {
    ttlMs: toMs(call.ttl ?? gate.ttl ?? "45s", "ttl"),
    waitMs: toMs(call.wait ?? 0, "wait"),
    patienceMs: toMs(call.patience ?? gate.patience ?? "10s", "patience"),
    maxAttempts: call.maxAttempts ?? gate.maxAttempts ?? 5,
    onUnavailable: call.onUnavailable ?? gate.onUnavailable ?? "raise",
    epic: call.epic ?? "",
    labels: call.labels ?? {},
    codec: call.codec ?? gate.codec ?? jsonCodec,
  };
}

function toGraceMs(grace: Time | undefined, ttlMs: number): number {
  if (grace === undefined) return Math.min(ttlMs, Math.max(5000, ttlMs / 2));
  const graceMs = Math.min(ttlMs, toMs(grace, "grace"));
  // The margin is taken off the grace: nothing would be left of it.
  const least = marginMs(ttlMs);
  if (graceMs <= least) throw new Invalid("grace", `grace: ${grace} is too short; use more than ${least} ms`);
  return graceMs;
}

export function defaultHolder(consumer: string): string {
  const name = consumer || basename(process.argv[1] ?? "node");
  return `${name}:${hostname()}:${process.pid}`;
}
