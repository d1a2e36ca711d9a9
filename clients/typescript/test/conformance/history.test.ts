/** The rules of random runs find the histories that break them. */

import { expect, test } from "vitest";
import { Busy, Duplicate, OutcomeUnknown } from "../../src/index.js";
import { type Answer, type Body, type Forced, History } from "./history.js";

function body(run: number, fence: number, entered: number, left: number, trusted = 9000): Body {
  return {
    run,
    event: "event-1",
    session: "session-1",
    fence: BigInt(fence),
    entered,
    trustedAtEntry: 9000,
    left,
    trusted,
  };
}

function answer(run: number, event: string, outcome: Answer["outcome"]): Answer {
  return { run, event, outcome };
}

function history(bodies: Body[], answers: Answer[] = [], forced: Forced[] = []): History {
  const made = new History(100);
  made.bodies.push(...bodies);
  made.answers.push(...answers);
  made.forced.push(...forced);
  return made;
}

const ran = (result: string) => ({ kind: "ran", result }) as const;
const duplicate = (result: string) => new Duplicate(result, "SUCCEEDED", "");

test("a sound history has no faults", () => {
  const bodies = [body(1, 5, 1000, 2000), body(2, 6, 2000, 8000, 3000), body(3, 7, 3000, 4000)];
  const answers = [
    answer(1, "event-1", ran("a")),
    answer(2, "event-1", duplicate("a")),
    answer(3, "event-2", new OutcomeUnknown("id", "b")),
    answer(4, "event-2", duplicate("b")),
  ];
  expect(history(bodies, answers).faults()).toEqual([]);
});

test("an overlap after a forced release is allowed", () => {
  const bodies = [body(1, 5, 1000, 3000), body(2, 6, 2000, 4000)];
  expect(history(bodies).faults()).toHaveLength(1);
  expect(history(bodies, [], [{ session: "session-1", moment: 1500 }]).faults()).toEqual([]);
  expect(history(bodies, [], [{ session: "session-2", moment: 1500 }]).faults()).toHaveLength(1);
});

test.each([
  ["succeeded in run 1 and 2", history([], [answer(1, "e", ran("a")), answer(2, "e", ran("a"))])],
  ["several results", history([], [answer(1, "e", ran("a")), answer(2, "e", duplicate("b"))])],
  ["no run ended with", history([], [answer(1, "e", duplicate("b"))])],
  ["with fence 5", history([body(1, 5, 1000, 2000), body(2, 5, 3000, 4000)])],
  ["after its trusted end", history([body(1, 5, 9200, 9300)])],
  ["before run 1 stopped", history([body(1, 5, 1000, 3000), body(2, 6, 2000, 4000)])],
  ["not settled", history([], [answer(1, "e", new Busy("b", 0, 1))])],
])("a broken rule is found: %s", (fault, broken) => {
  expect(broken.faults().join("\n")).toContain(fault);
});
