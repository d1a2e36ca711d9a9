import { create } from "@bufbuild/protobuf";
import { CallError } from "./call-error.js";
import {
  FinishTurnRequestSchema,
  type RenewTurnRequest,
  RenewTurnRequestSchema,
  type TurnEnd,
  TurnService,
} from "./gen/oncegate/v1/turn_service_pb.js";
import { type Clock, sleep, toDuration } from "./time.js";
import type { Transport } from "./transport.js";

/** How long the parts of a turn run. */
export interface TurnTerms {
  readonly ttlMs: number;
  readonly graceMs: number | undefined;
}

/** The longest lease that the server grants. */
const longestLeaseMs = 15 * 60_000;

export function turnTtls({ ttlMs }: TurnTerms) {
  return { claimTtl: toDuration(ttlMs), leaseTtl: toDuration(Math.min(ttlMs, longestLeaseMs)) };
}

export function renewTurnRequest(turnId: string, terms: TurnTerms): RenewTurnRequest {
  return create(RenewTurnRequestSchema, { turnId, ...turnTtls(terms) });
}

/** The longest and the shortest time for one try. */
const longestTryMs = 5000;
const shortestTryMs = 250;
const pauseMs = 100;

/** Sends FinishTurn until it has an answer, in turn over the calls' and the streams' connection. */
export async function repeatFinish(
  transport: Transport,
  clock: Clock,
  turnId: string,
  { outcome, result, resultType, detail, ttl }: TurnEnd,
  until: number,
): Promise<void> {
  const init = { turnId, outcome, result, resultType, detail, ...(ttl && { ttl }) };
  const request = create(FinishTurnRequestSchema, init);
  for (let attempt = 0; ; attempt += 1) {
    const left = until - clock.now();
    const deadlineMs = Math.min(longestTryMs, Math.max(shortestTryMs, left / 2));
    try {
      const over = attempt % 2 === 0 ? "calls" : "streams";
      await transport.unary(TurnService.method.finishTurn, request, { deadlineMs, over });
      return;
    } catch (error) {
      const isUnanswered = error instanceof CallError && (error.isTransient || error.isOverload);
      if (!isUnanswered || clock.now() + pauseMs >= until) throw error;
    }
    await sleep(pauseMs);
  }
}
