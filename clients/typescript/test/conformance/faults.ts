/** Random faults of a testbed, and of this process. */

import { setTimeout as sleep } from "node:timers/promises";
import { Chance } from "./chance.js";
import type { History } from "./history.js";
import type { Json, JsonObject } from "./scenario.js";
import type { Testbed } from "./testbed.js";

export const team = "T1";

export type Fault =
  | "kill"
  | "drain"
  | "cut"
  | "hold"
  | "cut_before_data"
  | "mute"
  | "lose"
  | "refuse"
  | "pause";

// A fault of one group overlaps those of the others. Cuts are frequent, and so are releases by
// force, of which not all find a lease.
const network: readonly Fault[] = [
  "cut",
  "cut",
  "hold",
  "hold",
  "cut_before_data",
  "cut_before_data",
  "refuse",
];
const server: readonly Fault[] = ["kill", "drain", "mute", "lose", "lose"];
const client: readonly Fault[] = ["pause"];

export const kinds: readonly Fault[] = [...network, ...server, ...client];

const betweenMs = [200, 2000] as const;
const betweenPausesMs = [2000, 5000] as const;

/** Runs the block under faults of these kinds, in so many replicas. Returns what was done. */
export async function withFaults(
  { testbed, seed, history, sessions, kinds, faulty }: FaultSettings,
  block: () => Promise<void>,
): Promise<Fault[]> {
  const replicas = Array.from({ length: faulty }, (_, replica) => replica);
  const groups = replicas.flatMap((replica) => [network, server].map((group) => ({ replica, group })));
  const started = [...groups, { replica: 0, group: client }].flatMap(({ replica, group }, number) => {
    const chosen = group.filter((kind) => kinds.includes(kind));
    const chance = new Chance(seed + 1 + number);
    return chosen.length > 0 ? [new Faults(testbed, replica, chosen, chance, history, sessions)] : [];
  });
  try {
    await block();
  } finally {
    await Promise.all(started.map((faults) => faults.stop()));
    // A cut may still be armed.
    await Promise.all(replicas.map((replica) => testbed.do("cut", { replica })));
  }
  return started.flatMap(({ done }) => done);
}

export interface FaultSettings {
  readonly testbed: Testbed;
  readonly seed: number;
  readonly history: History;
  readonly sessions: readonly string[];
  readonly kinds: readonly Fault[];
  readonly faulty: number;
}

/** Neither timers nor messages are seen meanwhile. */
export function standStill(ms: number): void {
  Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, ms);
}

/** Does random faults of one group, one after the other, until they are stopped. */
class Faults {
  readonly done: Fault[] = [];
  readonly #testbed: Testbed;
  readonly #replica: number;
  readonly #kinds: readonly Fault[];
  readonly #chance: Chance;
  readonly #history: History;
  readonly #sessions: readonly string[];
  readonly #ended: Promise<void>;
  readonly #stop = new AbortController();

  constructor(
    testbed: Testbed,
    replica: number,
    kinds: readonly Fault[],
    chance: Chance,
    history: History,
    sessions: readonly string[],
  ) {
    this.#testbed = testbed;
    this.#replica = replica;
    this.#kinds = kinds;
    this.#chance = chance;
    this.#history = history;
    this.#sessions = sessions;
    this.#ended = this.#run();
    // What goes wrong is thrown by `stop`.
    this.#ended.catch(() => {});
  }

  /** Ends the fault that lasts. Throws what went wrong. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#ended;
  }

  async #run(): Promise<void> {
    const next: Fault[] = [];
    const [least, most] = this.#kinds.includes("pause") ? betweenPausesMs : betweenMs;
    for (;;) {
      await this.#sleep(least, most);
      if (this.#stop.signal.aborted) return;
      if (next.length === 0) next.push(...this.#chance.shuffled(this.#kinds)); // so each of them happens
      const kind = next.pop() as Fault;
      this.done.push(kind);
      await this.#fault(kind);
    }
  }

  async #fault(kind: Fault): Promise<void> {
    switch (kind) {
      case "kill":
      case "drain":
        await this.#do(kind);
        await this.#do("restart", { after_ms: this.#chance.below(600) });
        return;
      case "cut":
        await this.#cut();
        return;
      case "hold": {
        // What is held arrives late, or never.
        const direction = this.#chance.of(["both", "to_client", "to_server"]);
        await this.#do("hold", { direction });
        await this.#sleep(100, 1500);
        if (this.#chance.next() < 0.5) await this.#cut();
        await this.#do("release", { direction });
        return;
      }
      case "cut_before_data": {
        const direction = this.#chance.of(["to_client", "to_server"]);
        await this.#do("cut_before_data", { direction, skip: this.#chance.below(6) });
        return;
      }
      case "mute":
        await this.#do("mute");
        await this.#sleep(100, 1200);
        await this.#do("unmute");
        return;
      case "lose":
        await this.#lose(this.#chance.of(this.#sessions));
        return;
      case "refuse":
        await this.#do("refuse");
        await this.#do("cut");
        await this.#sleep(100, 2500);
        await this.#do("accept");
        return;
      case "pause":
        standStill(this.#chance.between(200, 2000));
    }
  }

  async #cut(): Promise<void> {
    await this.#do("cut", { side: this.#chance.of(["both", "client", "server"]) });
  }

  async #lose(session: string): Promise<void> {
    const answer = (await this.#do("lose", { team, session })) as JsonObject;
    if (!answer.released) return;
    const before = BigInt((answer.fence_before ?? 0) as number);
    this.#history.forced.push({ session, before, after: BigInt(answer.fence as number) });
  }

  #do(command: string, args: JsonObject = {}): Promise<Json> {
    return this.#testbed.do(command, { replica: this.#replica, ...args });
  }

  async #sleep(low: number, high: number): Promise<void> {
    await sleep(this.#chance.between(low, high), undefined, { signal: this.#stop.signal }).catch(() => {});
  }
}
