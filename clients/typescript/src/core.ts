import { debuglog } from "node:util";
import { describe } from "./describe.js";
import type { LostReason } from "./errors.js";
import type { Hold, Owner } from "./hold.js";
import type { Hooks } from "./options.js";
import type { Clock } from "./time.js";
import type { Transport } from "./transport.js";

/** What the parts of one gate share. */
export class Core implements Owner {
  /** The turns and leases that are open. */
  readonly holds = new Set<Hold>();
  readonly #hooks: Hooks;
  #whenIdle: (() => void)[] = [];
  /** Shown with NODE_DEBUG=oncegate. */
  readonly debug = debuglog("oncegate");
  readonly #warned = new Set<string>();

  constructor(
    readonly transport: Transport,
    readonly clock: Clock,
    hooks: Hooks,
    readonly holder: string,
  ) {
    this.#hooks = hooks;
  }

  opened(hold: Hold): void {
    this.holds.add(hold);
  }

  ended(hold: Hold): void {
    this.holds.delete(hold);
    if (this.holds.size > 0) return;
    for (const resolve of this.#whenIdle) resolve();
    this.#whenIdle = [];
  }

  /** Resolves when no turn and no lease is open. */
  idle(): Promise<void> {
    if (this.holds.size === 0) return Promise.resolve();
    return new Promise((resolve) => this.#whenIdle.push(resolve));
  }

  lost(reason: LostReason): void {
    this.warn(`lost:${reason}`, `a turn or lease was lost (${reason}); its scope is cancelled`);
    this.notify((hooks) => hooks.onLost?.(reason));
  }

  /** Calls a hook. What it throws is a warning, also if it is asynchronous: it must not stop what it watches. */
  notify(call: (hooks: Hooks) => unknown): void {
    const warn = (error: unknown) => this.warn("hook", `a hook of the gate threw ${describe(error)}`);
    try {
      void Promise.resolve(call(this.#hooks)).catch(warn);
    } catch (error) {
      warn(error);
    }
  }

  /** A warning of the process, once for each key. */
  warn(key: string, message: string): void {
    if (this.#warned.has(key)) this.debug(message);
    else this.report(message);
    this.#warned.add(key);
  }

  /** A warning of the process. */
  report(message: string): void {
    this.debug(message);
    process.emitWarning(message, "OncegateWarning");
  }
}
