/** Plants the bugs of `clients/conformance/planted.json` in a copy of the library. */

import { cpSync, mkdirSync, mkdtempSync, readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import type { Fault } from "./faults.js";
import { folder } from "./scenario.js";

const root = fileURLToPath(new URL("../../", import.meta.url));

/** Git ignores it, and the packages are found from it. */
const copies = `${root}/node_modules/.cache/oncegate`;

export interface Bug {
  readonly name: string;
  readonly broken: string;
  /** The scenarios that it turns red, each with the number of the step that differs. */
  readonly red: { readonly [scenario: string]: number };
  /** How random runs find it: the rule that it breaks, and the faults that it needs. */
  readonly random?: { readonly rule: string; readonly faults: readonly Fault[] };
}

export function bugs(): Bug[] {
  return JSON.parse(readFileSync(`${folder}/planted.json`, "utf8"));
}

/** One text of a file of `src`, and what stands in its place. */
interface Change {
  readonly file: string;
  readonly was: string;
  readonly now: string;
}

const entered = '{ granted: { turnId: "none", attempt: 1, remaining: toDuration(60_000) } as WireTurn }';

export const changes: { readonly [bug: string]: Change } = {
  "enters-on-busy": {
    file: "requests.ts",
    was: 'case "busy":\n        return { instead: busy(news.value) };',
    now: `case "busy":\n        return ${entered};`,
  },
  "enters-on-duplicate": {
    file: "requests.ts",
    was: "{ instead: this.#duplicate(news.value) }",
    now: entered,
  },
  "fails-open": {
    file: "gate.ts",
    was: 'settings.onUnavailable === "run"',
    now: 'settings.onUnavailable !== "drop"',
  },
  impatient: {
    file: "retry.ts",
    was: "if (pause === undefined) throw cause;",
    now: "if (pause !== 0) throw cause;",
  },
  "no-wait": {
    file: "requests.ts",
    was: "{ ...this.#begin, wait: toDuration(waitMs) }",
    now: "this.#begin",
  },
  "new-request-id-per-retry": {
    file: "requests.ts",
    was: "{ ...this.#begin, wait: toDuration(waitMs) }",
    now: "{ ...this.#begin, wait: toDuration(waitMs), requestId: randomUUID() }",
  },
  "no-consumer": { file: "delivery.ts", was: "consumer: this.consumer ?? consumer,", now: 'consumer: "",' },
  "counts-from-receipt": {
    file: "hold.ts",
    was: "grant.sent, grant.measured",
    now: "owner.clock.now(), grant.measured",
  },
  "ignores-elapsed": {
    file: "wire.ts",
    was: "return fromDuration(elapsed) + fromDuration(remaining);",
    now: "return fromDuration(remaining) + 0 * fromDuration(elapsed);",
  },
  "ignores-grace": {
    file: "keeping.ts",
    was: 'this.#keptBy === "stream" ? Math.min(this.#end, this.#graceEnd) : this.#end',
    now: "this.#end",
  },
  "silence-is-not-probed": {
    file: "keeping.ts",
    was: "return Math.min(now + silence * this.#terms.ttlMs, this.#probeBy);",
    now: "return Infinity + now + silence;",
  },
  "no-renewal-after-a-break": {
    file: "turn.ts",
    was: "else this.broke(error);",
    now: 'else this.lose("EXPIRED");',
  },
  "renewal-dies": {
    file: "keeping.ts",
    was: "this.#renewAt = this.#renewalDue(sent);",
    now: "this.#renewAt = Infinity;",
  },
  "loss-does-not-interrupt": {
    file: "hold.ts",
    was: "lost: (reason, cause) => this.#lose(reason, cause),",
    now: "lost: () => {},",
  },
  "check-ignores-the-clock": {
    file: "hold.ts",
    was: 'if (this.leftMs <= 0) throw this.lossError("EXPIRED");',
    now: "",
  },
  "end-after-loss": {
    file: "turn.ts",
    was: `this.throwIfLost(value);
    if (!this.isOpen) throw new OncegateError("the turn has ended already; end it once");`,
    now: "",
  },
  "end-is-not-repeated": {
    file: "turn.ts",
    was: "await this.#repeatFinish(end, until, answer?.retryAfterMs ?? 0);",
    now: "throw answer ?? new CallError(14, String(until));",
  },
  "unknown-is-success": {
    file: "turn.ts",
    was: "throw await this.#endError(error, value);",
    now: "if (!(error instanceof CallError && error.isTransient)) throw await this.#endError(error, value);",
  },
  "success-is-failure": {
    file: "turn.ts",
    was: "outcome: TurnOutcome.SUCCEEDED, result: data, resultType: type",
    now: "outcome: TurnOutcome.FAILED",
  },
  "error-is-success": {
    file: "turn.ts",
    was: "{ outcome: TurnOutcome.FAILED, detail: cutBytes(describe(detail), detailBytes) }",
    now: "{ outcome: TurnOutcome.SUCCEEDED }",
  },
  "reject-is-failure": {
    file: "turn.ts",
    was: "TurnOutcome.REJECTED, detail",
    now: "TurnOutcome.FAILED, detail",
  },
  "own-error-is-masked": {
    file: "turn.ts",
    was: 'this.#core.debug("a turn could not be failed; its event is free when the claim ends: %s", error);',
    now: "throw error instanceof CallError ? error.toError() : error;",
  },
  "single-channel": {
    file: "channels.ts",
    was: "const streamsPerChannel = 900;",
    now: "const streamsPerChannel = Infinity;",
  },
  "lease-is-not-released": {
    file: "lease.ts",
    was: "await retry({ clock, effortMs: releaseEffortMs, plan: shortTries }, call);",
    now: "void call;",
  },
};

/** Copies the library and the runner, with the bug in them. Returns the copy's folder. */
export function plant(bug: string): string {
  const change = changes[bug];
  if (!change) throw new Error(`no change for ${bug}`);
  mkdirSync(copies, { recursive: true });
  const copy = mkdtempSync(`${copies}/${bug}-`);
  for (const part of ["package.json", "tsconfig.json", "src", "test/conformance"]) {
    cpSync(`${root}/${part}`, `${copy}/${part}`, { recursive: true });
  }
  const file = `${copy}/src/${change.file}`;
  const [before, after, ...more] = readFileSync(file, "utf8").split(change.was);
  if (before === undefined || after === undefined || more.length > 0) {
    throw new Error(`${bug}: the text to change must stand once in ${change.file}; plant anew`);
  }
  writeFileSync(file, before + change.now + after);
  return copy;
}
