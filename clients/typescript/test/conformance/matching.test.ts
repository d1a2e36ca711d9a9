/** The matcher accepts what a step expects, and nothing else. */

import { expect, test } from "vitest";
import { Expectations, Mismatch } from "./matching.js";
import type { Json } from "./scenario.js";

const absent = { $absent: true };

test.each<[Json, Json]>([
  [{}, { ran: null }],
  [{ ran: null }, { ran: null, more: 1 }],
  [{ FinishTurn: absent }, { RunTurn: { OK: 1 } }],
  [{ duplicate: { result: { $hex: "00ff" } } }, { duplicate: { result: { $hex: "00ff" } } }],
  [
    [{ $any: true }, { $between: [1, 2] }],
    ["x", 1.5],
  ],
  [
    { name: { $string_bytes: 2 }, text: { $contains: "b" } },
    { name: "é", text: "abc" },
  ],
])("%j matches %j", (expected, result) => {
  expect(() => new Expectations().match(expected, result)).not.toThrow();
});

test.each<[Json, Json]>([
  [{ ran: null }, { error: { kind: "internal" } }],
  [{ ran: null }, { ran: 1 }],
  [{ ran: { $any: true } }, { ran: null }],
  [{ duplicate: { result: null } }, { duplicate: {} }],
  [{ FinishTurn: absent }, { FinishTurn: { OK: 1 } }],
  [{ FinishTurn: absent }, { FinishTurn: null }],
  [{ FinishTurn: absent }, null],
  [[1], [1, 2]],
  [{ held: true }, { held: 1 }],
  [{ left_ms: { $between: [1, 2] } }, { left_ms: null }],
])("%j differs from %j", (expected, result) => {
  expect(() => new Expectations().match(expected, result)).toThrow(Mismatch);
});

test("stored values are compared", () => {
  const expectations = new Expectations();
  expectations.match({ fence: { $set: "fence" } }, { fence: 5 });
  expectations.match({ fence: { $get: "fence" } }, { fence: 5 });
  expectations.match({ fence: { $gt: "fence" } }, { fence: 6 });
  expect(() => expectations.match({ fence: { $get: "fence" } }, { fence: 6 })).toThrow(Mismatch);
  expect(() => expectations.match({ fence: { $gt: "fence" } }, { fence: 5 })).toThrow(Mismatch);
});

test("a name that nothing was stored under is a fault of the scenario", () => {
  for (const rule of ["$get", "$gt"]) {
    for (const result of [null, 1]) {
      const match = () => new Expectations().match({ fence: { [rule]: "fenc" } }, { fence: result });
      expect(match).toThrow("nothing is stored as fenc");
      expect(match).not.toThrow(Mismatch);
    }
  }
});

test("nothing is stored of a result that differs", () => {
  const expectations = new Expectations();
  expectations.match({ fence: { $set: "fence" } }, { fence: 5 });
  const expected = { fence: { $set: "fence" }, held: true };
  expect(() => expectations.match(expected, { fence: 6, held: false })).toThrow(Mismatch);
  expectations.match({ fence: { $get: "fence" } }, { fence: 5 });
});
