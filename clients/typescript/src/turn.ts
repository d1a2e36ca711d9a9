import { create } from "@bufbuild/protobuf";
import { CallError } from "./call-error.js";
import type { Codec } from "./codec.js";
import type { Core } from "./core.js";
import { type LostReason, OncegateError, OutcomeUnknown, TurnLost } from "./errors.js";
import { TurnOutcome } from "./gen/oncegate/v1/event_pb.js";
import {
  type RunTurnRequest,
  RunTurnRequestSchema,
  type RunTurnResponse,
  type TurnEnd,
  TurnEndSchema,
  TurnService,
  type Turn as WireTurn,
} from "./gen/oncegate/v1/turn_service_pb.js";
import { Hold } from "./hold.js";
import type { KeptBy, Measured } from "./keeping.js";
import type { Scope } from "./scope.js";
import { toDuration } from "./time.js";
import type { Stream } from "./transport.js";
import { renewTurnRequest, repeatFinish, type TurnTerms } from "./turn-calls.js";
import { cutBytes, measureTurn } from "./wire.js";

type TurnStream = Stream<RunTurnRequest, RunTurnResponse>;

/** How long an end without an answer is repeated at least. */
const leastEffortMs = 5000;

/** How long the end of a turn that failed is tried: its handler's error must not wait for it. */
const failEffortMs = 2000;

/** The limit of a detail, in bytes. */
const detailBytes = 2048;

/** What a turn was granted with. */
export interface TurnGrant {
  readonly turn: WireTurn;
  readonly sent: number;
  readonly stream: TurnStream | undefined;
  readonly terms: TurnTerms;
}

/** The right to handle one event, in its session's turn. */
export class Turn extends Hold {
  readonly #core: Core;
  readonly #codec: Codec;
  readonly #grant: TurnGrant | undefined;
  readonly #eventTtlMs: number | undefined;
  #stream: TurnStream | undefined;
  /** Resolves the wait for the answer to `end`. */
  #answer: ((answer: "finished" | CallError | undefined) => void) | undefined;

  /** @internal */
  constructor(
    core: Core,
    scope: Scope,
    codec: Codec,
    eventTtlMs: number | undefined,
    grant: TurnGrant | undefined,
  ) {
    super(
      core,
      scope,
      grant && {
        sent: grant.sent,
        measured: measureTurn(grant.turn),
        terms: {
          ttlMs: grant.terms.ttlMs,
          graceMs: grant.terms.graceMs,
          keptBy: (grant.stream ? "stream" : "renew") satisfies KeptBy,
        },
      },
    );
    this.#core = core;
    this.#codec = codec;
    this.#grant = grant;
    this.#eventTtlMs = eventTtlMs;
    this.#stream = grant?.stream;
    if (this.#stream) {
      this.#stream.receiver = {
        message: (message) => this.#hear(message),
        end: (error) => this.#streamEnded(error),
      };
    }
  }

  /** Names the turn in `gate.adopt`. Empty for an unguarded turn. */
  get id(): string {
    return this.#grant?.turn.turnId ?? "";
  }

  /** How many times the event has been claimed, from 1. 0 for an unguarded turn. */
  get attempt(): number {
    return this.#grant?.turn.attempt ?? 0;
  }

  /** The fencing token, to be sent with each write. Undefined without a session. */
  get fence(): bigint | undefined {
    return this.#grant?.turn.lease?.fencingToken;
  }

  /**
   * Ends the turn: the event is handled, and duplicates get the result.
   * Throws TurnLost or OutcomeUnknown, with the result as `value`.
   */
  async succeed(result?: unknown): Promise<void> {
    const { data, type } = this.#codec.encode(result);
    const end = { outcome: TurnOutcome.SUCCEEDED, result: data, resultType: type };
    await this.#settle(end, result);
  }

  /** Ends the turn: the event is refused for good. */
  async reject(detail: string): Promise<void> {
    await this.#settle({ outcome: TurnOutcome.REJECTED, detail: cutBytes(detail, detailBytes) }, undefined);
  }

  /**
   * Ends the turn: the next delivery gets the event. It never rejects: an end that does not reach
   * the server is made up for by the TTL.
   */
  async fail(detail = ""): Promise<void> {
    if (this.leftMs <= 0) await this.catchUp();
    if (!this.isOpen) return;
    const end = create(TurnEndSchema, { outcome: TurnOutcome.FAILED, detail: cutBytes(detail, detailBytes) });
    this.stopKeeping();
    try {
      await this.#finish(end, this.#core.clock.now() + failEffortMs);
    } catch (error) {
      this.#core.debug("a turn could not be failed; its event is free when the claim ends: %s", error);
    }
    this.leave();
    this.#core.hooks.onEnd?.("FAILED");
  }

  /**
   * Leaves the turn to another process, which adopts it by the returned id within the TTL.
   * This scope then does nothing more. It never rejects: whether the turn is lost, its adopter
   * finds out.
   */
  async detach(): Promise<string> {
    if (!this.isOpen) return this.id;
    this.stopKeeping();
    try {
      // From now on the end of the stream changes nothing.
      if (this.isGuarded) await this.renew(failEffortMs);
    } catch (error) {
      this.#core.debug("a turn that was detached could not be renewed: %s", error);
    }
    this.leave();
    return this.id;
  }

  /** Fails the turn unless it has ended. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.fail();
  }

  /** @internal */
  async close(detail = "the gate was closed"): Promise<void> {
    const failed = this.fail(detail);
    this.lose("CLOSED");
    await failed;
  }

  protected async renew(deadlineMs: number): Promise<Measured> {
    const { turn, terms } = this.#granted;
    const request = renewTurnRequest(turn.turnId, terms);
    const { renewTurn } = TurnService.method;
    const renewed = await this.#core.transport.unary(renewTurn, request, { deadlineMs });
    return measureTurn(renewed.turn);
  }

  protected lossError(reason: LostReason): TurnLost {
    return new TurnLost(reason);
  }

  protected cancelStream(): void {
    this.#stream?.cancel();
    this.#stream = undefined;
    this.#answer?.(undefined);
  }

  get #granted(): TurnGrant {
    if (!this.#grant) throw new OncegateError("an unguarded turn has nothing to renew or to end");
    return this.#grant;
  }

  #hear({ news }: RunTurnResponse): void {
    if (news.case === "finished") {
      // The server ends the stream: there is nothing to break.
      this.#stream = undefined;
      this.#answer?.("finished");
    }
    if (news.case === "waiting") this.setWaiters(news.value.waiters);
    const turn = news.case === "renewed" ? news.value.turn : undefined;
    this.heard(this.#granted.sent, turn && measureTurn(turn));
  }

  #streamEnded(error: CallError | undefined): void {
    this.#stream = undefined;
    if (this.#answer) this.#answer(error);
    // FinishTurn also ends the stream.
    else if (!this.isOpen) return;
    else if (error?.lost) this.lose(error.lost);
    else this.broke();
  }

  /** Ends the turn for good; `value` is what the handler returned. */
  async #settle(
    init: { outcome: TurnOutcome; result?: Uint8Array; resultType?: string; detail?: string },
    value: unknown,
  ) {
    await this.catchUp();
    if (this.lostReason) throw new TurnLost(this.lostReason, value);
    if (!this.isOpen) throw new OncegateError("the turn has ended already; end it once");
    const trustedEnd = this.trustedEnd;
    this.stopKeeping();
    const ttl = this.#eventTtlMs === undefined ? {} : { ttl: toDuration(this.#eventTtlMs) };
    try {
      const until = Math.max(trustedEnd, this.#core.clock.now() + leastEffortMs);
      await this.#finish(create(TurnEndSchema, { ...init, ...ttl }), until);
      this.#core.hooks.onEnd?.(init.outcome === TurnOutcome.SUCCEEDED ? "SUCCEEDED" : "REJECTED");
    } catch (error) {
      throw await this.#endError(error, value);
    } finally {
      this.leave();
    }
  }

  async #endError(error: unknown, value: unknown): Promise<unknown> {
    if (!(error instanceof CallError)) return error;
    if (error.lost) {
      this.lose(error.lost);
      return new TurnLost(error.lost, value, { cause: error });
    }
    if (this.lostReason) return new TurnLost(this.lostReason, value);
    if (error.isTransient || error.isOverload) {
      this.#core.warn("unknown", "the end of a turn has no answer; its outcome is unknown");
      this.#core.hooks.onEnd?.("UNKNOWN");
      return new OutcomeUnknown(this.id, value, { cause: error });
    }
    // The server refuses this end, such as for a result that is too large: the event is free again.
    const failed = create(TurnEndSchema, { outcome: TurnOutcome.FAILED, detail: error.message });
    await this.#finish(failed, this.#core.clock.now() + failEffortMs).catch(() => {});
    this.#core.hooks.onEnd?.("FAILED");
    return error.toError();
  }

  /** Over the stream, and if that has no answer by calls, until then. Throws a CallError. */
  async #finish(end: TurnEnd, until: number): Promise<void> {
    if (!this.isGuarded) return;
    const answer = await this.#finishOnStream(end);
    if (answer === "finished") return;
    if (answer && !answer.isTransient) throw answer;
    await repeatFinish(this.#core.transport, this.#core.clock, this.id, end, until);
  }

  #finishOnStream(end: TurnEnd): Promise<"finished" | CallError | undefined> {
    const stream = this.#stream;
    if (!stream || this.keptBy !== "stream") return Promise.resolve(undefined);
    return new Promise((resolve) => {
      const patienceMs = Math.min(failEffortMs, this.#granted.terms.ttlMs / 3);
      const timer = setTimeout(resolve, patienceMs, undefined);
      this.#answer = (answer) => {
        clearTimeout(timer);
        this.#answer = undefined;
        resolve(answer);
      };
      stream.send(create(RunTurnRequestSchema, { step: { case: "end", value: end } }));
    });
  }
}
