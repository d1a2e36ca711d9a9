import type { Server } from "node:http";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { Bot, type Context, webhookCallback } from "grammy";
import { Telegraf } from "telegraf";
import { describe, expect, test, vi } from "vitest";
import { type TurnFlavor, turns } from "../../src/grammy.js";
import type { HandleOptions } from "../../src/handle.js";
import { type Gate, Session } from "../../src/index.js";
import * as telegram from "../../src/telegram.js";
import { startServer } from "../../src/testing.js";
import { eventually } from "./eventually.js";
import { payload } from "./payloads.js";

const update = payload("telegram", "message in a private chat").body;
const team = "42";
const chat = new Session(team, "42:7");

const me = {
  id: Number(team),
  is_bot: true as const,
  first_name: "Bot",
  username: "bot",
  can_join_groups: true,
  can_read_all_group_messages: false,
  supports_inline_queries: false,
  can_connect_to_business: false,
  has_main_web_app: false,
  has_topics_enabled: false,
  allows_users_to_create_topics: false,
};

type TurnContext = TurnFlavor & { update: { update_id: number } };
type Handler = (context: TurnContext) => Promise<void> | void;

type Options = HandleOptions & { readonly onBusy?: () => unknown };

/** A bot whose only handler this is, without a connection to Telegram. */
type Start = (gate: Gate, handler: Handler, options?: Options) => (body: unknown) => Promise<void>;

const startGrammy: Start = (gate, handler, options) => {
  const bot = new Bot<Context & TurnFlavor>("42:token", { botInfo: me as never });
  bot.use(turns(gate, options));
  bot.on("message", (context) => handler(context));
  return (body) => bot.handleUpdate(body as never);
};

const startTelegraf: Start = (gate, handler, options) => {
  const bot = new Telegraf("42:token");
  bot.botInfo = me;
  bot.use(turns(gate, options));
  bot.on("message", (context) => handler(context as never));
  bot.catch((error) => {
    throw error;
  });
  return (body) => bot.handleUpdate(body as never);
};

describe.each([
  ["grammY", startGrammy],
  ["Telegraf", startTelegraf],
])("%s", (_, start) => {
  test("an update is handled once, in the turn of its chat", async () => {
    await using started = await startServer();
    const handler = vi.fn<Handler>(({ turn }) => {
      expect(turn).toMatchObject({ held: true, attempt: 1 });
    });
    const receive = start(started.gate, handler);
    await receive(update);
    await receive(update);
    expect(handler).toHaveBeenCalledOnce();
    const seen = await started.gate.seen(telegram.delivery(update, { team }));
    expect(seen).toMatchObject({ outcome: "SUCCEEDED" });
  });

  test("a handler that throws fails the turn, and the next delivery is the next attempt", async () => {
    await using started = await startServer();
    const handler = vi.fn<Handler>();
    handler.mockRejectedValueOnce(new Error("no answer"));
    const receive = start(started.gate, handler);
    await expect(receive(update)).rejects.toThrow("no answer");
    await receive(update);
    expect(handler.mock.calls[1]?.[0].turn.attempt).toBe(2);
  });

  test("an update of a busy chat waits", async () => {
    await using started = await startServer();
    const handler = vi.fn<Handler>();
    const onBusy = vi.fn();
    const receive = start(started.gate, handler, { onBusy });
    const lease = await started.gate.lease(chat);
    const received = receive(update);
    await eventually(() => expect(lease.waiters).toBe(1));
    expect(onBusy).toHaveBeenCalledOnce();
    expect(handler).not.toHaveBeenCalled();
    await lease.release();
    await received;
    expect(handler).toHaveBeenCalledOnce();
  });

  test("an update that another run has is handled here if that run fails", async () => {
    await using started = await startServer();
    const handler = vi.fn<Handler>();
    const receive = start(started.gate, handler);
    const turn = await started.gate.begin(telegram.delivery(update, { team }), { ttl: "2s" });
    const received = receive(update);
    await turn.fail();
    await received;
    expect(handler).toHaveBeenCalledOnce();
  });

  test("when the wait is over, and while the server is away, the update is not acknowledged", async () => {
    await using started = await startServer({ gate: { patience: "200ms" } });
    const handler = vi.fn<Handler>();
    const receive = start(started.gate, handler, { wait: 0 });
    {
      await using _lease = await started.gate.lease(chat);
      await expect(receive(update)).rejects.toThrow("has the session");
    }
    await started.server.kill();
    await expect(receive(update)).rejects.toThrow("refuse the delivery, or try again later");
    expect(handler).not.toHaveBeenCalled();
  });

  test("a server that is killed under a handler costs nothing", async () => {
    await using started = await startServer();
    const handler = vi.fn<Handler>(async () => {
      await started.server.kill();
      await started.server.restart();
    });
    const receive = start(started.gate, handler);
    await receive(update);
    await receive(update);
    expect(handler).toHaveBeenCalledOnce();
  });
});

test("over a webhook, an update that is refused is answered with an error", async () => {
  await using started = await startServer();
  const bot = new Bot<Context & TurnFlavor>("42:token", { botInfo: me as never });
  bot.use(turns(started.gate, { wait: 0 }));
  const handler = vi.fn();
  bot.on("message", handler);
  const callback = webhookCallback(bot, "http");
  const server: Server = createServer((request, response) => {
    callback(request, response).catch(() => response.writeHead(500).end());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  const deliver = async () => {
    const response = await fetch(`http://127.0.0.1:${port}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(update),
    });
    return response.status;
  };
  const lease = await started.gate.lease(chat);
  expect(await deliver()).toBe(500);
  await lease.release();
  expect(await deliver()).toBe(200);
  expect(await deliver()).toBe(200);
  expect(handler).toHaveBeenCalledOnce();
  server.closeAllConnections();
  server.close();
});
