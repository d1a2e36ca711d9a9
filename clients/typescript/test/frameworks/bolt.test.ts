import { Assistant } from "@slack/bolt";
import { expect, test, vi } from "vitest";
import { Reject, Session } from "../../src/index.js";
import * as slack from "../../src/slack.js";
import { startServer } from "../../src/testing.js";
import { eventually } from "./eventually.js";
import { payload } from "./payloads.js";
import { startApp } from "./slack-app.js";

const message = payload("slack", "message").body;
const mention = payload("slack", "app_mention of the same message: has two names in common with it").body;
const thread = new Session("T1", "T1:C1:1700000001.000100");

/** A promise, and what resolves it. */
function gateway() {
  let open!: () => void;
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { opened, open };
}

test("a listener runs in the turn of its event", async () => {
  await using started = await startServer();
  const { gate, server } = started;
  await using bot = await startApp(gate);
  const seen: unknown[] = [];
  bot.app.message("hi", async ({ context, message: { channel } }) => {
    seen.push(channel, context.turn?.held, context.turn?.attempt, typeof context.turn?.fence);
    seen.push((await server.turns("T1")).length);
  });
  expect(await bot.deliver(message)).toMatchObject({ status: 200 });
  await eventually(() => expect(seen).toEqual(["C1", true, 1, "bigint", 1]));
  await eventually(async () => {
    expect(await gate.seen(slack.delivery(message))).toMatchObject({ outcome: "SUCCEEDED" });
  });
});

test("a duplicate is acknowledged and reaches no listener", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const listener = vi.fn(async () => {});
  bot.app.message(listener);
  bot.app.event("app_mention", listener);
  expect(await bot.deliver(message)).toMatchObject({ status: 200 });
  await eventually(async () => expect(await started.server.turns()).toEqual([]));
  expect(await bot.deliver(message, 1)).toMatchObject({ status: 200 });
  expect(await bot.deliver(mention)).toMatchObject({ status: 200 });
  expect(listener).toHaveBeenCalledTimes(1);
});

test("an event that no listener matches is acknowledged, and has no turn", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const listener = vi.fn(async () => {});
  bot.app.message("something else", listener);
  bot.app.event("app_mention", listener);
  expect(await bot.deliver(message)).toMatchObject({ status: 200 });
  expect(await started.gate.seen(slack.delivery(message))).toMatchObject({ state: "NOT_SEEN", attempt: 0 });
  expect(listener).not.toHaveBeenCalled();
  expect(await bot.deliver(mention)).toMatchObject({ status: 200 });
  expect(listener).toHaveBeenCalledOnce();
});

test("all listeners that match share one turn, which ends after the last", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const { opened, open } = gateway();
  const ids = new Set<string | undefined>();
  bot.app.message(async ({ context }) => void ids.add(context.turn?.id));
  bot.app.message(async ({ context }) => {
    ids.add(context.turn?.id);
    await opened;
  });
  expect(await bot.deliver(message)).toMatchObject({ status: 200 });
  expect(await started.server.turns()).toHaveLength(1);
  open();
  await eventually(async () => expect(await started.server.turns()).toEqual([]));
  expect(ids.size).toBe(1);
});

test("while another run has the event, the delivery is refused", async () => {
  await using started = await startServer();
  for (const kind of ["http", "express"] as const) {
    await using bot = await startApp(started.gate, {}, kind);
    const listener = vi.fn(async () => {});
    bot.app.message(listener);
    const turn = await started.gate.begin(slack.delivery(message));
    expect(await bot.deliver(message)).toMatchObject({ status: 503, retryAfter: "1" });
    expect(await bot.deliver(message, 2)).toMatchObject({ status: 503 });
    expect(bot.errors).not.toHaveBeenCalled();
    await turn.fail();
    expect(listener).not.toHaveBeenCalled();
  }
});

test("the last retry is acknowledged, and gets the event if the other run fails", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const listener = vi.fn(async () => {});
  bot.app.message(listener);
  const turn = await started.gate.begin(slack.delivery(message), { ttl: "2s" });
  expect(await bot.deliver(message, 3)).toMatchObject({ status: 200 });
  expect(listener).not.toHaveBeenCalled();
  await turn.fail();
  await eventually(() => expect(listener).toHaveBeenCalledOnce());
});

test("an event of a busy thread is acknowledged, and its listener waits", async () => {
  await using started = await startServer();
  const onBusy = vi.fn();
  await using bot = await startApp(started.gate, { onBusy });
  const listener = vi.fn(async () => {});
  bot.app.message(listener);
  const lease = await started.gate.lease(thread);
  expect(await bot.deliver(message)).toMatchObject({ status: 200 });
  await eventually(() => expect(lease.waiters).toBe(1));
  expect(onBusy).toHaveBeenCalledOnce();
  expect(listener).not.toHaveBeenCalled();
  await lease.release();
  await eventually(() => expect(listener).toHaveBeenCalledOnce());
});

test("with no wait, an event of a busy thread is refused", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate, { wait: 0 });
  bot.app.message(async () => {});
  await using lease = await started.gate.lease(thread);
  expect(await bot.deliver(message)).toMatchObject({ status: 503 });
  expect(lease.waiters).toBe(0);
});

test("a listener that throws fails the turn, and the next delivery is the next attempt", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const attempts: unknown[] = [];
  bot.app.message(async ({ context }) => {
    attempts.push(context.turn?.attempt);
    if (attempts.length === 1) throw new Error("the model is overloaded");
  });
  expect(await bot.deliver(message)).toMatchObject({ status: 200 });
  await eventually(() => expect(bot.errors).toHaveBeenCalledOnce());
  expect(bot.errors.mock.calls[0]?.[0].message).toBe("the model is overloaded");
  await eventually(async () => expect(await started.server.turns()).toEqual([]));
  expect(await bot.deliver(message)).toMatchObject({ status: 200 });
  await eventually(() => expect(attempts).toEqual([1, 2]));
});

test("a listener that rejects the event ends it for good", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  bot.app.message(async () => {
    throw new Reject("no permission");
  });
  expect(await bot.deliver(message)).toMatchObject({ status: 200 });
  await eventually(async () => {
    const seen = await started.gate.seen(slack.delivery(message));
    expect(seen).toMatchObject({ outcome: "REJECTED", detail: "no permission" });
  });
  expect(bot.errors).not.toHaveBeenCalled();
});

test("an error of one listener counts more than the rejection of another", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const rejected = vi.fn(() => Promise.reject(new Reject("not for us")));
  bot.app.message(rejected);
  bot.app.message(async ({ context }) => {
    await eventually(() => expect(rejected).toHaveBeenCalled());
    if (context.turn?.attempt === 1) throw new Error("the model is overloaded");
  });
  expect(await bot.deliver(message)).toMatchObject({ status: 200 });
  await eventually(async () => expect(await started.server.turns()).toEqual([]));
  expect(await started.gate.seen(slack.delivery(message))).toMatchObject({ state: "NOT_SEEN" });
  expect(await bot.deliver(message, 1)).toMatchObject({ status: 200 });
  await eventually(async () => {
    expect(await started.gate.seen(slack.delivery(message))).toMatchObject({ outcome: "REJECTED" });
  });
});

test("while the server is away, the last retry is acknowledged, and handled when it is back", async () => {
  await using started = await startServer();
  const { gate, server } = started;
  await using bot = await startApp(gate);
  const listener = vi.fn(async () => {});
  bot.app.message(listener);
  await server.kill();
  expect(await bot.deliver(message, 3)).toMatchObject({ status: 200 });
  expect(listener).not.toHaveBeenCalled();
  await server.restart();
  await eventually(async () => {
    expect(await gate.seen(slack.delivery(message))).toMatchObject({ outcome: "SUCCEEDED" });
  });
  expect(listener).toHaveBeenCalledOnce();
  expect(bot.errors).not.toHaveBeenCalled();
});

test("while the server is away, Slack keeps the event", async () => {
  await using started = await startServer();
  const { gate, server } = started;
  await using bot = await startApp(gate);
  const listener = vi.fn(async () => {});
  bot.app.message(listener);
  await server.kill();
  expect(await bot.deliver(message)).toMatchObject({ status: 503 });
  await server.restart();
  expect(await bot.deliver(message, 1)).toMatchObject({ status: 200 });
  await eventually(() => expect(listener).toHaveBeenCalledOnce());
});

test.each(["run", "drop"] as const)(
  "the gate's `onUnavailable: %s` is for what Slack does not send again",
  async (onUnavailable) => {
    await using started = await startServer();
    const { gate, server } = started;
    await using bot = await startApp(gate, { onUnavailable });
    const listener = vi.fn(async () => {});
    bot.app.message(listener);
    await server.kill();
    expect(await bot.deliver(message)).toMatchObject({ status: 503 });
    expect(listener).not.toHaveBeenCalled();
    await server.restart();
    expect(await bot.deliver(message, 1)).toMatchObject({ status: 200 });
    await eventually(() => expect(listener).toHaveBeenCalledOnce());
  },
);

test("a server that is killed under a listener costs nothing", async () => {
  await using started = await startServer();
  const { gate, server } = started;
  await using bot = await startApp(gate);
  bot.app.message(async ({ context }) => {
    await server.kill();
    await server.restart();
    context.turn?.check();
  });
  expect(await bot.deliver(message)).toMatchObject({ status: 200 });
  await eventually(async () => {
    expect(await gate.seen(slack.delivery(message))).toMatchObject({ outcome: "SUCCEEDED", attempt: 1 });
  });
  expect(bot.errors).not.toHaveBeenCalled();
});

test("a listener that throws nothing at all fails the turn", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const listener = vi.fn(() => Promise.reject());
  bot.app.message(listener);
  for (const calls of [1, 2]) {
    await bot.deliver(message);
    await eventually(() => expect(listener).toHaveBeenCalledTimes(calls));
    await eventually(async () => expect(await started.server.turns()).toEqual([]));
    expect(await started.gate.seen(slack.delivery(message))).toMatchObject({ state: "NOT_SEEN" });
  }
});

test("a turn that is lost aborts its signal", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const reasons: unknown[] = [];
  bot.app.message(async ({ context }) => {
    await started.server.lose(thread);
    reasons.push(await context.turn?.lost, context.turn?.signal.aborted);
  });
  expect(await bot.deliver(message)).toMatchObject({ status: 200 });
  await eventually(() => expect(reasons).toEqual(["LEASE_LOST", true]));
});

test("an assistant's messages have turns too", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const userMessage = vi.fn(async ({ context }) => {
    expect(context.turn.held).toBe(true);
  });
  bot.app.assistant(new Assistant({ threadStarted: async () => {}, userMessage }));
  const inThread = payload("slack", "direct message in a thread, as with an assistant").body;
  expect(await bot.deliver(inThread)).toMatchObject({ status: 200 });
  await eventually(async () => expect(await started.server.turns()).toEqual([]));
  expect(await bot.deliver(inThread, 1)).toMatchObject({ status: 200 });
  expect(userMessage).toHaveBeenCalledOnce();
  expect(bot.errors).not.toHaveBeenCalled();
});
