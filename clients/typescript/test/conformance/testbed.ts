/** Testbeds: the server behind proxies, and the faults of a scenario. */

import { fileURLToPath } from "node:url";
import { LineProcess } from "./lines.js";
import type { Json, JsonObject, Store } from "./scenario.js";

const target = process.env.CARGO_TARGET_DIR ?? fileURLToPath(new URL("../../../../target", import.meta.url));

/** The testbed program, built by `cargo build --example testbed`. */
export const program = process.env.ONCEGATE_TESTBED ?? `${target}/debug/examples/testbed`;

export class Testbed {
  readonly #process: LineProcess;
  readonly replicas: readonly string[];

  private constructor(process: LineProcess, replicas: readonly string[]) {
    this.#process = process;
    this.replicas = replicas;
  }

  static async start(store: Store, replicas = 1, server: readonly string[] = []): Promise<Testbed> {
    const args = ["--store", store, "--replicas", String(replicas), "--", ...server];
    const started = new LineProcess(program, args);
    const { ready } = await started.greeting;
    return new Testbed(started, (ready as { replicas: string[] }).replicas);
  }

  /** Runs one command. A look at a server that is down is a ProcessError. */
  do(command: string, args: JsonObject = {}): Promise<Json> {
    return this.#process.ask(command, args);
  }

  get log(): string {
    return this.#process.log;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#process.close();
  }
}
