/**
 * Random runs: handlers of the same events in the same sessions, by several gates, while the server
 * has random faults. The seed repeats a failure: `ONCEGATE_TEST_SEED=7 npx vitest run random-runs`
 */

import { setTimeout as sleep } from "node:timers/promises";
import { Gate, type Outcome, type Turn } from "../../src/index.js";
import { Chance } from "./chance.js";
import { kinds as allKinds, type Fault, team, withFaults } from "./faults.js";
import { type Answer, type Body, HandlerError, History, isSettled, kindOf } from "./history.js";
import type { JsonObject, Store } from "./scenario.js";
import { Testbed } from "./testbed.js";

const ttlMs = 2000;
const graceMs = ttlMs / 2;
const marginMs = ttlMs / 10;
const atOnce = 48;
const gateCount = 6;
const sessionCount = 12;
export const deliveriesOfAnEvent = 3;
const sliceMs = 50;
const pulseMs = 20;
const readingMs = 5;
const settleMs = 240_000; // on a busy machine
const maxAttempts = 4;
/** Of so many events, one fails always. */
const hopelessEvents = 50;

/** One delivery, and what its handler does. */
interface Plan {
  readonly run: number;
  readonly event: string;
  readonly session: string;
  readonly gate: number;
  readonly waitMs: number;
  readonly slices: number;
  readonly checks: boolean;
  readonly fails: boolean;
}

function plan(run: number, event: number, chance: Chance): Plan {
  return {
    run,
    event: `event-${event}`,
    session: `session-${event % sessionCount}`,
    gate: chance.below(gateCount),
    waitMs: chance.of([0, 2000, 5000]),
    slices: chance.of([0, 1, 5, 50]),
    checks: chance.next() < 0.5,
    fails: chance.next() < 0.1 || event % hopelessEvents === 0,
  };
}

/** The deliveries, in a random order that keeps those of an event near each other. */
function plans(runs: number, chance: Chance): Plan[] {
  const deliveries = Array.from({ length: runs }, (_, index) => {
    const event = Math.floor(index / deliveriesOfAnEvent);
    return { event, at: event + chance.between(0, 30) };
  });
  deliveries.sort((one, other) => one.at - other.at);
  return deliveries.map(({ event }, run) => plan(run, event, chance));
}

/** On the clock. It is read anew if time passed between its two readings. */
function trustedEnd(turn: Turn): number {
  for (;;) {
    const before = performance.now();
    const { leftMs } = turn;
    const now = performance.now();
    if (now - before < readingMs) return now + leftMs;
  }
}

/** Records when the event loop stands still, until the returned function is called. */
export function startPulse(history: History): () => void {
  let due = performance.now() + pulseMs;
  const beat = () => {
    history.beat(due);
    due = performance.now() + pulseMs;
  };
  const timer = setInterval(beat, pulseMs);
  return () => {
    clearInterval(timer);
    beat();
  };
}

/** The handler. */
async function handle(turn: Turn, plan: Plan, history: History): Promise<string> {
  const { run, event, session, slices, checks, fails } = plan;
  const entered = performance.now();
  const trustedAtEntry = trustedEnd(turn);
  const fence = turn.fence ?? 0n;
  const known = { run, event, session, attempt: turn.attempt, fence, entered, trustedAtEntry, checks };
  const body: Body = { ...known, writes: [], left: Infinity, trusted: Infinity };
  history.bodies.push(body);
  try {
    for (let slice = 0; slice < slices; slice += 1) {
      await sleep(sliceMs, undefined, checks ? {} : { signal: turn.signal });
      if (!checks) continue;
      const checked = performance.now();
      turn.check();
      body.writes.push({ checked, trusted: trustedEnd(turn) });
    }
  } finally {
    body.left = performance.now();
    body.trusted = trustedEnd(turn);
  }
  if (fails) throw new HandlerError();
  return `run ${run}`;
}

async function deliver(
  planned: readonly Plan[],
  servers: readonly string[],
  history: History,
): Promise<void> {
  history.planned.push(...planned.map(({ run }) => run));
  const gates = Array.from({ length: gateCount }, (_, number) => {
    const server = servers[number % servers.length];
    const times = { ttl: ttlMs, grace: graceMs, patience: "2500ms" } as const;
    return new Gate({ server, ...times, maxAttempts, holder: `gate-${number}` });
  });
  const one = async (plan: Plan): Promise<Answer["outcome"]> => {
    const { event, session, waitMs: wait } = plan;
    const gate = gates[plan.gate] as Gate;
    try {
      const outcome: Outcome<string> = await gate.turn({ team, event, session }, { wait }, (turn) =>
        handle(turn, plan, history),
      );
      return outcome;
    } catch (error) {
      return error as Error;
    }
  };
  const queue = planned.values();
  const worker = async () => {
    for (const plan of queue) {
      const outcome = await one(plan);
      history.answers.push({ run: plan.run, event: plan.event, outcome, at: performance.now() });
    }
  };
  const stopPulse = startPulse(history);
  await Promise.all(Array.from({ length: atOnce }, worker)).finally(stopPulse);
  await Promise.all(gates.map((gate) => gate.close()));
}

/** Delivers what is not settled again and again, as senders do. */
async function settle(runs: number, servers: readonly string[], history: History): Promise<void> {
  const chance = new Chance(runs);
  const deadline = performance.now() + settleMs;
  let next = runs;
  while (performance.now() < deadline) {
    const last = new Map(history.answers.map(({ event, outcome }) => [event, outcome]));
    const open = [...last].filter(([, outcome]) => !isSettled(outcome));
    if (open.length === 0) return;
    const planned = open.map(([event], index) => plan(next + index, Number(event.split("-")[1]), chance));
    next += planned.length;
    await deliver(planned, servers, history);
  }
}

/** What happened in the runs, by kinds. */
export interface Report {
  readonly title: string;
  readonly bodies: number;
  readonly answers: { readonly [kind: string]: number };
  readonly faults: { readonly [kind: string]: number };
  /** Releases by force that ended a lease. */
  readonly forced: number;
  /** What breaks a rule, each with the rule's name. */
  readonly broken: readonly string[];
}

export interface RunOptions {
  readonly kinds?: readonly Fault[];
  /** How many replicas have faults; all by default. */
  readonly faulty?: number;
  /** What is not settled after the faults is delivered again. */
  readonly settles?: boolean;
}

/** Runs them, under faults of these kinds. */
export async function randomRuns(
  store: Store,
  runs: number,
  seed: number,
  options: RunOptions = {},
): Promise<Report> {
  const history = new History(marginMs, maxAttempts);
  const sessions = Array.from({ length: sessionCount }, (_, number) => `session-${number}`);
  const started = performance.now();
  await using testbed = await Testbed.start(store, store === "postgres" ? 2 : 1);
  const { kinds = allKinds, faulty = testbed.replicas.length, settles = true } = options;
  const planned = plans(runs, new Chance(seed));
  const faults = await withFaults({ testbed, seed, history, sessions, kinds, faulty }, () =>
    deliver(planned, testbed.replicas, history),
  );
  if (settles) await settle(planned.length, testbed.replicas, history);
  for (const event of new Set(history.answers.map(({ event }) => event))) {
    history.records.set(event, (await testbed.do("look", { team, event })) as JsonObject);
  }
  const seconds = Math.round((performance.now() - started) / 1000);
  return {
    title: `${store}, seed ${seed}, ${seconds} s`,
    bodies: history.bodies.length,
    answers: counts(history.answers.map(({ outcome }) => kindOf(outcome))),
    faults: counts(faults),
    forced: history.forced.length,
    broken: history.faults(),
  };
}

function counts(names: readonly string[]): { [name: string]: number } {
  const found: { [name: string]: number } = {};
  for (const name of names) found[name] = (found[name] ?? 0) + 1;
  return found;
}
