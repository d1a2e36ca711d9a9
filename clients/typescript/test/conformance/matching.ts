/** Compares a result with what a step expects. */

import type { Json, JsonObject } from "./scenario.js";

/** A result differs from what its step expects. */
export class Mismatch extends Error {
  override readonly name = "Mismatch";
}

type Rule = (argument: Json, result: Json, stored: Map<string, Json>) => boolean;

/** What may stand in the place of a value. `$set` is in `match`, `$absent` in `matchKey`. */
const rules: { [name: string]: Rule } = {
  $get: (name, result, stored) => isEqual(storedAs(name, stored), result),
  $gt: (name, result, stored) => {
    const low = Number(storedAs(name, stored));
    return typeof result === "number" && low < result;
  },
  $between: (range, result) => {
    const [low, high] = range as [number, number];
    return typeof result === "number" && low <= result && result <= high;
  },
  $contains: (text, result) => typeof result === "string" && result.includes(String(text)),
  $any: (_, result) => result !== null,
  $string_bytes: (bytes, result) => typeof result === "string" && Buffer.byteLength(result) === bytes,
  $hex: (hex, result) => isEqual({ $hex: hex }, result),
};

/** Matches results, and keeps the values that a scenario stores on the way. */
export class Expectations {
  #stored = new Map<string, Json>();

  /** Throws Mismatch at the first difference. A result that differs is not stored. */
  match(expected: Json, result: Json): void {
    const stored = new Map(this.#stored);
    match(expected, result, "result", stored);
    this.#stored = stored;
  }
}

function match(expected: Json, result: Json, at: string, stored: Map<string, Json>): void {
  const differs = () => new Mismatch(`${at} is ${shown(result)}, expected ${shown(expected)}`);
  if (Array.isArray(expected)) {
    if (!Array.isArray(result) || result.length !== expected.length) throw differs();
    for (const [index, item] of expected.entries()) {
      match(item, result[index] ?? null, `${at}[${index}]`, stored);
    }
    return;
  }
  if (typeof expected !== "object" || expected === null) {
    if (expected !== result) throw differs();
    return;
  }
  const [[name, argument] = ["", undefined]] = Object.entries(expected);
  if (name === "$set") {
    if (result === null) throw differs();
    stored.set(String(argument), result);
    return;
  }
  if (name.startsWith("$")) {
    if (!rules[name]?.(argument ?? null, result, stored)) throw differs();
    return;
  }
  if (typeof result !== "object" || result === null || Array.isArray(result)) throw differs();
  for (const [key, item] of Object.entries(expected)) {
    matchKey(item ?? null, (result as JsonObject)[key], `${at}.${key}`, stored);
  }
}

/** A key must be present, also for null, unless it is expected to be absent. */
function matchKey(expected: Json, result: Json | undefined, at: string, stored: Map<string, Json>): void {
  const isAbsent = result === undefined;
  if (isAbsent !== isEqual(expected, { $absent: true })) {
    throw new Mismatch(`${at} is ${isAbsent ? "missing" : shown(result)}, expected ${shown(expected)}`);
  }
  if (!isAbsent) match(expected, result, at, stored);
}

function storedAs(name: Json, stored: Map<string, Json>): Json {
  const value = stored.get(String(name));
  if (value === undefined) throw new Error(`nothing is stored as ${name}`);
  return value;
}

function isEqual(one: Json, other: Json): boolean {
  return JSON.stringify(one) === JSON.stringify(other);
}

function shown(value: Json): string {
  return JSON.stringify(value).slice(0, 400);
}
