import { Assistant, type NextFn } from "@slack/bolt";
import { beforeEach, expect, test, vi } from "vitest";
import { guard } from "../../src/bolt.js";
import * as slack from "../../src/slack.js";
import { startServer } from "../../src/testing.js";
import { payload } from "./payloads.js";
import { makeApp } from "./slack-app.js";

const message = payload("slack", "message").body;
const inThread = payload("slack", "direct message in a thread, as with an assistant").body;

type Context = { turn?: { held: boolean } };

/** What the middleware and the listener of a test see. */
interface Step {
  readonly next: NextFn;
  readonly context: Context;
}

const seen: unknown[] = [];
beforeEach(() => void seen.splice(0));

/** Has ended before its listener: it calls `next` and does not wait for it. */
const goesOn = async ({ next }: Step) => void next();

/** Works on over some turns of the event loop. */
async function works({ context }: Step) {
  seen.push(context.turn?.held);
  for (let turns = 0; turns < 20; turns += 1) await new Promise(setImmediate);
  seen.push(context.turn?.held);
}

/** A middleware that needs a while before it calls `next`. */
async function looksUp({ next }: Step) {
  for (let turns = 0; turns < 20; turns += 1) await new Promise(setImmediate);
  await next();
}

test.each([
  ["global", [goesOn], []],
  ["a listener's", [], [goesOn]],
  ["global, before one that takes its time", [goesOn, looksUp], []],
  ["global, before a listener's own that takes its time", [goesOn], [looksUp]],
])(
  "a turn lasts until its listener has ended, also if a middleware does not wait for it: %s",
  async (...steps) => {
    const [, global, own] = steps;
    await using started = await startServer();
    const { app, errors } = makeApp({ signingSecret: "secret" });
    guard(app, started.gate);
    for (const middleware of global) app.use(middleware as never);
    app.message(...(own as never[]), works as never);
    await app.processEvent({ body: message, ack: async () => {} });
    expect(seen).toEqual([true, true]);
    expect(await started.server.turns()).toEqual([]);
    expect(await started.gate.seen(slack.delivery(message))).toMatchObject({ outcome: "SUCCEEDED" });
    expect(errors).not.toHaveBeenCalled();
  },
);

test("the middleware of an assistant may not wait for its listener either", async () => {
  await using started = await startServer();
  const { app, errors } = makeApp({ signingSecret: "secret" });
  guard(app, started.gate);
  const userMessage = [goesOn, looksUp, works] as never;
  app.assistant(new Assistant({ threadStarted: async () => {}, userMessage }));
  await app.processEvent({ body: inThread, ack: async () => {} });
  expect(seen).toEqual([true, true]);
  expect(await started.gate.seen(slack.delivery(inThread))).toMatchObject({ outcome: "SUCCEEDED" });
  expect(errors).not.toHaveBeenCalled();
});

test("an event is acknowledged after a listener that a middleware does not wait for", async () => {
  await using started = await startServer();
  const { app } = makeApp({ signingSecret: "secret" });
  guard(app, started.gate, { processBeforeResponse: true });
  app.use(async ({ next }) => void next().catch(() => {}));
  const listener = vi.fn(async (step) => works(step));
  listener.mockRejectedValueOnce(new Error("the model is overloaded"));
  app.message(listener);
  const ack = vi.fn(async () => void seen.push("acknowledged"));
  await expect(app.processEvent({ body: message, ack })).rejects.toThrow("the delivery is refused");
  expect(ack).not.toHaveBeenCalled();
  await app.processEvent({ body: message, retryNum: 1, ack });
  expect(seen).toEqual([true, true, "acknowledged"]);
});

test("a listener that a middleware calls after its end does not run without a turn", async () => {
  await using started = await startServer();
  const { app } = makeApp({ signingSecret: "secret" });
  guard(app, started.gate);
  const late: NextFn[] = [];
  app.use(async ({ next }) => void late.push(next));
  const listener = vi.fn(async () => {});
  app.message(listener);
  await app.processEvent({ body: message, ack: async () => {} });
  await expect(late[0]?.()).rejects.toThrow("call it before it returns");
  expect(listener).not.toHaveBeenCalled();
  expect(await started.gate.seen(slack.delivery(message))).toMatchObject({ state: "NOT_SEEN" });
});
