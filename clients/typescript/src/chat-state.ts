import { createHash, randomUUID } from "node:crypto";
import {
  create,
  type DescMessage,
  type DescMethodUnary,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import { CallError } from "./call-error.js";
import { Session } from "./delivery.js";
import { OncegateError } from "./errors.js";
import type { Gate } from "./gate.js";
import { AdminService } from "./gen/oncegate/v1/admin_service_pb.js";
import { IdempotencyService } from "./gen/oncegate/v1/idempotency_service_pb.js";
import { marginMs } from "./keeping.js";
import { patientCall } from "./retry.js";
import { toDuration } from "./time.js";
import { cutLease } from "./wire.js";

export interface ChatStateOptions {
  /** The tenant of the locks and keys. Default: "chat". */
  readonly team?: string | undefined;
  /**
   * Renews a lock until it is released, so that a handler may run for longer than its TTL. Default: a
   * lock ends with its TTL.
   */
  readonly keep?: boolean | undefined;
}

/** A lock of vercel/chat. */
export interface Lock {
  threadId: string;
  token: string;
  expiresAt: number;
}

/** A lock of `acquireLock`. */
export interface FencedLock extends Lock {
  /** The fencing token, to be sent with each write. */
  readonly fence: bigint;
}

/** What `withGate` needs of a state adapter. */
export interface InnerState {
  connect(): Promise<void>;
  disconnect(): Promise<void>;
  get(key: string): Promise<unknown>;
  set(key: string, value: unknown, ttlMs?: number): Promise<void>;
  setIfNotExists(key: string, value: unknown, ttlMs?: number): Promise<boolean>;
  delete(key: string): Promise<void>;
}

/** What `withGate` adds to a state adapter. */
export interface GatedState {
  acquireLock(threadId: string, ttlMs: number): Promise<FencedLock | null>;
  extendLock(lock: Lock, ttlMs: number): Promise<boolean>;
  releaseLock(lock: Lock): Promise<void>;
  forceReleaseLock(threadId: string): Promise<void>;
  /** The fencing token of the lock that this process holds on the thread. */
  fence(threadId: string): bigint | undefined;
}

/**
 * A state adapter for vercel/chat whose locks are leases and whose `setIfNotExists` is a mark: exact
 * over crashes and replicas of the server. Values, lists, queues and subscriptions stay in the given
 * adapter.
 *
 * Locks and marks of oncegate last 1 s or longer. A shorter lock ends in time for this process, and
 * after 1 s for others; a key with a shorter TTL stays in the given adapter. Marks last 30 days at most.
 */
export function withGate<A extends InnerState>(
  adapter: A,
  gate: Gate,
  options: ChatStateOptions = {},
): Omit<A, keyof GatedState> & GatedState {
  const gated = new GatedAdapter(adapter, gate, options);
  return new Proxy(adapter, {
    get(_, name) {
      const owner = Object.hasOwn(GatedAdapter.prototype, name) ? gated : adapter;
      const value = Reflect.get(owner, name, owner);
      return typeof value === "function" ? value.bind(owner) : value;
    },
  }) as A & GatedState;
}

/** The limits of the server. */
const shortestMs = 1000;
const longestMarkMs = 30 * 24 * 3_600_000;
const longestName = 512;

const notFound = 5;

interface Held {
  readonly lock: FencedLock;
  /** When it ends, on the clock of the gate. */
  end: number;
  readonly timer: NodeJS.Timeout | undefined;
}

class GatedAdapter implements Omit<InnerState, "get" | "set">, GatedState {
  readonly #inner: InnerState;
  readonly #gate: Gate;
  readonly #team: string;
  readonly #keep: boolean;
  /** The locks of this process, by thread. */
  readonly #held = new Map<string, Held>();
  #isConnected = false;

  constructor(inner: InnerState, gate: Gate, { team = "chat", keep = false }: ChatStateOptions) {
    this.#inner = inner;
    this.#gate = gate;
    this.#team = team;
    this.#keep = keep;
  }

  async connect(): Promise<void> {
    await this.#inner.connect();
    this.#isConnected = true;
  }

  async disconnect(): Promise<void> {
    this.#isConnected = false; // a lock that is granted from now on is released by its call
    const locks = [...this.#held.values()].map(({ lock }) => lock);
    const released = await Promise.allSettled(locks.map((lock) => this.#release(lock)));
    await this.#inner.disconnect();
    for (const release of released) if (release.status === "rejected") throw release.reason;
  }

  async acquireLock(threadId: string, ttlMs: number): Promise<FencedLock | null> {
    this.#refuseUnlessConnected();
    const before = this.#held.get(threadId);
    if (before && this.#isOver(before.end)) await this.#release(before.lock);
    const { core } = this.#gate.internals;
    const end = core.clock.now() + trustedMs(ttlMs);
    const expiresAt = Date.now() + trustedMs(ttlMs);
    const { outcome } = await this.#call(IdempotencyService.method.acquireSessionLease, {
      session: this.#session(threadId),
      holder: core.holder,
      requestId: randomUUID(),
      ttl: toLeaseTtl(ttlMs),
    });
    if (outcome.case !== "lease") return null;
    const { leaseId, fencingToken } = outcome.value;
    const lock = { threadId, token: leaseId, expiresAt, fence: fencingToken };
    if (this.#isOver(end) || !this.#isConnected) {
      await this.#release(lock);
      return null;
    }
    this.#drop(threadId); // its lease was freed by an operator
    const renew = () => void this.extendLock(lock, ttlMs).catch(() => {});
    const timer = this.#keep ? setInterval(renew, cutLease(ttlMs) / 3).unref() : undefined;
    this.#held.set(threadId, { lock, end, timer });
    return lock;
  }

  async extendLock(lock: Lock, ttlMs: number): Promise<boolean> {
    this.#refuseUnlessConnected();
    const held = this.#heldAs(lock);
    if (held && this.#isOver(held.end)) {
      await this.#release(lock);
      return false;
    }
    const end = this.#gate.internals.core.clock.now() + trustedMs(ttlMs);
    const isHeld = await this.#unlessRefused(isNotHeld, IdempotencyService.method.renewSessionLease, {
      session: this.#session(lock.threadId),
      leaseId: lock.token,
      ttl: toLeaseTtl(ttlMs),
    });
    if (!isHeld) {
      this.#drop(lock.threadId, lock);
      return false;
    }
    if (this.#isOver(end)) {
      await this.#release(lock);
      return false;
    }
    if (!held) return true;
    held.end = end;
    return this.#heldAs(lock) === held; // it may have been released in the meantime
  }

  async releaseLock(lock: Lock): Promise<void> {
    this.#refuseUnlessConnected();
    await this.#release(lock);
  }

  async forceReleaseLock(threadId: string): Promise<void> {
    this.#refuseUnlessConnected();
    this.#drop(threadId);
    await this.#call(AdminService.method.forceReleaseSessionLease, {
      session: this.#session(threadId),
      actor: this.#gate.internals.core.holder,
      reason: "forceReleaseLock of a chat",
    });
  }

  fence(threadId: string): bigint | undefined {
    const held = this.#held.get(threadId);
    return held && !this.#isOver(held.end) ? held.lock.fence : undefined;
  }

  async setIfNotExists(key: string, value: unknown, ttlMs?: number): Promise<boolean> {
    this.#refuseUnlessConnected();
    if (ttlMs !== undefined && ttlMs < shortestMs) return this.#inner.setIfNotExists(key, value, ttlMs);
    // A value that `set` has left counts too. It does not have to be exact: the mark decides.
    if ((await this.#inner.get(key)) !== null) return false;
    const ttl = Math.min(ttlMs ?? longestMarkMs, longestMarkMs);
    const { first } = await this.#gate.mark({ team: this.#team, event: toName(key), ttl });
    if (!first) return false;
    try {
      await this.#inner.set(key, value, ttlMs);
    } catch (error) {
      await this.#forget(key);
      throw error;
    }
    return true;
  }

  async delete(key: string): Promise<void> {
    this.#refuseUnlessConnected();
    await this.#inner.delete(key);
    await this.#forget(key);
  }

  async #release(lock: Lock): Promise<void> {
    this.#drop(lock.threadId, lock);
    await this.#unlessRefused(isNotHeld, IdempotencyService.method.releaseSessionLease, {
      session: this.#session(lock.threadId),
      leaseId: lock.token,
    });
  }

  async #forget(key: string): Promise<void> {
    const { core, consumers } = this.#gate.internals;
    await this.#unlessRefused(({ code }) => code === notFound, AdminService.method.forgetEvent, {
      event: {
        teamId: this.#team,
        key: { case: "eventId", value: toName(key) },
        consumer: consumers.event,
      },
      actor: core.holder,
      reason: "delete of a chat",
    });
  }

  #session(threadId: string) {
    return new Session(this.#team, toName(threadId)).toKey(this.#gate.internals.consumers.session);
  }

  #isOver(end: number): boolean {
    return end <= this.#gate.internals.core.clock.now();
  }

  #heldAs({ threadId, token }: Lock): Held | undefined {
    const held = this.#held.get(threadId);
    return held?.lock.token === token ? held : undefined;
  }

  /** Forgets the lock of the thread, or this one alone. */
  #drop(threadId: string, lock?: Lock): void {
    const held = lock ? this.#heldAs(lock) : this.#held.get(threadId);
    if (!held) return;
    clearInterval(held.timer);
    this.#held.delete(threadId);
  }

  #refuseUnlessConnected(): void {
    if (!this.#isConnected)
      throw new OncegateError("the state adapter is not connected; call connect() first");
  }

  async #call<I extends DescMessage, O extends DescMessage>(
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
  ): Promise<MessageShape<O>> {
    const { core, patienceMs } = this.#gate.internals;
    return patientCall(core, method, create(method.input, request), patienceMs);
  }

  /** False if the server refuses the call for this reason. */
  async #unlessRefused<I extends DescMessage, O extends DescMessage>(
    isReason: (error: CallError) => boolean,
    method: DescMethodUnary<I, O>,
    request: MessageInitShape<I>,
  ): Promise<boolean> {
    try {
      await this.#call(method, request);
      return true;
    } catch (error) {
      const cause = error instanceof OncegateError ? error.cause : undefined;
      if (cause instanceof CallError && isReason(cause)) return false;
      throw error;
    }
  }
}

/** Whether the token is not that of the current lease, or of any. */
function isNotHeld({ lost, field }: CallError): boolean {
  return lost !== undefined || field === "lease_id";
}

/** How long a lock may be relied on, from the moment that it is asked for. */
function trustedMs(ttlMs: number): number {
  const grantedMs = cutLease(ttlMs);
  return grantedMs - marginMs(grantedMs);
}

function toLeaseTtl(ttlMs: number) {
  return toDuration(cutLease(Math.max(ttlMs, shortestMs)));
}

/** A key as a name of the server, which is limited in length and in characters. */
function toName(key: string): string {
  if (Buffer.byteLength(key) <= longestName && !/\p{Cc}/u.test(key)) return key;
  return `sha256:${createHash("sha256").update(key).digest("hex")}`;
}
