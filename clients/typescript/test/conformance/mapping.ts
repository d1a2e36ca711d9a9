/** Between the words of a scenario and those of the library's public API. */

import { inspect } from "node:util";
import * as discord from "../../src/discord.js";
import * as github from "../../src/github.js";
import * as oncegate from "../../src/index.js";
import { Delivery, Session } from "../../src/index.js";
import * as slack from "../../src/slack.js";
import * as standardWebhooks from "../../src/standard-webhooks.js";
import * as stripe from "../../src/stripe.js";
import * as teams from "../../src/teams.js";
import * as telegram from "../../src/telegram.js";
import { type Json, type JsonObject, read, type Step, write } from "./scenario.js";

/** An error of the handler's own. */
export class OwnError extends Error {}

/** Keeps dates, which JSON does not know. */
export const dateCodec: oncegate.Codec<Date> = {
  encode: (date) => ({ data: Buffer.from(isoDate(date)), type: "text/x-date" }),
  decode: (data) => new Date(Buffer.from(data).toString()),
};

export function isoDate(date: Date): string {
  return date.toISOString().slice(0, 10);
}

interface Delivered {
  headers?: { [name: string]: string };
  body: string | object;
}

type Make = (delivered: Delivered, options: { team: string }) => Delivery;

const platforms: { [name: string]: Make } = {
  github: ({ headers, body }, options) => github.delivery(headers ?? {}, body, options),
  discord: ({ body }, options) => discord.delivery(body, options),
  telegram: ({ body }, options) => telegram.delivery(body, options),
  teams: ({ body }, options) => teams.delivery(body, options),
  stripe: ({ body }, options) => stripe.delivery(body, options),
  standard_webhooks: ({ headers, body }, options) => standardWebhooks.delivery(headers ?? {}, body, options),
};

export function delivery(step: Json | undefined): Delivery {
  const { team = "", event, session, thread, aliases, digest, ttl_ms, ...payload } = step as JsonObject;
  const tenant = String(team);
  const [[platform, delivered] = [undefined, undefined]] = Object.entries(payload);
  if (platform === "slack") return slack.delivery(delivered as object);
  if (platform !== undefined) {
    return (platforms[platform] as Make)(delivered as unknown as Delivered, { team: tenant });
  }
  return new Delivery(tenant, read(event) as string, {
    session: thread ? Session.thread(tenant, ...(thread as [string, string])) : (read(session) as string),
    aliases: ((aliases ?? []) as Json[]).map((alias) => read(alias) as string),
    digest: Buffer.from((digest ?? "") as string, "hex"),
    ttl: ttl_ms as number | undefined,
  });
}

export function session(step: Json | undefined): oncegate.SessionInit {
  const { team, id, thread } = step as JsonObject;
  return thread
    ? { team: team as string, thread: thread as [string, string] }
    : { team: team as string, session: read(id) as string };
}

export function turnOptions(step: Step): oncegate.TurnOptions {
  return {
    wait: step.wait_ms as number | undefined,
    ttl: step.ttl_ms as number | undefined,
    patience: step.patience_ms as number | undefined,
    maxAttempts: step.max_attempts as number | undefined,
    onUnavailable: step.on_unavailable as oncegate.OnUnavailable | undefined,
    epic: read(step.epic) as string | undefined,
    labels: step.labels as { [name: string]: string } | undefined,
  };
}

export function gateOptions(name: string, server: string, given: JsonObject): oncegate.GateOptions {
  return {
    server,
    holder: name,
    consumer: given.consumer as string | undefined,
    shareSessions: given.share_sessions as boolean | undefined,
    ttl: given.ttl_ms as number,
    grace: given.grace_ms as number | undefined,
    patience: given.patience_ms as number | undefined,
    onUnavailable: given.on_unavailable as oncegate.OnUnavailable | undefined,
    maxAttempts: given.max_attempts as number | undefined,
  };
}

/** What the body of a handler returns, or throws, as its step says. */
export function bodyOf(step: Step): unknown {
  if (step.error !== undefined) throw new OwnError(String(step.error));
  if (step.reject !== undefined) throw new oncegate.Reject(String(step.reject));
  return read(step.result);
}

export function outcome(result: oncegate.Outcome<unknown>): Json {
  return result.kind === "ran" ? { ran: write(result.result) } : failure(result);
}

/** An expected answer or an error, whether it was thrown or returned. */
export function failure(error: unknown): Json {
  if (error instanceof oncegate.Duplicate) {
    return { duplicate: fields(error, { result: "result", outcome: "outcome", detail: "detail" }) };
  }
  if (error instanceof oncegate.GaveUp) {
    return { gave_up: fields(error, { attempts: "attempts", detail: "detail" }) };
  }
  if (error instanceof oncegate.InProgress) {
    const names = { holder: "holder", attempt: "attempt", retry_after_ms: "retryAfterMs" } as const;
    return { in_progress: fields(error, names) };
  }
  if (error instanceof oncegate.Busy) {
    const names = { holder: "holder", queue_length: "queueLength", retry_after_ms: "retryAfterMs" } as const;
    return { busy: fields(error, names) };
  }
  if (error instanceof oncegate.Dropped) return { dropped: {} };
  return { error: errorFields(error) };
}

function errorFields(error: unknown): JsonObject {
  const of = <E extends object>(kind: string, from: E, names: { [word: string]: keyof E } = {}) => ({
    kind,
    ...fields(from, names),
  });
  if (error instanceof oncegate.TurnLost) return of("turn_lost", error, { reason: "reason", value: "value" });
  if (error instanceof oncegate.LeaseLost) return of("lease_lost", error, { reason: "reason" });
  if (error instanceof oncegate.OutcomeUnknown) return of("outcome_unknown", error, { value: "value" });
  if (error instanceof oncegate.Unavailable) {
    return of("unavailable", error, { retry_after_ms: "retryAfterMs" });
  }
  if (error instanceof oncegate.Overloaded)
    return of("overloaded", error, { retry_after_ms: "retryAfterMs" });
  if (error instanceof oncegate.EpicMismatch) return of("epic_mismatch", error, { bound: "bound" });
  if (error instanceof oncegate.PayloadMismatch) return { kind: "payload_mismatch" };
  if (error instanceof oncegate.Invalid) return of("invalid", error, { field: "field" });
  if (error instanceof oncegate.Internal) return { kind: "internal", message: error.message };
  if (error instanceof OwnError) return of("own", error, { message: "message" });
  // What an AbortSignal throws is no Error of this module's world in every runtime.
  const { name } = (error ?? {}) as { name?: string };
  if (name === "AbortError" || name === "TimeoutError") return { kind: "cancelled" };
  return { kind: "unexpected", message: inspect(error) };
}

function fields<E extends object>(from: E, names: { [word: string]: keyof E }): JsonObject {
  return Object.fromEntries(Object.entries(names).map(([word, name]) => [word, write(from[name])]));
}

type Held = oncegate.Turn | oncegate.Lease;

export function granted(held: Held): Json {
  return { granted: { attempt: attempt(held), fence: write(held.fence), held: held.held } };
}

export function state(held: Held): Json {
  return {
    held: held.held,
    lost: held.lostReason ?? null,
    kept_by: held.keptBy ?? null,
    attempt: attempt(held),
    fence: write(held.fence),
    waiters: held.waiters,
    left_ms: held.leftMs,
    interrupted: held.signal.aborted,
  };
}

function attempt(held: Held): Json {
  return "attempt" in held ? held.attempt : null;
}

/** The deliveries of `mark_all`. */
export function manyDeliveries(step: Step): Delivery[] {
  const { count, team, prefix, repeat, bad, aliases } = step as unknown as {
    count: number;
    team: string;
    prefix: string;
    repeat?: number[];
    bad?: number[];
    aliases?: number;
  };
  return Array.from({ length: count }, (_, index) => {
    const event = bad?.includes(index) ? "" : `${prefix}${repeat?.includes(index) ? 0 : index}`;
    const others = Array.from({ length: aliases ?? 0 }, (_, n) => `${event}:${n}:`.padEnd(512, "x"));
    return new Delivery(team, event, { aliases: others });
  });
}

/** What `markAll` yielded. */
export function marks(given: readonly Delivery[], items: readonly oncegate.MarkItem<Delivery>[]): Json {
  const errors = items.flatMap(({ error }, index) => (error ? [{ index, ...errorFields(error) }] : []));
  const first = items.filter((item) => item.first).length;
  return {
    count: items.length,
    first,
    duplicates: items.length - first - errors.length,
    errors,
    in_order: items.every((item, index) => item.delivery === given[index]),
  };
}
