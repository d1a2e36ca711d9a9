/** What happened in random runs, and the rules that it must keep. */

import { NotGranted, OncegateError, type Outcome, OutcomeUnknown } from "../../src/index.js";
import type { JsonObject } from "./scenario.js";

/** A handler's body, on the clock that the library counts ends on. */
export interface Body {
  readonly run: number;
  readonly event: string;
  readonly session: string;
  readonly fence: bigint;
  readonly entered: number;
  readonly trustedAtEntry: number;
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

  /** The events as the server has them at the end. */
  readonly records = new Map<string, JsonObject>();

  constructor(
    readonly marginMs: number,
    readonly maxAttempts: number,
  ) {}

  /** The rules that are broken. None: all hold. */
  faults(): string[] {
    return rules.flatMap((rule) => [...rule(this)]);
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

/** An event is given up when all its attempts have failed, or were lost. */
function* givenUpAfterFailures({ answers, maxAttempts }: History): Iterable<string> {
  for (const [event, group] of grouped(answers, ({ event }) => event)) {
    let failures = 0;
    for (const { outcome } of group) {
      const kind = kindOf(outcome);
      if (kind === "gaveUp" && failures < maxAttempts) {
        yield `${event} was given up after ${failures} failures`;
      }
      if (kind !== "ran" && !(outcome instanceof NotGranted)) failures += 1;
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
function* noEntryAfterTheEnd({ bodies, marginMs }: History): Iterable<string> {
  for (const { run, event, entered, trustedAtEntry } of bodies) {
    const late = entered - trustedAtEntry;
    if (late > marginMs) yield `${event}: run ${run} entered ${late} ms after its trusted end`;
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

const rules = [
  eachRunHasOneAnswer,
  oneSuccess,
  duplicatesReplayTheSuccess,
  noEntryOnceSettled,
  aRefusedRunHasNoBody,
  givenUpAfterFailures,
  theServerHasTheAnswers,
  fencesRise,
  noEntryAfterTheEnd,
  noTwoBodies,
  allEventsSettle,
];

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
