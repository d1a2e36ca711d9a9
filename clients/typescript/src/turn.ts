import { create } from "@bufbuild/protobuf";
import { CallError } from "./call-error.js";
import type { Cancellation } from "./cancellation.js";
import type { Codec } from "./codec.js";
import type { Core } from "./core.js";
import { describe } from "./describe.js";
import { type LostReason, OncegateError, OutcomeUnknown, TurnLost, Unavailable } from "./errors.js";
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
import type { EndOutcome } from "./options.js";
import { retry, shortTries } from "./retry.js";
import { sleep, toDuration } from "./time.js";
import type { CallOptions, Stream } from "./transport.js";
import { finishTurnRequest, renewTurnRequest, type TurnTerms } from "./turn-requests.js";
import { cutBytes, measureTurn } from "./wire.js";

type TurnStream = Stream<RunTurnRequest, RunTurnResponse>;

/** How long an end without an answer is repeated at least. */
const leastEffortMs = 5000;

/** How long the stream may take to answer an end before a call repeats it. */
const answerMs = 2000;

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
    scope: Cancellation,
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
    // A grant that came too late to be trusted is carried first.
    if (this.leftMs > 0) this.keep();
  }

  /** @internal Its beginning is reported as well, and later its end. */
  override begun(): void {
    super.begun();
    this.#core.debug("turn %s: attempt %d", this.id, this.attempt);
    this.#core.notify((hooks) => hooks.onBegin?.(this));
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
    const end = { outcome: TurnOutcome.REJECTED, detail: cutBytes(describe(detail), detailBytes) };
    await this.#settle(end, undefined);
  }

  /**
   * Ends the turn: the next delivery gets the event. It never rejects: an end that does not reach
   * the server is made up for by the TTL.
   * @param detail an error or a text, shown to operators
   */
  async fail(detail: unknown = ""): Promise<void> {
    if (this.leftMs <= 0) await this.catchUp();
    await this.abandon(detail);
  }

  /**
   * Leaves the turn to another process, which adopts it by the returned id within the TTL.
   * This scope then does nothing more. It never rejects: whether the turn is lost, its adopter
   * finds out.
   */
  async detach(): Promise<string> {
    if (!this.isOpen) return this.id;
    await this.end(async () => {
      try {
        // From now on the end of the stream changes nothing.
        if (this.isGuarded) await this.renew({ deadlineMs: failEffortMs });
      } catch (error) {
        this.#core.debug("a turn that was detached could not be renewed: %s", error);
      }
    });
    return this.id;
  }

  /** Fails the turn unless it has ended. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.fail();
  }

  /** @internal */
  async abandon(detail: unknown): Promise<void> {
    if (!this.isOpen) return;
    const end = failure(detail);
    await this.end(async () => {
      try {
        await this.#finish(end, this.#core.clock.now() + failEffortMs);
      } catch (error) {
        if (this.#isLostBy(error)) return;
        this.#core.debug("a turn could not be failed; its event is free when the claim ends: %s", error);
      }
      this.#reportEnd("FAILED");
    });
  }

  protected async renew(options: CallOptions): Promise<Measured> {
    const { turn, terms } = this.#granted;
    const request = renewTurnRequest(turn.turnId, terms);
    const { renewTurn } = TurnService.method;
    const renewed = await this.#core.transport.unary(renewTurn, request, options);
    return measureTurn(renewed.turn);
  }

  protected lossError(reason: LostReason, cause?: CallError, value?: unknown): TurnLost {
    return new TurnLost(reason, value, cause && { cause });
  }

  protected override endedByLoss(): void {
    this.#reportEnd("LOST");
  }

  #reportEnd(outcome: EndOutcome): void {
    if (this.hasBegun) this.#core.notify((hooks) => hooks.onEnd?.(outcome));
  }

  /** Whether the answer to its end is its loss, which is then reported. */
  #isLostBy(answer: unknown): answer is CallError & { lost: LostReason } {
    if (!(answer instanceof CallError && answer.lost)) return false;
    this.lose(answer.lost, answer);
    this.#reportEnd("LOST");
    return true;
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
    else if (error?.loss) this.lose(error.loss, error);
    else this.broke(error);
  }

  /** Ends the turn for good; `value` is what the handler returned. */
  async #settle(
    init: { outcome: TurnOutcome; result?: Uint8Array; resultType?: string; detail?: string },
    value: unknown,
  ) {
    await this.catchUp();
    this.throwIfLost(value);
    if (!this.isOpen) throw new OncegateError("the turn has ended already; end it once");
    const ttl = this.#eventTtlMs === undefined ? {} : { ttl: toDuration(this.#eventTtlMs) };
    const end = create(TurnEndSchema, { ...init, ...ttl });
    const until = Math.max(this.trustedEnd, this.#core.clock.now() + leastEffortMs);
    await this.end(async () => {
      try {
        await this.#finish(end, until);
      } catch (error) {
        throw await this.#endError(error, value);
      }
    });
    this.#reportEnd(init.outcome === TurnOutcome.SUCCEEDED ? "SUCCEEDED" : "REJECTED");
  }

  async #endError(error: unknown, value: unknown): Promise<unknown> {
    if (this.#isLostBy(error)) return this.lossError(error.lost, error, value);
    const status = error instanceof CallError ? error : undefined;
    // The transport throws Unavailable once it is closed.
    if (status?.isRetryable || error instanceof Unavailable) {
      this.#core.warn("unknown", "the end of a turn has no answer; its outcome is unknown");
      this.#reportEnd("UNKNOWN");
      return new OutcomeUnknown(this.id, value, { cause: error });
    }
    // This end is refused, such as for a result that is too large: the event is free again.
    await this.#finish(failure(error), this.#core.clock.now() + failEffortMs).catch(() => {});
    this.#reportEnd("FAILED");
    return status ? status.toError() : error;
  }

  /** Over the stream, and if that has no answer by calls, until then. Throws a CallError. */
  async #finish(end: TurnEnd, until: number): Promise<void> {
    if (!this.isGuarded) return;
    const answer = await this.#finishOnStream(end, until);
    if (answer === "finished") return;
    if (answer && !answer.isRetryable) throw answer;
    await this.#repeatFinish(end, until, answer?.retryAfterMs ?? 0);
  }

  async #repeatFinish(end: TurnEnd, until: number, pauseMs: number): Promise<void> {
    const { transport, clock } = this.#core;
    const pause = Math.min(pauseMs, until - clock.now());
    if (pause > 0) await sleep(pause);
    const request = finishTurnRequest(this.id, end);
    const effort = { clock, effortMs: until - clock.now(), plan: shortTries };
    await retry(effort, (options) => transport.unary(TurnService.method.finishTurn, request, options));
  }

  #finishOnStream(end: TurnEnd, until: number): Promise<"finished" | CallError | undefined> {
    const stream = this.#stream;
    if (!stream || this.keptBy !== "stream") return Promise.resolve(undefined);
    const message = create(RunTurnRequestSchema, { step: { case: "end", value: end } });
    return new Promise((resolve) => {
      stream.send(message);
      const patienceMs = Math.min(answerMs, (until - this.#core.clock.now()) / 2);
      const timer = setTimeout(resolve, patienceMs, undefined);
      this.#answer = (answer) => {
        clearTimeout(timer);
        this.#answer = undefined;
        resolve(answer);
      };
    });
  }
}

function failure(detail: unknown): TurnEnd {
  const init = { outcome: TurnOutcome.FAILED, detail: cutBytes(describe(detail), detailBytes) };
  return create(TurnEndSchema, init);
}
