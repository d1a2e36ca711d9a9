/** Scenarios as they stand in `clients/conformance/scenarios`, and the values in them. */

import { appendFileSync, readdirSync, readFileSync } from "node:fs";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";

export type Json = null | boolean | number | string | Json[] | JsonObject;
export interface JsonObject {
  [key: string]: Json | undefined;
}
export type Step = JsonObject;
export type Store = "sqlite" | "postgres";

export const stores: readonly Store[] = ["sqlite", "postgres"];

/** What a client of this language can do. */
const capabilities = new Set(["event_loop", "interrupt"]);

export interface Scenario {
  /** The name of its file, without the extension. */
  readonly file: string;
  readonly name: string;
  readonly steps: Step[];
  readonly stores: readonly Store[];
  readonly replicas: number;
  readonly server: readonly string[];
  readonly clients: { [name: string]: JsonObject };
  readonly deliveries: { [name: string]: Json };
  readonly needs: readonly string[];
}

export const folder = fileURLToPath(new URL("../../../conformance/", import.meta.url));

function load(file: string): Scenario {
  const read = JSON.parse(readFileSync(`${folder}/scenarios/${file}`, "utf8"));
  const defaults = { stores, replicas: 1, server: [], clients: {}, deliveries: {}, needs: [] };
  return { ...defaults, ...read, file: basename(file, ".json") };
}

export function loadAll(): Scenario[] {
  return readdirSync(`${folder}/scenarios`).sort().map(load);
}

export function canRun(scenario: Scenario, store: Store): boolean {
  return scenario.stores.includes(store) && scenario.needs.every((need) => capabilities.has(need));
}

/** Notes for `clients/behaviour` that it has passed. */
export function notePass(scenario: Scenario, store: Store): void {
  const results = process.env.ONCEGATE_SCENARIO_RESULTS;
  if (results) appendFileSync(join(results, "typescript"), `${scenario.file}\t${store}\n`);
}

/** A value as a step writes it: JSON, a repeated text, or raw bytes. */
export function read(written: Json | undefined): unknown {
  if (Array.isArray(written)) return written.map(read);
  if (typeof written !== "object" || written === null) return written;
  if (Array.isArray(written.$repeat)) {
    const [text, count] = written.$repeat as [string, number];
    return text.repeat(count);
  }
  if (typeof written.$hex === "string") return Buffer.from(written.$hex, "hex");
  return Object.fromEntries(Object.entries(written).map(([key, item]) => [key, read(item)]));
}

/** A value as a step writes it, so that results can be compared and sent as JSON. */
export function write(value: unknown): Json {
  if (value === undefined || value === null) return null;
  if (value instanceof Uint8Array) return { $hex: Buffer.from(value).toString("hex") };
  if (typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(write);
  if (typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, write(item)]));
  }
  return value as Json;
}
