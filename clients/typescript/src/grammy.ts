import type { PayloadOptions } from "./delivery.js";
import type { Busy } from "./errors.js";
import type { Gate } from "./gate.js";
import { type HandleOptions, handleHere } from "./handle.js";
import * as telegram from "./telegram.js";
import type { Turn } from "./turn.js";

/** What the middleware adds to the context: `Context & TurnFlavor`. */
export interface TurnFlavor {
  turn: Turn;
}

export interface TurnsOptions<C> extends HandleOptions {
  /** Called if the chat is busy, before the update waits. */
  readonly onBusy?: ((context: C, busy: Busy) => unknown) | undefined;
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
 * An update that is not handled within `wait`, because its chat stays busy or the server is unavailable, is
 * an error of the middleware: over a webhook Telegram then delivers it again.
 */
export function turns<C extends UpdateContext>(
  gate: Gate,
  { delivery: named = {}, onBusy, ...options }: TurnsOptions<C> = {},
): (context: C, next: () => Promise<unknown>) => Promise<void> {
  return async (context, next) => {
    const bot = context.botInfo ?? (context.me as { readonly id: number });
    const delivery = telegram.delivery(context.update, { ...named, team: named.team ?? String(bot.id) });
    const reportBusy = onBusy && ((busy: Busy) => onBusy(context, busy));
    await handleHere(gate, delivery, options, reportBusy, async (turn) => {
      Object.assign(context, { turn });
      await next();
    });
  };
}
