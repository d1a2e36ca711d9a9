import type { PayloadOptions } from "./delivery.js";
import type { Gate } from "./gate.js";
import type { TurnOptions } from "./options.js";
import { handleOnce } from "./persistence.js";
import * as telegram from "./telegram.js";
import type { Turn } from "./turn.js";

/** What the middleware adds to the context: `Context & TurnFlavor`. */
export interface TurnFlavor {
  turn: Turn;
}

export interface TurnsOptions extends Omit<TurnOptions, "codec"> {
  /** How long an update waits for its chat, or for another run of it. Default: 10 min. */
  readonly wait?: TurnOptions["wait"];
  /** How the update is named. Its `team` is the bot's id by default. */
  readonly delivery?: PayloadOptions | undefined;
}

/** A context of grammY, or of Telegraf. */
interface UpdateContext {
  readonly update: { readonly update_id: number };
  /** grammY: the bot itself. Telegraf: its name. */
  readonly me?: unknown;
  /** Telegraf: the bot itself. */
  readonly botInfo?: { readonly id: number } | undefined;
}

/**
 * A middleware for grammY and Telegraf: each update is handled once, and the updates of a chat one
 * at a time, over all processes. Use it first. It replaces `sequentialize`.
 *
 * An update that is not handled within `wait`, because its chat stays busy or the server is away, is
 * an error of the middleware: over a webhook Telegram then delivers it again.
 */
export function turns(gate: Gate, { delivery: named = {}, ...options }: TurnsOptions = {}) {
  return async (context: UpdateContext, next: () => Promise<unknown>): Promise<void> => {
    const bot = context.botInfo ?? (context.me as { readonly id: number });
    const delivery = telegram.delivery(context.update, { ...named, team: named.team ?? String(bot.id) });
    await handleOnce(gate, delivery, options, async (turn) => {
      Object.assign(context, { turn });
      await next();
    });
  };
}
