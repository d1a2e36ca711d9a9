/** Random faults of a testbed. */

import { setTimeout as sleep } from "node:timers/promises";
import type { Chance } from "./chance.js";
import type { History } from "./history.js";
import type { Json, JsonObject } from "./scenario.js";
import type { Testbed } from "./testbed.js";

export const team = "T1";

export type Fault = "kill" | "drain" | "cut" | "hold" | "cutBeforeData" | "mute" | "lose" | "refuse";

/** Cuts are frequent, and so are releases by force, of which not all find a lease. */
export const kinds: readonly Fault[] = [
  "kill",
  "drain",
  "cut",
  "cut",
  "hold",
  "cutBeforeData",
  "cutBeforeData",
  "mute",
  "lose",
  "lose",
  "refuse",
];

/** Does random faults to one replica, one after the other, until they are stopped. */
export class Faults {
  readonly done: Fault[] = [];
  readonly #testbed: Testbed;
  readonly #replica: number;
  readonly #chance: Chance;
  readonly #history: History;
  readonly #sessions: readonly string[];
  readonly #ended: Promise<void>;
  readonly #stop = new AbortController();

  constructor(
    testbed: Testbed,
    replica: number,
    chance: Chance,
    history: History,
    sessions: readonly string[],
  ) {
    this.#testbed = testbed;
    this.#replica = replica;
    this.#chance = chance;
    this.#history = history;
    this.#sessions = sessions;
    this.#ended = this.#run();
    // What goes wrong is thrown by `stop`.
    this.#ended.catch(() => {});
  }

  /** Stops the faults, and leaves the replica sound. */
  async stop(): Promise<void> {
    this.#stop.abort();
    await this.#ended;
    // A cut may still be armed.
    await this.#do("cut");
  }

  async #run(): Promise<void> {
    const next: Fault[] = [];
    for (;;) {
      await this.#pause(50, 500);
      if (this.#stop.signal.aborted) return;
      if (next.length === 0) next.push(...this.#chance.shuffled(kinds)); // so each of them happens
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
        await this.#do("cut", { side: this.#chance.of(["both", "client", "server"]) });
        return;
      case "hold": {
        const direction = this.#chance.of(["both", "to_client", "to_server"]);
        await this.#do("hold", { direction });
        await this.#pause(100, 1500);
        await this.#do("release", { direction });
        return;
      }
      case "cutBeforeData": {
        const direction = this.#chance.of(["to_client", "to_server"]);
        await this.#do("cut_before_data", { direction, skip: this.#chance.below(6) });
        return;
      }
      case "mute":
        await this.#do("mute");
        await this.#pause(100, 1200);
        await this.#do("unmute");
        return;
      case "lose":
        await this.#lose(this.#chance.of(this.#sessions));
        return;
      case "refuse":
        await this.#do("refuse");
        await this.#do("cut");
        await this.#pause(100, 1000);
        await this.#do("accept");
    }
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

  async #pause(low: number, high: number): Promise<void> {
    await sleep(this.#chance.between(low, high), undefined, { signal: this.#stop.signal }).catch(() => {});
  }
}
