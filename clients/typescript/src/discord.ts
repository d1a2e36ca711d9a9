import { type Body, type Delivery, type PayloadOptions, platformDelivery } from "./delivery.js";
import type { Busy } from "./errors.js";
import type { Gate } from "./gate.js";
import { Platform } from "./gen/oncegate/v1/delivery_pb.js";
import { type HandleOptions, handleHere } from "./handle.js";
import type { Turn } from "./turn.js";

/** An interaction, a gateway event or a message of Discord, in Discord's own JSON. */
export function delivery(body: Body, options: PayloadOptions = {}): Delivery {
  return platformDelivery(Platform.DISCORD, {}, body, options, { redelivers: false });
}

export interface HandlerOptions<A extends unknown[]> extends HandleOptions {
  /** The event, as for `client.on`. Needed for `messageDelete`: its message looks like a new one. */
  readonly event?: string | undefined;
  /**
   * Called if the channel is busy, before the handler waits: an interaction has to be deferred within
   * 3 s.
   */
  readonly onBusy?: ((...args: [...A, busy: Busy]) => unknown) | undefined;
  /** How the event is named. */
  readonly delivery?: PayloadOptions | undefined;
}

/** Nobody delivers the event again. */
const defaultPatience = "30s";

/**
 * A listener for discord.js whose events are handled once, and those of a channel one at a time, over
 * all processes: `client.on(Events.MessageCreate, handler(gate, async (message, turn) => { … }))`.
 * Events that Discord gives no id, such as reactions, are handled without a turn.
 */
export function handler<A extends unknown[]>(
  gate: Gate,
  handle: (...args: [...A, turn: Turn]) => unknown,
  { event, onBusy, delivery: named, patience = defaultPatience, ...options }: HandlerOptions<A> = {},
): (...args: A) => Promise<void> {
  return async (...args) => {
    const dispatch = toDispatch(event ?? guessEvent(args), args.at(-1) as Subject);
    const reportBusy = onBusy && ((busy: Busy) => onBusy(...args, busy));
    await handleHere(gate, delivery(dispatch, named), { ...options, patience }, reportBusy, async (turn) => {
      await handle(...args, turn);
    });
  };
}

/** What names a message or an interaction of discord.js. */
interface Subject {
  readonly id?: string;
  readonly type?: number | string;
  readonly applicationId?: string | null;
  readonly guildId?: string | null;
  readonly channelId?: string | null;
  readonly channel?: { readonly id: string; readonly type: number; readonly parentId?: string | null } | null;
  readonly author?: { readonly id: string } | null;
  readonly user?: { readonly id: string } | null;
  readonly editedTimestamp?: number | null;
  readonly isRepliable?: unknown;
}

function guessEvent(args: readonly unknown[]): string {
  const subject = args.at(-1) as Subject;
  // Both have the id of an application, but only an interaction can be replied to.
  if (subject.isRepliable) return "interactionCreate";
  if (!subject.author) return "other";
  return args.length > 1 ? "messageUpdate" : "messageCreate";
}

/** The event as the gateway dispatches it, with the fields that name it. */
function toDispatch(event: string, subject: Subject): object {
  const { id, type, channel, author, user, editedTimestamp } = subject;
  return {
    t: event.replace(/[A-Z]/g, "_$&").toUpperCase(),
    d: {
      id,
      type,
      guild_id: subject.guildId ?? undefined,
      channel_id: subject.channelId ?? undefined,
      channel: channel && { id: channel.id, type: channel.type, parent_id: channel.parentId ?? undefined },
      author: author && { id: author.id },
      user: user && { id: user.id },
      edited_timestamp: editedTimestamp ? new Date(editedTimestamp).toISOString() : null,
    },
  };
}
