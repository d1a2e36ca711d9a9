/** A process that is asked by lines of JSON on its standard input, and answers by lines. */

import { type ChildProcessByStdio, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import type { Json, JsonObject } from "./scenario.js";

/** How much of the standard error is kept for a failure's report. */
const logBytes = 20_000;
const exitMs = 20_000;

export class ProcessError extends Error {}

interface Waiting {
  resolve(result: Json): void;
  reject(error: ProcessError): void;
}

export class LineProcess {
  readonly #child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly #waiting = new Map<number, Waiting>();
  readonly greeting: Promise<JsonObject>;
  #nextId = 1;
  #log = "";
  /** Why nothing is answered any more. */
  #ended: ProcessError | undefined;

  constructor(command: string, args: readonly string[], env: NodeJS.ProcessEnv = process.env) {
    this.#child = spawn(command, args, { env, stdio: ["pipe", "pipe", "pipe"] });
    this.#child.stderr.on("data", (data) => {
      this.#log = (this.#log + data).slice(-logBytes);
    });
    // Writing to a process that is gone fails the question when its output ends.
    this.#child.stdin.on("error", () => {});
    this.greeting = new Promise((resolve, reject) => {
      createInterface(this.#child.stdout)
        .once("line", (line) => resolve(JSON.parse(line)))
        .on("line", (line) => this.#answer(JSON.parse(line)))
        .on("close", () => {
          reject(new ProcessError(`${command} ended before it was ready:\n${this.#log}`));
          this.#end(new ProcessError(`${command} has ended`));
        });
      this.#child.on("error", reject);
    });
  }

  get log(): string {
    return this.#log;
  }

  ask(command: string, args: JsonObject = {}): Promise<Json> {
    const id = this.#nextId;
    this.#nextId += 1;
    if (this.#ended) return Promise.reject(this.#ended);
    return new Promise((resolve, reject) => {
      this.#waiting.set(id, { resolve, reject });
      this.#child.stdin.write(`${JSON.stringify({ id, do: command, ...args })}\n`);
    });
  }

  kill(): void {
    this.#child.kill("SIGKILL");
  }

  /** Ends its input, upon which it exits. */
  async close(): Promise<void> {
    if (this.#child.exitCode !== null || this.#child.signalCode !== null) return;
    const timer = setTimeout(() => this.kill(), exitMs);
    const exit = once(this.#child, "exit");
    this.#child.stdin.end();
    await exit;
    clearTimeout(timer);
  }

  #answer({ id, ok, error }: JsonObject): void {
    const waiting = this.#waiting.get(id as number);
    this.#waiting.delete(id as number);
    if (error === undefined) waiting?.resolve(ok ?? null);
    else waiting?.reject(new ProcessError(String(error)));
  }

  #end(why: ProcessError): void {
    this.#ended = why;
    for (const { reject } of this.#waiting.values()) reject(why);
    this.#waiting.clear();
  }
}
