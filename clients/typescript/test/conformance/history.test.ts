/** The rules of random runs find the histories that break them. */

import { setTimeout as sleep } from "node:timers/promises";
import { expect, test } from "vitest";
import { Busy, Duplicate, GaveUp, OutcomeUnknown, TurnLost } from "../../src/index.js";
import { standStill } from "./faults.js";
import { type Answer, type Body, type Forced, HandlerError, History } from "./history.js";
import { startPulse } from "./random-runs.js";

function body(run: number, fence: number, entered: number, left: number, trusted = 9000, event = "e"): Body {
  const common = { session: "session-1", trustedAtEntry: 9000, checks: true, writes: [] };
  return { run, event, attempt: run, entered, left, trusted, fence: BigInt(fence), ...common };
}

/** One that has not recorded that it left. */
function openBody(run: number, fence: number, entered: number): Body {
  return body(run, fence, entered, Infinity, Infinity);
}

function answer(run: number, event: string, outcome: Answer["outcome"], at = 8500): Answer {
  return { run, event, outcome, at };
}

type Records = { [event: string]: [state: string, outcome: string | null, result: string | null] };

function forced(before: number, after: number, session = "session-1"): Forced {
  return { session, before: BigInt(before), after: BigInt(after) };
}

/** One whose runs all have been answered. */
function history(
  bodies: Body[],
  answers: Answer[] = [],
  records: Records = {},
  releases: Forced[] = [],
): History {
  const made = new History(100, 2);
  made.bodies.push(...bodies);
  made.answers.push(...answers);
  made.planned.push(...answers.map(({ run }) => run));
  made.forced.push(...releases);
  for (const [event, [state, outcome, result]] of Object.entries(records)) {
    made.records.set(event, { state, outcome, result });
  }
  return made;
}

const ran = (result: string) => ({ kind: "ran", result }) as const;
const duplicate = (result: string) => new Duplicate(result, "SUCCEEDED", "");
const gaveUp = new GaveUp(2, "");
const failure = new HandlerError("no disk");

test("a sound history has no faults", () => {
  const bodies = [
    body(1, 5, 1000, 2000),
    body(2, 6, 2000, 8000, 3000),
    body(3, 7, 3000, 4000, 9000, "f"),
    body(5, 8, 4000, 5000, 9000, "g"),
    body(6, 9, 5000, 6000, 9000, "g"),
  ];
  const answers = [
    answer(2, "e", new TurnLost("EXPIRED")),
    answer(1, "e", ran("a"), 8000),
    answer(4, "e", duplicate("a")),
    answer(3, "f", new OutcomeUnknown("id", "b")),
    answer(8, "f", duplicate("b")),
    answer(5, "g", failure),
    answer(6, "g", failure),
    answer(7, "g", gaveUp),
  ];
  const records: Records = {
    e: ["PROCESSED", "SUCCEEDED", "a"],
    f: ["PROCESSED", "SUCCEEDED", "b"],
    g: ["PROCESSED", "GAVE_UP", null],
  };
  expect(history(bodies, answers, records).faults()).toEqual([]);
});

test("an overlap after a forced release is allowed", () => {
  const bodies = [body(1, 5, 1000, 3000), body(2, 7, 2000, 4000)];
  const faultsAfter = (release: Forced) => history(bodies, [], {}, [release]).faults();
  expect(history(bodies).faults()).toHaveLength(1);
  // It raised the fence to 6. The fence after it may be that of the next hold, or of a later one.
  for (const after of [6, 7, 8]) expect(faultsAfter(forced(5, after))).toEqual([]);
  expect(faultsAfter(forced(3, 5))).toHaveLength(1);
  expect(faultsAfter(forced(7, 8))).toHaveLength(1);
  expect(faultsAfter(forced(5, 6, "session-2"))).toHaveLength(1);
});

test("an entry that a forced release overtook is allowed", () => {
  const bodies = [body(1, 7, 1000, 2000), body(2, 5, 2000, 3000)];
  const release = forced(5, 6);
  expect(history(bodies).faults()).toHaveLength(1);
  expect(history(bodies, [], {}, [release]).faults()).toEqual([]);
  const faults = history([...bodies, body(3, 7, 3000, 4000)], [], {}, [release]).faults();
  expect(faults).toEqual([expect.stringContaining("run 3 entered with fence 7, after run 1 with fence 7")]);
});

test("each run has one answer", () => {
  const broken = (runs: number[], outcome: Answer["outcome"] = failure) => {
    const made = history([]);
    made.planned.push(1, 2);
    made.answers.push(...runs.map((run) => answer(run, `e${run}`, outcome)));
    return made.faults().filter((fault) => fault.startsWith("each-run"));
  };
  expect(broken([1, 2])).toEqual([]);
  expect(broken([1])).toEqual(["each-run-has-one-answer: run 2 has 0 answers"]);
  expect(broken([1, 2, 2])).toEqual(["each-run-has-one-answer: run 2 has 2 answers"]);
  expect(broken([1, 2], new TypeError("no function"))).toHaveLength(2);
});

test("a pause excuses a late interruption", () => {
  const late = history([{ ...body(1, 5, 1000, 3000, 2000), checks: false }]);
  expect(late.faults()).toHaveLength(1);
  late.pauses.push({ began: 1500, ended: 2300 });
  expect(late.faults()).toHaveLength(1); // it went on for 700 ms more
  late.pauses.push({ began: 2400, ended: 2600 });
  expect(late.faults()).toEqual([]);
});

test("a pause excuses a late entry", () => {
  const late = history([body(1, 5, 9500, 9600)]);
  expect(late.faults()).toHaveLength(1);
  late.pauses.push({ began: 8000, ended: 9300 });
  expect(late.faults()).toHaveLength(1);
  late.pauses.push({ began: 9350, ended: 10_000 });
  expect(late.faults()).toEqual([]);
});

test("a late beat is a pause", () => {
  const kept = history([]);
  const due = performance.now();
  kept.beat(due + 60_000);
  expect(kept.pauses).toEqual([]);
  kept.beat(due - 500);
  expect(kept.pauses).toEqual([{ began: due - 500, ended: expect.any(Number) }]);
  expect(kept.awakeMs(due - 500, due)).toBe(0);
});

test.each([
  ["before it beats again", 0],
  ["after it has beaten again", 100],
])("a pulse that is stopped %s has recorded what held up its event loop", async (_, afterMs) => {
  const kept = history([]);
  const stop = startPulse(kept);
  await sleep(100);
  const began = performance.now();
  standStill(500);
  const ended = performance.now();
  if (afterMs > 0) await sleep(afterMs);
  stop();
  expect(kept.awakeMs(began, ended)).toBeLessThan(100);
});

const first = body(1, 5, 1000, 2000);
const aLateWrite = { ...first, writes: [{ checked: 1501, trusted: 1500 }] };
const aReliantBody = { ...body(1, 5, 1000, 2200, 1500), checks: false };
const aLongOne = [body(1, 5, 1000, 6000), body(2, 6, 2000, 2000), body(3, 7, 3000, 4000)];

test.each([
  ["succeeded in run 1 and 2", history([], [answer(1, "e", ran("a")), answer(2, "e", ran("a"))])],
  ["several results", history([], [answer(1, "e", ran("a")), answer(2, "e", duplicate("b"))])],
  ["no run ended with", history([], [answer(1, "e", duplicate("b"))])],
  ["run 2 entered although", history([first, body(2, 6, 4000, 5000)], [answer(1, "e", ran("a"), 3000)])],
  ["with duplicate after 1", history([first], [answer(1, "e", duplicate("a"))])],
  ["with busy after 1", history([first], [answer(1, "e", new Busy("b", 0, 1))])],
  ["with ran after 0", history([], [answer(1, "e", ran("a"))])],
  [
    "after 1 failures",
    history([first, body(2, 6, 2000, 3000)], [answer(1, "e", failure), answer(3, "e", gaveUp)]),
  ],
  ["after 0 failures", history([], [answer(1, "e", new GaveUp(1, ""))])],
  ['is ["NOT_SEEN"', history([], [answer(1, "e", ran("a"))], { e: ["NOT_SEEN", null, null] })],
  ['"b"]', history([], [answer(1, "e", ran("a"))], { e: ["PROCESSED", "SUCCEEDED", "b"] })],
  ['"GAVE_UP",null]', history([], [answer(1, "e", gaveUp)], { e: ["PROCESSED", "SUCCEEDED", "b"] })],
  ["is [null,null,null]", history([], [answer(1, "e", ran("a"))])],
  ["with fence 5", history([first, body(2, 5, 3000, 4000)])],
  ["entered 200 ms after its trusted end", history([body(1, 5, 9200, 9300)])],
  ["wrote 1 ms after its trusted end", history([aLateWrite])],
  ["went on for 700 ms after its trusted end", history([aReliantBody])],
  ["before run 1 stopped", history([body(1, 5, 1000, 3000), body(2, 6, 2000, 4000)])],
  ["run 3 entered 3000 ms before run 1", history(aLongOne)],
  ["before run 1 stopped", history([openBody(1, 5, 1000), body(2, 6, 2000, 4000)])],
  ["not settled", history([], [answer(1, "e", new Busy("b", 0, 1))])],
])("a broken rule is found: %s", (fault, broken) => {
  expect(broken.faults().join("\n")).toContain(fault);
});
