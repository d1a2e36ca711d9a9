import { TurnOutcome } from "./gen/oncegate/v1/event_pb.js";
import type { SessionLease } from "./gen/oncegate/v1/session_pb.js";
import type { Turn as WireTurn } from "./gen/oncegate/v1/turn_service_pb.js";
import type { Measured } from "./keeping.js";
import { fromDuration } from "./time.js";

interface Part {
  elapsed?: WireTurn["elapsed"];
  remaining?: WireTurn["remaining"];
}

function endsAfterMs({ elapsed, remaining }: Part): number {
  return fromDuration(elapsed) + fromDuration(remaining);
}

export function measureLease(lease: SessionLease | undefined): Measured {
  return { elapsedMs: fromDuration(lease?.elapsed), endsAfterMs: lease ? endsAfterMs(lease) : 0 };
}

/** The longest lease that the server grants. */
const longestLeaseMs = 15 * 60_000;

/** The TTL of a lease: the server refuses a longer one. */
export function cutLease(ttlMs: number): number {
  return Math.min(ttlMs, longestLeaseMs);
}

/** A turn ends as soon as its claim or its lease does. */
export function measureTurn(turn: WireTurn | undefined): Measured {
  if (!turn) return { elapsedMs: 0, endsAfterMs: 0 };
  const claim = endsAfterMs(turn);
  return {
    elapsedMs: fromDuration(turn.elapsed),
    endsAfterMs: turn.lease ? Math.min(claim, endsAfterMs(turn.lease)) : claim,
  };
}

/** How an event on record was settled. */
export function outcomeName(
  outcome: TurnOutcome,
): "SUCCEEDED" | "REJECTED" | "GAVE_UP" | "FAILED" | undefined {
  switch (outcome) {
    case TurnOutcome.SUCCEEDED:
      return "SUCCEEDED";
    case TurnOutcome.REJECTED:
      return "REJECTED";
    case TurnOutcome.GAVE_UP:
      return "GAVE_UP";
    case TurnOutcome.FAILED:
      return "FAILED";
    default:
      return undefined;
  }
}

/** As much of a text as fits into so many bytes of UTF-8. */
export function cutBytes(text: string, bytes: number): string {
  const cut = Buffer.from(text).subarray(0, bytes).toString();
  return cut.endsWith("\uFFFD") && !text.startsWith(cut) ? cut.slice(0, -1) : cut;
}
