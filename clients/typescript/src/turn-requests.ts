import { create } from "@bufbuild/protobuf";
import {
  type FinishTurnRequest,
  FinishTurnRequestSchema,
  type RenewTurnRequest,
  RenewTurnRequestSchema,
  type TurnEnd,
} from "./gen/oncegate/v1/turn_service_pb.js";
import { toDuration } from "./time.js";
import { cutLease } from "./wire.js";

/** How long the parts of a turn run. */
export interface TurnTerms {
  readonly ttlMs: number;
  readonly graceMs: number | undefined;
}

export function turnTtls({ ttlMs }: TurnTerms) {
  return { claimTtl: toDuration(ttlMs), leaseTtl: toDuration(cutLease(ttlMs)) };
}

export function renewTurnRequest(turnId: string, terms: TurnTerms): RenewTurnRequest {
  return create(RenewTurnRequestSchema, { turnId, ...turnTtls(terms) });
}

/** The same end as a call of its own. */
export function finishTurnRequest(
  turnId: string,
  { outcome, result, resultType, detail, ttl }: TurnEnd,
): FinishTurnRequest {
  const init = { turnId, outcome, result, resultType, detail, ...(ttl && { ttl }) };
  return create(FinishTurnRequestSchema, init);
}
