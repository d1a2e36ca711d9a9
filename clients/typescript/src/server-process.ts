import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import type { Writable } from "node:stream";

const hint = "install @oncegate/server, or set ONCEGATE_BINARY to the binary's path";

/**
 * Kills the process whose id it read last, if any, and removes the folder, when its stdin closes: also if the
 * tests were killed. Ctrl-C in a terminal is a signal to it as well, and it must outlive the tests.
 */
const WATCHDOG = `trap '' INT TERM HUP; while read -r line; do pid=$line; done; [ -z "$pid" ] || kill -9 "$pid"; rm -rf -- "$1"`;

/** A server process with a database in a temporary folder. Neither outlives the process that started it. */
export class ServerProcess {
  /** Where the server listens; the same after a restart. */
  readonly address: string;
  /** The folder of the database. */
  readonly folder: string;
  readonly #command: readonly string[];
  readonly #watchdog: ChildProcess;
  #child: ChildProcess;

  private constructor(folder: string, command: readonly string[], watchdog: ChildProcess, started: Serving) {
    this.folder = folder;
    this.#command = command;
    this.#watchdog = watchdog;
    this.#child = started.child;
    this.address = started.address;
  }

  static async start(binary: string, args: readonly string[]): Promise<ServerProcess> {
    const folder = await mkdtemp(join(tmpdir(), "oncegate-test-"));
    const database = `sqlite://${join(folder, "oncegate.db")}`;
    const command = [binary, "serve", "--database-url", database, "--lame-duck", "0s", ...args];
    const watchdog = spawn("sh", ["-c", WATCHDOG, "sh", folder], { stdio: ["pipe", "ignore", "ignore"] });
    letExit(watchdog);
    try {
      return new ServerProcess(folder, command, watchdog, await serve(command, "127.0.0.1:0", watchdog));
    } catch (error) {
      await end(watchdog);
      throw error;
    }
  }

  /** Sends a signal: SIGTERM drains, SIGSTOP mutes, SIGCONT unmutes. */
  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  /** Kills the server. Resolves when it is gone. */
  async kill(): Promise<void> {
    this.signal("SIGKILL");
    await exited(this.#child);
  }

  /** Starts the server again, on the same address and database, after it has ended. Resolves when it serves. */
  async restart(): Promise<void> {
    await exited(this.#child);
    this.#child = (await serve(this.#command, this.address, this.#watchdog)).child;
  }

  /** Kills the server and removes its database. */
  async stop(): Promise<void> {
    await end(this.#watchdog);
    await exited(this.#child);
  }
}

interface Serving {
  child: ChildProcess;
  address: string;
}

/** Starts a server. Resolves when it serves. */
async function serve(command: readonly string[], listen: string, watchdog: ChildProcess): Promise<Serving> {
  const [binary, ...args] = command as [string, ...string[]];
  const child = spawn(binary, [...args, "--listen", listen], {
    env: ownEnvironment(),
    stdio: ["ignore", "pipe", "pipe"],
  });
  const guard = watchdog.stdin as Writable;
  if (child.pid !== undefined) guard.write(`${child.pid}\n`);
  // Another process may get its id.
  child.once("exit", () => guard.writable && guard.write("\n"));
  const log: string[] = [];
  createInterface({ input: child.stderr as NodeJS.ReadableStream }).on("line", (line) => log.push(line));
  const output = createInterface({ input: child.stdout as NodeJS.ReadableStream });
  const address = await new Promise<string>((resolve, reject) => {
    output.on("line", (line) => {
      const found = / listens on (\S+)$/.exec(line)?.[1];
      if (found) resolve(found);
    });
    child.once("error", (cause) => reject(new Error(`cannot start ${binary}; ${hint}`, { cause })));
    child.once("exit", () => reject(new Error(`${binary} ended before it served:\n${log.join("\n")}`)));
  });
  letExit(child);
  return { child, address };
}

/** Without the settings of other servers. */
function ownEnvironment(): NodeJS.ProcessEnv {
  return Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("ONCEGATE_")));
}

/** Lets this process end while the child runs. */
function letExit(child: ChildProcess): void {
  child.unref();
  for (const stream of child.stdio) (stream as { unref?: () => void } | null)?.unref?.();
}

async function end(watchdog: ChildProcess): Promise<void> {
  (watchdog.stdin as Writable).end();
  await exited(watchdog);
}

async function exited(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) {
    child.ref();
    await once(child, "exit");
  }
}
