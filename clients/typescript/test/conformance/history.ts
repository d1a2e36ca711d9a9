/** What happened in random runs, and the rules that it must keep. */

import { GaveUp, NotGranted, OncegateError, type Outcome, OutcomeUnknown } from "../../src/index.js";
import type { JsonObject } from "./scenario.js";

/** How long the library may read what came in time while it was held up. */
const settleMs = 500;

/** A pulse that is later than this has stood still. */
const lateMs = 40;

/** A write of a body, after a check that passed. */
export interface Write {
  /** When the check began. */
  readonly checked: number;
  /** The trusted end, read after it. */
  readonly trusted: number;
}

/** This process stood still: as one of the faults, or because other processes ran. */
export interface Pause {
  readonly began: number;
  readonly ended: number;
}

/** A handler's body, on the clock that the library counts ends on. */
export interface Body {
  readonly run: number;
  readonly event: string;
  readonly session: string;
  readonly attempt: number;
  readonly fence: bigint;
  readonly entered: number;
  readonly trustedAtEntry: number;
  /** It checks before each write. Else it relies on the library's interruption. */
  readonly checks: boolean;
  readonly writes: Write[];
  /** When its last statement ran; infinite until then. */
  left: number;
  /** Its last trusted end, as it left; infinite until then. */
  trusted: number;
}

/** A handler's own error. */
export class HandlerError extends Error {
  override readonly name = "HandlerError";
}

/** What one delivery of an event came to: an outcome, or an error. */
export interface Answer {
  readonly run: number;
  readonly event: string;
  readonly outcome: Outcome<string> | Error;
  readonly at: number;
}

/**
 * A session was released by force, which raised its fence. The next holds may have raised it further
 * before it was read.
 */
export interface Forced {
  readonly session: string;
  readonly before: bigint;
  readonly after: bigint;
}

export class History {
  /** The runs that are to be. */
  readonly planned: number[] = [];
  readonly bodies: Body[] = [];
  readonly answers: Answer[] = [];
  readonly forced: Forced[] = [];

  /** They do not overlap: one pulse records them. */
  readonly pauses: Pause[] = [];

  /** The events as the server has them at the end. */
  readonly records = new Map<string, JsonObject>();

  constructor(
    readonly marginMs: number,
    readonly maxAttempts: number,
  ) {}

  /** A beat of the pulse, which was due then. */
  beat(due: number): void {
    const now = performance.now();
    if (now - due > lateMs) this.pauses.push({ began: due, ended: now });
  }

  /** What breaks a rule, each with the rule's name. None: all hold. */
  faults(): string[] {
    return Object.entries(rules).flatMap(([name, rule]) =>
      Array.from(rule(this), (fault) => `${name}: ${fault}`),
    );
  }

  /** How much of this time the process did not stand still. */
  awakeMs(since: number, until: number): number {
    const overlaps = this.pauses.map(({ began, ended }) => Math.min(until, ended) - Math.max(since, began));
    return until - since - overlaps.reduce((sum, overlap) => sum + Math.max(0, overlap), 0);
  }
}

/** A run ends with an outcome, or with an error of the library's or of the handler's own. */
function* eachRunHasOneAnswer({ planned, answers }: History): Iterable<string> {
  const byRun = grouped(answers, ({ run }) => String(run));
  for (const run of planned) {
    const count = byRun.get(String(run))?.length ?? 0;
    if (count !== 1) yield `run ${run} has ${count} answers`;
  }
  for (const { run, outcome } of answers) {
    const isKnown =
      kindOf(outcome) === "ran" || outcome instanceof OncegateError || outcome instanceof HandlerError;
    if (!isKnown) yield `run ${run} ended with ${outcome}`;
  }
}

/** An event succeeds once at most. */
function* oneSuccess({ answers }: History): Iterable<string> {
  const succeeded = new Map<string, number>();
  for (const { run, event, outcome } of answers) {
    if (kindOf(outcome) !== "ran") continue;
    const before = succeeded.get(event);
    if (before !== undefined) yield `${event} succeeded in run ${before} and ${run}`;
    succeeded.set(event, run);
  }
}

/** A duplicate gets the value of the run that succeeded, or whose outcome is unknown. */
function* duplicatesReplayTheSuccess({ answers }: History): Iterable<string> {
  for (const [event, group] of grouped(answers, ({ event }) => event)) {
    const values = new Set<unknown>();
    const possible = new Set<unknown>();
    for (const { outcome } of group) {
      if (outcome instanceof OutcomeUnknown) possible.add(outcome.value);
      if (!("result" in outcome)) continue;
      values.add(outcome.result);
      if (outcome.kind === "ran") possible.add(outcome.result);
    }
    if (values.size > 1) yield `${event} has several results: ${[...values]}`;
    for (const value of values) {
      if (!possible.has(value)) yield `${event} has a result that no run ended with: ${value}`;
    }
  }
}

/** Once an event is settled, as a caller has been answered, no body of it begins. */
function* noEntryOnceSettled({ answers, bodies }: History): Iterable<string> {
  const settled = new Map<string, number>();
  for (const { event, outcome, at } of answers) {
    if (isSettled(outcome)) settled.set(event, Math.min(at, settled.get(event) ?? at));
  }
  for (const { run, event, entered } of bodies) {
    if (entered > (settled.get(event) ?? Infinity))
      yield `${event}: run ${run} entered although it was settled`;
  }
}

/** A run that is refused, as a duplicate or otherwise, has no body; a run that succeeded has one. */
function* aRefusedRunHasNoBody({ answers, bodies }: History): Iterable<string> {
  const byRun = grouped(bodies, ({ run }) => String(run));
  for (const { run, outcome } of answers) {
    const count = byRun.get(String(run))?.length ?? 0;
    const most = outcome instanceof NotGranted ? 0 : 1;
    const least = kindOf(outcome) === "ran" ? 1 : 0;
    if (count < least || count > most) yield `run ${run} ended with ${kindOf(outcome)} after ${count} bodies`;
  }
}

/** An event is given up when all its attempts have failed, or were lost: some before a body. */
function* givenUpAfterFailures({ answers, bodies, maxAttempts }: History): Iterable<string> {
  const bodiesOf = grouped(bodies, ({ event }) => event);
  for (const [event, group] of grouped(answers, ({ event }) => event)) {
    const seen = new Set(bodiesOf.get(event)?.map(({ attempt }) => attempt)).size;
    let failures = 0;
    for (const { outcome } of group) {
      if (outcome instanceof GaveUp) {
        const ended = failures + outcome.attempts - seen;
        if (Math.min(ended, outcome.attempts) < maxAttempts) {
          yield `${event} was given up after ${failures} failures`;
        }
      }
      if (kindOf(outcome) !== "ran" && !(outcome instanceof NotGranted)) failures += 1;
    }
  }
}

/** The record of an event has the outcome and the result that its callers got. */
function* theServerHasTheAnswers({ answers, records }: History): Iterable<string> {
  for (const { run, event, outcome } of answers) {
    if (!isSettled(outcome)) continue;
    const expected = "result" in outcome ? ["SUCCEEDED", outcome.result] : ["GAVE_UP", null];
    const record = records.get(event);
    const found = JSON.stringify([record?.state, record?.outcome, record?.result]);
    const answered = JSON.stringify(["PROCESSED", ...expected]);
    if (found !== answered) yield `${event} is ${found}, run ${run} was answered ${answered}`;
  }
}

/** The holds of a session are entered in the order of their fences. */
function* fencesRise(history: History): Iterable<string> {
  for (const [before, after] of pairs(history)) {
    if (after.fence > before.fence || isForced(history, before, after)) continue;
    yield `${after.session}: run ${after.run} entered with fence ${after.fence}, after run ${before.run} with fence ${before.fence}`;
  }
}

/**
 * A body does not begin after its trusted end. The margin is for what lies between the library's
 * look at the clock and the body's own.
 */
function* noEntryAfterTheEnd(history: History): Iterable<string> {
  for (const { run, event, entered, trustedAtEntry } of history.bodies) {
    const late = entered > trustedAtEntry ? history.awakeMs(trustedAtEntry, entered) : 0;
    if (late > history.marginMs) yield `${event}: run ${run} entered ${late} ms after its trusted end`;
  }
}

/** A check that begins after the trusted end does not pass. */
function* noWriteAfterTheEnd({ bodies }: History): Iterable<string> {
  for (const { run, event, writes } of bodies) {
    const late = Math.max(0, ...writes.map(({ checked, trusted }) => checked - trusted));
    if (late > 0) yield `${event}: run ${run} wrote ${late} ms after its trusted end`;
  }
}

/** A body that relies on it is interrupted at its trusted end, or before. */
function* aLossInterrupts(history: History): Iterable<string> {
  for (const { run, event, checks, left, trusted } of history.bodies) {
    const late = left > trusted ? history.awakeMs(trusted, left) : 0;
    if (!checks && late > history.marginMs + settleMs) {
      yield `${event}: run ${run} went on for ${late} ms after its trusted end`;
    }
  }
}

/**
 * Within their trusted ends, the bodies of a session do not overlap, unless an operator has
 * released the session by force.
 */
function* noTwoBodies(history: History): Iterable<string> {
  for (const [before, after] of pairs(history)) {
    // Until when it may have had effects, if its author calls `check` before each.
    const stopped = Math.min(before.left, before.trusted);
    if (stopped <= after.entered) continue;
    if (!isForced(history, before, after)) {
      yield `${after.session}: run ${after.run} entered ${stopped - after.entered} ms before run ${before.run} stopped`;
    }
  }
}

/** Once the faults have stopped, the last answer for each event settles it. */
function* allEventsSettle({ answers }: History): Iterable<string> {
  const last = new Map(answers.map((answer) => [answer.event, answer]));
  for (const { event, outcome } of last.values()) {
    if (!isSettled(outcome)) yield `${event} is not settled; its last answer is ${outcome}`;
  }
}

/** By their names in `planted.json`. */
const rules: { readonly [name: string]: (history: History) => Iterable<string> } = {
  "each-run-has-one-answer": eachRunHasOneAnswer,
  "one-success": oneSuccess,
  "duplicates-replay-the-success": duplicatesReplayTheSuccess,
  "no-entry-once-settled": noEntryOnceSettled,
  "a-refused-run-has-no-body": aRefusedRunHasNoBody,
  "given-up-after-failures": givenUpAfterFailures,
  "the-server-has-the-answers": theServerHasTheAnswers,
  "fences-rise": fencesRise,
  "no-entry-after-the-end": noEntryAfterTheEnd,
  "no-write-after-the-end": noWriteAfterTheEnd,
  "a-loss-interrupts": aLossInterrupts,
  "no-two-bodies": noTwoBodies,
  "all-events-settle": allEventsSettle,
};

export function isSettled(outcome: Answer["outcome"]): boolean {
  return ["ran", "duplicate", "gaveUp"].includes(kindOf(outcome));
}

export function kindOf(outcome: Answer["outcome"]): string {
  return "kind" in outcome ? outcome.kind : outcome.name;
}

/**
 * Whether a session was released by force between the grants of two holds, as far as the fences say. The
 * release can overtake a grant that is on its way.
 */
function isForced({ forced }: History, one: Body, other: Body): boolean {
  const [low, high] = one.fence < other.fence ? [one.fence, other.fence] : [other.fence, one.fence];
  if (low === high) return false;
  return forced.some(({ session, before, after }) => session === one.session && before < high && low < after);
}

/** Each body of a session with each that was entered later. */
function* pairs({ bodies }: History): Iterable<[Body, Body]> {
  const ordered = [...bodies].sort((one, other) => one.entered - other.entered);
  for (const group of grouped(ordered, ({ session }) => session).values()) {
    for (const [index, after] of group.entries()) {
      for (const before of group.slice(0, index)) yield [before, after];
    }
  }
}

function grouped<T>(items: Iterable<T>, key: (item: T) => string): Map<string, T[]> {
  const groups = new Map<string, T[]>();
  for (const item of items) {
    const group = groups.get(key(item));
    if (group) group.push(item);
    else groups.set(key(item), [item]);
  }
  return groups;
}
