import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { type DeliverySchema, Platform } from "./gen/oncegate/v1/delivery_pb.js";
import { type EventKey, EventKeySchema } from "./gen/oncegate/v1/event_pb.js";
import { type SessionKey, SessionKeySchema, SessionScope } from "./gen/oncegate/v1/session_pb.js";
import { type Time, toMs } from "./time.js";

type EventName =
  | { case: "eventId"; value: string }
  | { case: "slackPayload"; value: Uint8Array }
  | { case: "delivery"; value: MessageInitShape<typeof DeliverySchema> };

type SessionName = NonNullable<MessageInitShape<typeof SessionKeySchema>["key"]>;

/** How much of a conversation is one session. */
export type Scope = "thread" | "channel" | "user";

const scopes = {
  thread: SessionScope.THREAD,
  channel: SessionScope.CHANNEL,
  user: SessionScope.USER,
} as const;

/** A conversation of one tenant. */
export class Session {
  readonly team: string;
  readonly #name: SessionName;

  constructor(team: string, id: string);
  /** @internal */
  constructor(team: string, name: SessionName);
  constructor(team: string, name: string | SessionName) {
    this.team = team;
    this.#name = typeof name === "string" ? { case: "sessionId", value: name } : name;
  }

  /** A channel's thread, as Slack deliveries name it. */
  static thread(team: string, channel: string, ts: string): Session {
    return new Session(team, { case: "thread", value: { channelId: channel, threadTs: ts } });
  }

  /** @internal */
  toKey(consumer: string): SessionKey {
    return create(SessionKeySchema, { teamId: this.team, key: this.#name, consumer });
  }
}

/** A session, or what makes one. */
export type SessionInit =
  | Session
  | { readonly team: string; readonly session: string }
  | { readonly team: string; readonly thread: readonly [channel: string, ts: string] };

export function toSession(init: SessionInit): Session {
  if (init instanceof Session) return init;
  return "thread" in init ? Session.thread(init.team, ...init.thread) : new Session(init.team, init.session);
}

export interface PayloadOptions {
  /** The tenant, for platforms whose deliveries do not name one. */
  readonly team?: string | undefined;
  /** The conversation; `null`: none. Default: the one that the delivery names. */
  readonly session?: Session | string | null | undefined;
  /** How much of the delivery's conversation is one session. Default: the thread. */
  readonly scope?: Scope | undefined;
  /** Other names of the same event, beside those that the payload yields. */
  readonly aliases?: readonly string[] | undefined;
  /** How long the event stays handled. Default: as long as the sender may deliver it again. */
  readonly ttl?: Time | undefined;
  /** For Slack interactions: every click is an event of its own. */
  readonly eachUse?: boolean | undefined;
  /** The application that handles the event. Default: the gate's. */
  readonly consumer?: string | undefined;
  /** Whether the sender delivers again what was not acknowledged. */
  readonly redelivers?: boolean | undefined;
}

export interface DeliveryOptions extends Omit<PayloadOptions, "team" | "scope"> {
  /** Another payload under the same name is a `PayloadMismatch`. */
  readonly digest?: Uint8Array | undefined;
}

/** A delivery, or what makes one. */
export type DeliveryInit = Delivery | (DeliveryOptions & { readonly team: string; readonly event: string });

/** What came in: the names of the event, its conversation, and whether its sender redelivers. */
export class Delivery {
  /** The tenant; empty if the payload names it. */
  readonly team: string;
  /** The platform, such as "slack"; "event" if the event was named by hand. */
  readonly kind: string;
  /** Whether the sender delivers again what was not acknowledged. */
  readonly redelivers: boolean;
  /** How long the event stays handled; undefined: as the server chooses, 24 h. */
  readonly ttlMs: number | undefined;
  readonly digest: Uint8Array;
  readonly consumer: string | undefined;
  readonly #name: EventName;
  readonly #session: Session | undefined;
  readonly #options: DeliveryOptions;

  /** An event that is named by hand, such as by an `Idempotency-Key`. */
  constructor(team: string, event: string, options?: DeliveryOptions);
  /** @internal */
  constructor(team: string, event: EventName, options: DeliveryOptions, kind: string);
  constructor(team: string, event: string | EventName, options: DeliveryOptions = {}, kind = "event") {
    const { session, ttl } = options;
    this.team = team;
    this.kind = kind;
    this.redelivers = options.redelivers ?? true;
    this.ttlMs = ttl === undefined ? undefined : toMs(ttl, "ttl");
    this.digest = options.digest ?? new Uint8Array();
    this.consumer = options.consumer;
    this.#name = typeof event === "string" ? { case: "eventId", value: event } : event;
    this.#session = typeof session === "string" ? new Session(team, session) : (session ?? undefined);
    this.#options = options;
  }

  /**
   * The body of a Slack delivery, or a delivery of another platform, which the server reads.
   * @internal
   */
  static payload(
    kind: string,
    name: Exclude<EventName, { case: "eventId" }>,
    { team = "", scope, ...options }: PayloadOptions,
  ): Delivery {
    const session =
      options.session === undefined
        ? new PayloadSession(name.case === "slackPayload" ? slackConversation : otherConversation, scope)
        : options.session;
    return new Delivery(team, name, { ...options, session }, kind);
  }

  /**
   * The event alone.
   * @internal
   */
  withoutSession(): Delivery {
    return new Delivery(this.team, this.#name, { ...this.#options, session: null }, this.kind);
  }

  /** @internal */
  toEventKey(consumer: string): EventKey {
    return create(EventKeySchema, {
      teamId: this.team,
      key: this.#name,
      aliases: [...(this.#options.aliases ?? [])],
      consumer: this.consumer ?? consumer,
      eachUse: this.#options.eachUse ?? false,
    });
  }

  /** @internal */
  toSessionKey(consumer: string): SessionKey | undefined {
    return this.#session?.toKey(consumer);
  }
}

// An empty payload stands for that of the event.
const slackConversation: SessionName = { case: "slackPayload", value: new Uint8Array() };
const otherConversation: SessionName = { case: "delivery", value: {} };

class PayloadSession extends Session {
  readonly #scope: SessionScope;

  constructor(name: SessionName, scope: Scope | undefined) {
    super("", name);
    this.#scope = scope ? scopes[scope] : SessionScope.UNSPECIFIED;
  }

  override toKey(consumer: string): SessionKey {
    return Object.assign(super.toKey(consumer), { scope: this.#scope });
  }
}

export function toDelivery(init: DeliveryInit): Delivery {
  if (init instanceof Delivery) return init;
  const { team, event, ...options } = init;
  return new Delivery(team, event, options);
}

/** A body as a framework hands it over. */
export type Body = string | Uint8Array | object;

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** The server takes at most 256 KiB, but GitHub sends up to 25 MB. */
const largestBody = 200 * 1024;
/** Longer texts and later elements are no part of a name. */
const longestText = 1024;
const mostElements = 16;

/** The body as it is sent to the server. */
export function toBytes(body: Body): Uint8Array {
  if (body instanceof Uint8Array) return shrink(body);
  return shrink(encoder.encode(typeof body === "string" ? body : JSON.stringify(body)));
}

/** Leaves out of a large JSON body what the server does not read. Any other body stays as it is. */
function shrink(body: Uint8Array): Uint8Array {
  if (body.length <= largestBody) return body;
  const cut = (_: string, value: unknown) => {
    if (typeof value === "string") return value.length > longestText ? "" : value;
    return Array.isArray(value) ? value.slice(0, mostElements) : value;
  };
  try {
    return encoder.encode(JSON.stringify(JSON.parse(decoder.decode(body), cut)));
  } catch {
    return body;
  }
}

/** Headers as a framework hands them over. */
export type HeaderInit =
  | Iterable<readonly [string, string]>
  | { readonly [name: string]: string | readonly string[] | undefined };

/** The header by its name in lower case. */
export function header(headers: HeaderInit, wanted: string): string | undefined {
  const pairs = Symbol.iterator in headers ? headers : Object.entries(headers);
  for (const [name, value] of pairs as Iterable<readonly [string, string | readonly string[] | undefined]>) {
    if (name.toLowerCase() === wanted) return typeof value === "object" ? value[0] : value;
  }
  return undefined;
}

/** A delivery that the server reads by the rules of its platform. */
export function platformDelivery(
  platform: Platform,
  headers: { [name: string]: string },
  body: Body,
  options: PayloadOptions,
  defaults: Pick<PayloadOptions, "ttl" | "redelivers"> = {},
): Delivery {
  const kind = Platform[platform].toLowerCase();
  const ttl = options.ttl ?? defaults.ttl;
  const redelivers = options.redelivers ?? defaults.redelivers;
  return Delivery.payload(
    kind,
    { case: "delivery", value: { platform, headers, body: toBytes(body) } },
    { ...options, ttl, redelivers },
  );
}
