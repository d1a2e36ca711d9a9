/** A client in a process of its own, which can be killed, and whose event loop is its own. */

import { fileURLToPath } from "node:url";
import type { Client } from "./client.js";
import { LineProcess } from "./lines.js";
import type { Json, JsonObject, Step } from "./scenario.js";

const main = fileURLToPath(new URL("./child-main.ts", import.meta.url));

export class ChildClient implements Client {
  readonly #process: LineProcess;
  #isAlive = true;

  constructor(name: string, server: string, options: JsonObject) {
    const args = ["--import", "tsx", main, JSON.stringify([name, server, options])];
    this.#process = new LineProcess(process.execPath, args);
  }

  async do(step: Step): Promise<Json> {
    await this.#process.greeting;
    if (!("die" in step)) return this.#process.ask("step", { step });
    this.#process.kill();
    this.#isAlive = false;
    return null;
  }

  async close(): Promise<void> {
    if (this.#isAlive) await this.#process.ask("close");
    await this.#process.close();
  }
}
