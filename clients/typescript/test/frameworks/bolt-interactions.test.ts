import { expect, test, vi } from "vitest";
import { Session } from "../../src/index.js";
import * as slack from "../../src/slack.js";
import { startServer } from "../../src/testing.js";
import { eventually } from "./eventually.js";
import { payload } from "./payloads.js";
import { startApp } from "./slack-app.js";

const button = payload("slack", "button").body;
const command = payload("slack", "slash command, its fields as JSON").body;
const submission = payload("slack", "view_submission").body;
const thread = new Session("T1", "T1:C1:1700000001.000100");

test("the listener of a button acknowledges it; a second click only is acknowledged", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const listener = vi.fn(async ({ ack, context }) => {
    expect(context.turn.held).toBe(true);
    await ack();
  });
  bot.app.action("approve", listener);
  expect(await bot.deliver(button)).toMatchObject({ status: 200 });
  await eventually(async () => expect(await started.server.turns()).toEqual([]));
  expect(await bot.deliver(button)).toMatchObject({ status: 200 });
  expect(listener).toHaveBeenCalledOnce();
  expect(bot.errors).not.toHaveBeenCalled();
});

test("a click on a busy thread is acknowledged at once, and its listener may acknowledge it again", async () => {
  await using started = await startServer();
  const onBusy = vi.fn(async ({ body }) => void body.response_url);
  await using bot = await startApp(started.gate, { onBusy });
  const listener = vi.fn(async ({ ack }) => ack());
  bot.app.action("approve", listener);
  const lease = await started.gate.lease(thread);
  expect(await bot.deliver(button)).toMatchObject({ status: 200 });
  await eventually(() => expect(lease.waiters).toBe(1));
  expect(onBusy).toHaveBeenCalledOnce();
  await lease.release();
  await eventually(async () => {
    expect(await started.gate.seen(slack.delivery(button))).toMatchObject({ outcome: "SUCCEEDED" });
  });
  expect(bot.errors).not.toHaveBeenCalled();
});

test("an `onBusy` that fails does not stop the listener", async () => {
  await using started = await startServer();
  const onBusy = () => Promise.reject(new Error("channel_not_found"));
  await using bot = await startApp(started.gate, { onBusy });
  const listener = vi.fn(async () => {});
  bot.app.action("approve", listener);
  const lease = await started.gate.lease(thread);
  expect(await bot.deliver(button)).toMatchObject({ status: 200 });
  await lease.release();
  await eventually(() => expect(listener).toHaveBeenCalledOnce());
});

test("a click that another run handles is acknowledged and not run again", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const listener = vi.fn(async () => {});
  bot.app.action("approve", listener);
  await using _turn = await started.gate.begin(slack.delivery(button));
  expect(await bot.deliver(button)).toMatchObject({ status: 200 });
  expect(listener).not.toHaveBeenCalled();
});

test("a command that nobody may handle is refused while the server is away, unless the gate opens", async () => {
  await using started = await startServer();
  await using closed = await startApp(started.gate);
  await using open = await startApp(started.gate, { onUnavailable: "run" });
  await using dropping = await startApp(started.gate, { onUnavailable: "drop" });
  const held: unknown[] = [];
  for (const { app } of [closed, open, dropping]) {
    app.command("/go", async ({ ack, context }) => {
      held.push(context.turn?.held);
      await ack("on it");
    });
  }
  await started.server.kill();
  const [refused, ran, dropped] = await Promise.all(
    [closed, open, dropping].map(({ deliver }) => deliver(command)),
  );
  expect(refused).toMatchObject({ status: 503 });
  expect(ran).toMatchObject({ status: 200, text: "on it" });
  expect(dropped).toMatchObject({ status: 200, text: "" });
  expect(held).toEqual([false]);
});

test("what the listener answers reaches Slack", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const errors = { title: "already taken" };
  bot.app.view({ type: "view_submission" }, async ({ ack }) => ack({ response_action: "errors", errors }));
  const { status, text } = await bot.deliver(submission);
  expect({ status, body: JSON.parse(text) }).toEqual({
    status: 200,
    body: { response_action: "errors", errors },
  });
});

test("a question for options has no turn", async () => {
  await using started = await startServer();
  await using bot = await startApp(started.gate);
  const question = payload("slack", "block_suggestion in a message").body;
  bot.app.options(/.*/, async ({ ack, context }) => {
    expect(context.turn).toBeUndefined();
    await ack({ options: [] });
  });
  await started.server.kill();
  expect(await bot.deliver(question)).toMatchObject({ status: 200 });
});

test("a function is acknowledged by Bolt, or by its listener", async () => {
  await using started = await startServer();
  const executed = payload("slack", "function_executed").body;
  const call = (id: string, callback_id: string) => ({
    ...executed,
    event_id: id,
    event: { type: "function_executed", function: { callback_id }, inputs: {}, function_execution_id: "Fx1" },
  });
  await using bot = await startApp(started.gate);
  const held: unknown[] = [];
  bot.app.function("automatic", async ({ context }) => void held.push(context.turn?.held));
  bot.app.function("manual", { autoAcknowledge: false }, async ({ ack, context }) => {
    held.push(context.turn?.held);
    await ack();
  });
  expect(await bot.deliver(call("EvF1", "automatic"))).toMatchObject({ status: 200 });
  expect(await bot.deliver(call("EvF2", "manual"))).toMatchObject({ status: 200 });
  const turn = await started.gate.begin(slack.delivery(call("EvF3", "automatic")));
  expect(await bot.deliver(call("EvF3", "automatic"))).toMatchObject({ status: 503 });
  await turn.succeed();
  expect(await bot.deliver(call("EvF3", "automatic"))).toMatchObject({ status: 200 });
  expect(held).toEqual([true, true]);
  expect(bot.errors).not.toHaveBeenCalled();
});
