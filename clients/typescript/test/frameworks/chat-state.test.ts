import { createMemoryState } from "@chat-adapter/state-memory";
import { type Adapter, Chat, Message, parseMarkdown, type StateAdapter } from "chat";
import { expect, test, vi } from "vitest";
import { type ChatStateOptions, withGate } from "../../src/chat-state.js";
import { Gate, Unavailable } from "../../src/index.js";
import { type StartOptions, startServer } from "../../src/testing.js";
import { eventually } from "./eventually.js";

const seconds = 1000;

/** Two processes with one server. What stays in the inner adapter is not shared. */
async function startProcesses(options: ChatStateOptions = {}, start: StartOptions = {}) {
  const started = await startServer(start);
  const { server } = started;
  const other = new Gate({ ...start.gate, server: server.address });
  const here = withGate(createMemoryState(), started.gate, options);
  const there = withGate(createMemoryState(), other, options);
  await here.connect();
  await there.connect();
  const dispose = async () => {
    await other.close();
    await started[Symbol.asyncDispose]();
  };
  return { here, there, server, [Symbol.asyncDispose]: dispose };
}

const sleep = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

test("one process holds a lock, with a fence that rises", async () => {
  await using processes = await startProcesses();
  const { here, there } = processes;
  const first = await here.acquireLock("slack:C1:1.2", 30 * seconds);
  expect(first).toMatchObject({ threadId: "slack:C1:1.2", token: expect.stringMatching(/./) });
  expect(first?.expiresAt).toBeGreaterThan(Date.now());
  expect(here.fence("slack:C1:1.2")).toBe(first?.fence);
  expect(await here.acquireLock("slack:C1:1.2", 30 * seconds)).toBeNull();
  expect(await there.acquireLock("slack:C1:1.2", 30 * seconds)).toBeNull();
  expect(await there.acquireLock("slack:C1:3.4", 30 * seconds)).not.toBeNull();
  if (first) await here.releaseLock(first);
  expect(here.fence("slack:C1:1.2")).toBeUndefined();
  const second = await there.acquireLock("slack:C1:1.2", 30 * seconds);
  expect(second?.token).not.toBe(first?.token);
  expect(second?.fence).toBeGreaterThan(first?.fence as bigint);
});

test("only its own token releases or extends a lock", async () => {
  await using processes = await startProcesses();
  const { here, there } = processes;
  const stale = await here.acquireLock("t", 30 * seconds);
  if (!stale) throw new Error("not granted");
  await there.forceReleaseLock("t");
  const lock = await there.acquireLock("t", 30 * seconds);
  expect(lock).not.toBeNull();
  for (const token of [stale.token, "fake-token"]) {
    expect(await here.extendLock({ ...stale, token }, 30 * seconds)).toBe(false);
    await here.releaseLock({ ...stale, token });
  }
  expect(here.fence("t")).toBeUndefined();
  expect(await here.acquireLock("t", 30 * seconds)).toBeNull();
  if (lock) expect(await there.extendLock(lock, 30 * seconds)).toBe(true);
});

test("a process extends and releases the lock that another one has acquired", async () => {
  await using processes = await startProcesses();
  const { here, there } = processes;
  const lock = await here.acquireLock("t", 30 * seconds);
  if (!lock) throw new Error("not granted");
  const sent = { threadId: lock.threadId, token: lock.token, expiresAt: lock.expiresAt };
  expect(await there.extendLock(sent, 60 * seconds)).toBe(true);
  await there.releaseLock(sent);
  expect(await there.acquireLock("t", 30 * seconds)).not.toBeNull();
});

test("forceReleaseLock of a lock that is not there does nothing", async () => {
  await using processes = await startProcesses();
  await expect(processes.here.forceReleaseLock("nonexistent")).resolves.toBeUndefined();
});

test("a lock that is not released ends with its TTL", async () => {
  await using processes = await startProcesses();
  const { here, there } = processes;
  await here.acquireLock("t", 1 * seconds);
  expect(await there.acquireLock("t", 1 * seconds)).toBeNull();
  await eventually(async () => expect(await there.acquireLock("t", 30 * seconds)).not.toBeNull());
});

test("a lock of less than a second ends in time for its own process", async () => {
  await using processes = await startProcesses();
  const { here } = processes;
  const lock = await here.acquireLock("t", 900);
  if (!lock) throw new Error("not granted");
  await sleep(900);
  expect(here.fence("t")).toBeUndefined();
  expect(await here.extendLock(lock, 5 * seconds)).toBe(false);
  const next = await here.acquireLock("t", 900);
  await sleep(900);
  const last = await here.acquireLock("t", 5 * seconds);
  expect(last).not.toBeNull();
  expect(new Set([lock, next, last].map((one) => one?.token)).size).toBe(3);
});

test("a lock ends for its holder before it ends at the server, also if it is longer than any lease", async () => {
  await using processes = await startProcesses();
  for (const [ttlMs, longestMs] of [
    [30 * seconds, 30 * seconds],
    [3600 * seconds, 900 * seconds],
  ] as const) {
    const before = Date.now();
    const lock = await processes.here.acquireLock(String(ttlMs), ttlMs);
    expect(lock?.expiresAt).toBeLessThan(before + longestMs);
    expect(lock?.expiresAt).toBeGreaterThan(before + longestMs - 5 * seconds);
  }
});

test("a lock whose answer comes after its end is not granted, and not extended", async () => {
  await using processes = await startProcesses();
  const { here, there, server } = processes;
  const afterMute = async <T>(call: () => Promise<T>) => {
    server.mute();
    const result = call();
    await sleep(1.2 * seconds);
    server.unmute();
    return result;
  };
  expect(await afterMute(() => here.acquireLock("t", 1 * seconds))).toBeNull();
  const lock = await there.acquireLock("t", 30 * seconds);
  if (!lock) throw new Error("the lock that came too late was not released");
  expect(await afterMute(() => there.extendLock(lock, 1 * seconds))).toBe(false);
  expect(there.fence("t")).toBeUndefined();
  expect(await here.acquireLock("t", 30 * seconds)).not.toBeNull();
});

test("an extended lock is held for its new TTL", async () => {
  await using processes = await startProcesses();
  const { here, there } = processes;
  const lock = await here.acquireLock("t", 1 * seconds);
  if (!lock) throw new Error("not granted");
  expect(await here.extendLock(lock, 60 * seconds)).toBe(true);
  await sleep(1.2 * seconds);
  expect(await there.acquireLock("t", 1 * seconds)).toBeNull();
  expect(here.fence("t")).toBe(lock.fence);
});

test("a lock that is kept outlives its TTL, until it is released", async () => {
  await using processes = await startProcesses({ keep: true });
  const { here, there } = processes;
  const lock = await here.acquireLock("t", 3 * seconds);
  if (!lock) throw new Error("not granted");
  await sleep(4 * seconds);
  expect(await there.acquireLock("t", 1 * seconds)).toBeNull();
  await here.releaseLock(lock);
  expect(await there.acquireLock("t", 1 * seconds)).not.toBeNull();
});

test("a lock survives a server that is killed", async () => {
  await using processes = await startProcesses();
  const { here, there, server } = processes;
  const lock = await here.acquireLock("t", 60 * seconds);
  await server.kill();
  await server.restart();
  expect(await there.acquireLock("t", 1 * seconds)).toBeNull();
  if (lock) expect(await here.extendLock(lock, 60 * seconds)).toBe(true);
});

test("setIfNotExists is true for one process", async () => {
  await using processes = await startProcesses();
  const { here, there } = processes;
  const results = await Promise.all(
    [here, there, here].map((state, i) => state.setIfNotExists("k", i, 10_000)),
  );
  expect(results.filter(Boolean)).toHaveLength(1);
  const winner = results.indexOf(true);
  expect(await [here, there, here][winner]?.get("k")).toBe(winner);
});

test("setIfNotExists without a TTL, and keys that are no names of the server", async () => {
  await using processes = await startProcesses();
  const { here, there } = processes;
  for (const key of ["k", "line\nbreak", "é".repeat(300), "é".repeat(301)]) {
    expect(await here.setIfNotExists(key, "first")).toBe(true);
    expect(await here.setIfNotExists(key, "second")).toBe(false);
    expect(await there.setIfNotExists(key, "third")).toBe(false);
    expect(await here.get(key)).toBe("first");
  }
});

test("a key is free again when its TTL ends, and when it is deleted", async () => {
  await using processes = await startProcesses();
  const { here, there } = processes;
  await here.setIfNotExists("short", 1, 10);
  await sleep(20);
  expect(await here.get("short")).toBeNull();
  expect(await here.setIfNotExists("short", 2)).toBe(true);

  await here.setIfNotExists("long", 1, 1 * seconds);
  await eventually(async () => expect(await there.setIfNotExists("long", 2, 60 * seconds)).toBe(true));

  await there.delete("long");
  expect(await here.setIfNotExists("long", 3)).toBe(true);
  await here.delete("unknown");
});

test("a value that was set counts, and a mark is undone if the value cannot be set", async () => {
  await using processes = await startProcesses();
  const { here } = processes;
  await here.set("set", 1);
  expect(await here.setIfNotExists("set", 2)).toBe(false);

  await using started = await startServer();
  const inner = createMemoryState();
  const state = withGate(inner, started.gate);
  await state.connect();
  vi.spyOn(inner, "set").mockRejectedValueOnce(new Error("out of memory"));
  await expect(state.setIfNotExists("k", 1)).rejects.toThrow("out of memory");
  expect(await state.setIfNotExists("k", 1)).toBe(true);
});

test("gates of different consumers do not meet", async () => {
  await using started = await startServer();
  const states = ["a", "b"].map((consumer) =>
    withGate(createMemoryState(), new Gate({ consumer, server: started.server.address })),
  );
  for (const state of states) {
    await state.connect();
    expect(await state.acquireLock("t", 30 * seconds)).not.toBeNull();
    expect(await state.setIfNotExists("k", 1)).toBe(true);
    await state.delete("k");
    expect(await state.setIfNotExists("k", 1)).toBe(true);
  }
});

test("nothing is answered before connect, and disconnect releases what is held", async () => {
  await using processes = await startProcesses();
  const { here, there } = processes;
  await here.acquireLock("t", 60 * seconds);
  await here.disconnect();
  expect(await there.acquireLock("t", 1 * seconds)).not.toBeNull();
  const lock = { threadId: "t", token: "t", expiresAt: 0 };
  for (const call of [
    () => here.acquireLock("t", 1000),
    () => here.extendLock(lock, 1000),
    () => here.releaseLock(lock),
    () => here.forceReleaseLock("t"),
    () => here.setIfNotExists("k", 1),
    () => here.delete("k"),
  ]) {
    await expect(call()).rejects.toThrow("not connected");
  }
});

test("a lock that is granted while the adapter disconnects is released, and one of its own is not extended", async () => {
  await using processes = await startProcesses({ keep: true });
  const { here, there } = processes;
  const acquired = here.acquireLock("a", 60 * seconds);
  await here.disconnect();
  expect(await acquired).toBeNull();
  expect(here.fence("a")).toBeUndefined();
  expect(await there.acquireLock("a", 60 * seconds)).not.toBeNull();

  await here.connect();
  const own = await here.acquireLock("own", 60 * seconds);
  const other = await there.acquireLock("other", 60 * seconds);
  if (!own || !other) throw new Error("not granted");
  const extended = [own, other].map((lock) => here.extendLock(lock, 60 * seconds));
  await here.disconnect();
  expect(await Promise.all(extended)).toEqual([false, true]);
  expect(await there.acquireLock("own", 60 * seconds)).not.toBeNull();
  expect(there.fence("other")).toBe(other.fence);
  expect(await there.acquireLock("other", 60 * seconds)).toBeNull();
});

test("disconnect gives every lock up and disconnects the adapter, also without a server", async () => {
  await using started = await startServer({ gate: { patience: "100ms" } });
  const inner = createMemoryState();
  const state = withGate(inner, started.gate, { keep: true });
  await state.connect();
  for (const thread of ["a", "b"]) await state.acquireLock(thread, 60 * seconds);
  const disconnected = vi.spyOn(inner, "disconnect");
  await started.server.kill();
  await expect(state.disconnect()).rejects.toThrow(Unavailable);
  expect(disconnected).toHaveBeenCalledOnce();
  for (const thread of ["a", "b"]) expect(state.fence(thread)).toBeUndefined();
});

test("the rest is the adapter's own", async () => {
  await using processes = await startProcesses();
  const { here } = processes;
  await here.subscribe("t");
  await here.appendToList("l", 1);
  expect(await here.isSubscribed("t")).toBe(true);
  expect(await here.getList("l")).toEqual([1]);
  expect(await here.queueDepth("t")).toBe(0);
  expect(here).toBeInstanceOf(createMemoryState().constructor);
});

/** A bot of vercel/chat, with as much of a platform as its core asks for. */
async function startChat(state: StateAdapter) {
  const platform = {
    name: "fake",
    userName: "bot",
    initialize: async () => {},
    channelIdFromThreadId: (id: string) => id.split(":").slice(0, 2).join(":"),
    isDM: () => false,
  } as unknown as Adapter;
  const chat = new Chat({ userName: "bot", adapters: { fake: platform }, state, logger: "silent" });
  await chat.initialize();
  const receive = (id: string, text: string) => {
    const author = { userId: "U1", userName: "ann", fullName: "Ann", isBot: false, isMe: false };
    const metadata = { dateSent: new Date(), edited: false };
    const threadId = "fake:C1:1.2";
    const formatted = parseMarkdown(text);
    const raw = {};
    const message = new Message({ id, threadId, text, formatted, author, metadata, raw, attachments: [] });
    return chat.processMessage(platform, threadId, message);
  };
  return { chat, receive };
}

test("two processes of a chat handle a message once, and one at a time", async () => {
  await using processes = await startProcesses();
  const { here, there } = processes;
  const bots = [await startChat(here), await startChat(there)];
  const handled: string[] = [];
  const fences: unknown[] = [];
  let finish!: () => void;
  const finished = new Promise<void>((resolve) => {
    finish = resolve;
  });
  for (const { chat } of bots) {
    chat.onNewMessage(/.*/, async (thread, message) => {
      handled.push(message.id);
      fences.push(here.fence(thread.id) ?? there.fence(thread.id));
      if (message.id === "m1") await finished;
    });
  }
  const first = Promise.all(bots.map(({ receive }) => receive("m1", "hello")));
  await eventually(() => expect(handled).toEqual(["m1"]));
  for (const { receive } of bots.slice(1)) await expect(receive("m2", "again")).rejects.toThrow("lock");
  finish();
  await first;
  await bots[1]?.receive("m3", "at last");
  expect(handled).toEqual(["m1", "m3"]);
  expect(fences.map((fence) => typeof fence)).toEqual(["bigint", "bigint"]);
});
