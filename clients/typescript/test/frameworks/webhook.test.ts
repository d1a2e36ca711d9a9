import { createHash } from "node:crypto";
import { IncomingMessage, ServerResponse } from "node:http";
import { Socket } from "node:net";
import { Hono } from "hono";
import { describe, expect, test, vi } from "vitest";
import { header } from "../../src/delivery.js";
import * as github from "../../src/github.js";
import { webhook } from "../../src/hono.js";
import { Delivery, Reject, Session, type Turn, TurnLost } from "../../src/index.js";
import { startServer } from "../../src/testing.js";
import { type ByHeaders, endIfAbandoned } from "../../src/webhook.js";
import { eventually } from "./eventually.js";
import { payload } from "./payloads.js";
import { frameworks, type Handler, post } from "./webhooks.js";

const issue = payload("github", "issue");
const session = new Session("21", "21:octo/repo:5");

const created: Handler = (turn, body) => ({
  status: 201,
  headers: { location: "/answers/1", "x-of-this-exchange": "yes" },
  json: { attempt: turn.attempt, held: turn.held, action: (body as typeof issue.body).action },
});

/** A sender that redelivers, with a session and a digest. */
const byKey: ByHeaders = (headers, body) => {
  const digest = createHash("sha256").update(JSON.stringify(body)).digest();
  return new Delivery("T1", String(header(headers, "idempotency-key")), {
    session: "S1",
    digest,
  });
};

describe.each(Object.entries(frameworks))("%s", (_, start) => {
  test("a handler runs once, and a duplicate gets the same response", async () => {
    await using started = await startServer();
    const handler = vi.fn(created);
    await using hook = await start(started.gate, github.delivery, handler);
    const first = await post(hook, issue);
    expect(first).toMatchObject({ status: 201, text: '{"attempt":1,"held":true,"action":"opened"}' });
    expect(first.headers.get("x-of-this-exchange")).toBe("yes");
    const second = await post(hook, issue);
    expect(second).toMatchObject({ status: first.status, text: first.text });
    for (const name of ["content-type", "location"]) {
      expect(second.headers.get(name)).toBe(first.headers.get(name));
    }
    expect(second.headers.get("x-of-this-exchange")).toBeNull();
    expect(handler).toHaveBeenCalledOnce();
  });

  test("a response of 5xx and an error fail the turn, a response of 4xx does not", async () => {
    await using started = await startServer();
    const handler = vi.fn(created);
    handler.mockResolvedValueOnce({ status: 502, json: "upstream" });
    handler.mockRejectedValueOnce(new Error("no memory"));
    handler.mockResolvedValueOnce({ status: 404, json: "no such issue" });
    await using hook = await start(started.gate, github.delivery, handler);
    expect(await post(hook, issue)).toMatchObject({ status: 502 });
    const delivery = github.delivery(issue.headers, issue.body);
    expect(await started.gate.seen(delivery)).toMatchObject({ state: "NOT_SEEN" });
    expect(await post(hook, issue)).toMatchObject({ status: 500 });
    expect(await post(hook, issue)).toMatchObject({ status: 404 });
    expect(await post(hook, issue)).toMatchObject({ status: 404 });
    expect(handler.mock.calls.map(([turn]) => turn.attempt)).toEqual([1, 2, 3]);
  });

  test("an error of another library fails the turn, although it has the status of another server", async () => {
    await using started = await startServer();
    const handler = vi.fn(created);
    const limited = Object.assign(new Error("API rate limit exceeded"), { status: 403, statusCode: 403 });
    handler.mockRejectedValueOnce(limited);
    await using hook = await start(started.gate, github.delivery, handler);
    expect(await post(hook, issue)).toMatchObject({ status: 403 });
    const delivery = github.delivery(issue.headers, issue.body);
    expect(await started.gate.seen(delivery)).toMatchObject({ state: "NOT_SEEN" });
    expect(await post(hook, issue)).toMatchObject({ status: 201 });
    expect(handler.mock.calls.map(([turn]) => turn.attempt)).toEqual([1, 2]);
  });

  test.each(["no memory", undefined])(
    "a handler that throws %s, which is no error, is not answered with success",
    async (thrown) => {
      await using started = await startServer();
      const handler = vi.fn(created);
      handler.mockRejectedValueOnce(thrown);
      await using hook = await start(started.gate, github.delivery, handler);
      expect(await post(hook, issue)).toMatchObject({ status: 500 });
      expect(await post(hook, issue)).toMatchObject({ status: 201 });
      expect(handler).toHaveBeenCalledTimes(2);
    },
  );

  test("an error that is a response ends the turn as any other response", async () => {
    await using started = await startServer();
    const handler = vi.fn(created);
    const missing = { status: 404, statusCode: 404, expose: true };
    handler.mockRejectedValueOnce(Object.assign(new Error("no such issue"), missing));
    await using hook = await start(started.gate, github.delivery, handler);
    expect(await post(hook, issue)).toMatchObject({ status: 404 });
    expect(await post(hook, issue)).toMatchObject({ status: 404 });
    expect(handler).toHaveBeenCalledOnce();
  });

  test("a handler that rejects the delivery ends it for good", async () => {
    await using started = await startServer();
    const handler = vi.fn<Handler>(() => Promise.reject(new Reject("not for us")));
    await using hook = await start(started.gate, github.delivery, handler);
    expect(await post(hook, issue)).toMatchObject({ status: 200, text: "" });
    expect(await started.gate.seen(github.delivery(issue.headers, issue.body))).toMatchObject({
      outcome: "REJECTED",
      detail: "not for us",
    });
    expect(await post(hook, issue)).toMatchObject({ status: 200, text: "" });
    expect(handler).toHaveBeenCalledOnce();
  });

  test("a handler that ends its turn itself answers as it likes", async () => {
    await using started = await startServer();
    const handler = vi.fn<Handler>(async (turn, body) => {
      await turn.reject("not for us");
      return { ...created(turn, body), json: { ended: true } };
    });
    await using hook = await start(started.gate, github.delivery, handler);
    expect(await post(hook, issue)).toMatchObject({ status: 201, text: '{"ended":true}' });
    expect(await post(hook, issue)).toMatchObject({ status: 200 });
    expect(handler).toHaveBeenCalledOnce();
  });

  test("in progress and busy are refused with Retry-After", async () => {
    await using started = await startServer();
    const handler = vi.fn(created);
    await using hook = await start(started.gate, byKey, handler);
    const request = { headers: { "idempotency-key": "k1" }, body: { amount: 1 } };
    const turn = await started.gate.begin({ team: "T1", event: "k1" });
    const inProgress = await post(hook, request);
    expect(inProgress).toMatchObject({ status: 503 });
    expect(Number(inProgress.headers.get("retry-after"))).toBeGreaterThan(0);
    await turn.fail();
    const lease = await started.gate.lease({ team: "T1", session: "S1" });
    const busy = await post(hook, request);
    expect(busy).toMatchObject({ status: 503 });
    expect(Number(busy.headers.get("retry-after"))).toBeGreaterThan(0);
    await lease.release();
    expect(await post(hook, request)).toMatchObject({ status: 201 });
    expect(handler).toHaveBeenCalledOnce();
  });

  test("a delivery that is not sent again waits for its conversation", async () => {
    await using started = await startServer();
    // An option that is undefined has its default.
    await using hook = await start(started.gate, github.delivery, created, { wait: undefined });
    const lease = await started.gate.lease(session);
    const answer = post(hook, issue);
    await eventually(() => expect(lease.waiters).toBe(1));
    await lease.release();
    expect(await answer).toMatchObject({ status: 201 });
  });

  test("the same key with another payload is 422", async () => {
    await using started = await startServer();
    await using hook = await start(started.gate, byKey, created);
    const headers = { "idempotency-key": "k1" };
    expect(await post(hook, { headers, body: { amount: 1 } })).toMatchObject({ status: 201 });
    expect(await post(hook, { headers, body: { amount: 2 } })).toMatchObject({ status: 422 });
  });

  test("a function whose parameters are not known is refused at once", async () => {
    await using started = await startServer();
    const any: ByHeaders = (...args) => github.delivery(...args);
    await expect(start(started.gate, any, created)).rejects.toThrow("declare its parameters");
  });

  test("a request that names no delivery is handled without a turn, an invalid name is 400", async () => {
    await using started = await startServer();
    const handler = vi.fn(created);
    await using unnamed = await start(started.gate, github.delivery, handler);
    expect(JSON.parse((await post(unnamed, { body: issue.body })).text)).toMatchObject({ held: false });
    await using named = await start(started.gate, byKey, handler);
    const headers = { "idempotency-key": "k".repeat(513) };
    expect(await post(named, { headers, body: {} })).toMatchObject({ status: 400 });
    expect(handler).toHaveBeenCalledOnce();
  });

  test("while the server is away the sender is asked to come again", async () => {
    await using started = await startServer();
    const { gate, server } = started;
    await using hook = await start(gate, github.delivery, created, { patience: "1s" });
    await server.kill();
    expect(await post(hook, issue)).toMatchObject({ status: 503 });
    await server.restart();
    await eventually(async () => expect(await post(hook, issue)).toMatchObject({ status: 201 }));
  });

  test("a server that is killed under a handler costs nothing", async () => {
    await using started = await startServer();
    const { gate, server } = started;
    const handler = vi.fn<Handler>(async (turn, body) => {
      await server.kill();
      await server.restart();
      return created(turn, body);
    });
    await using hook = await start(gate, github.delivery, handler);
    expect(await post(hook, issue)).toMatchObject({ status: 201 });
    expect(await post(hook, issue)).toMatchObject({ status: 201 });
    expect(handler).toHaveBeenCalledOnce();
  });

  test("if the turn is lost, the sender is asked to come again", async () => {
    await using started = await startServer({ gate: { ttl: "2s" } });
    const { gate, server } = started;
    const handler = vi.fn<Handler>(created);
    handler.mockImplementationOnce(async (turn, body) => {
      await server.lose(session);
      await turn.lost;
      return created(turn, body);
    });
    await using hook = await start(gate, github.delivery, handler);
    const lost = await post(hook, issue);
    expect(lost).toMatchObject({ status: 503 });
    expect(lost.headers.get("location")).toBeNull();
    // The event is free when its claim ends.
    await eventually(async () => expect(await post(hook, issue)).toMatchObject({ status: 201 }));
    expect(handler).toHaveBeenCalledTimes(2);
  });

  test("if the handler stops because the turn is lost, the sender is asked to come again", async () => {
    await using started = await startServer();
    const handler = vi.fn<Handler>(async (turn, body) => {
      await started.server.lose(session);
      await turn.lost;
      turn.check();
      return created(turn, body);
    });
    await using hook = await start(started.gate, github.delivery, handler);
    const lost = await post(hook, issue);
    expect(lost).toMatchObject({ status: 503 });
    expect(Number(lost.headers.get("retry-after"))).toBeGreaterThan(0);
  });

  test("a sender that hangs up does not fail the turn", async () => {
    await using started = await startServer();
    let finish!: () => void;
    const finished = new Promise<void>((resolve) => {
      finish = resolve;
    });
    const handler = vi.fn<Handler>(async (turn, body) => {
      await finished;
      return created(turn, body);
    });
    await using hook = await start(started.gate, github.delivery, handler);
    const sender = new AbortController();
    const hungUp = post(hook, issue, sender.signal);
    await eventually(() => expect(handler).toHaveBeenCalledOnce());
    sender.abort();
    await expect(hungUp).rejects.toThrow("aborted");
    expect(await post(hook, issue)).toMatchObject({ status: 503 });
    finish();
    await eventually(async () => expect(await post(hook, issue)).toMatchObject({ status: 201 }));
    expect(handler).toHaveBeenCalledOnce();
    expect(await started.server.turns()).toEqual([]);
  });

  test.each([42, { status: "done", body: { a: 1 } }, { status: 0, headers: {}, body: "" }])(
    "what was handled otherwise is answered with 200: %j",
    async (result) => {
      await using started = await startServer();
      const { gate } = started;
      const handler = vi.fn(created);
      await using hook = await start(gate, github.delivery, handler);
      await gate.turn(github.delivery(issue.headers, issue.body), () => result);
      expect(await post(hook, issue)).toMatchObject({ status: 200, text: "" });
      expect(handler).not.toHaveBeenCalled();
    },
  );

  test.each([
    ["body is", 1, 100_000],
    ["headers and body together are", 8_000, 44_000],
  ])("a duplicate of a response whose %s too long to be stored gets its status", async (_, path, text) => {
    await using started = await startServer();
    await using hook = await start(started.gate, github.delivery, () => ({
      status: 202,
      headers: { location: "/".repeat(path) },
      json: { text: "x".repeat(text) },
    }));
    const first = await post(hook, issue);
    expect([first.status, first.text.length]).toEqual([202, text + 11]);
    const second = await post(hook, issue);
    expect(second).toMatchObject({ status: 202, text: "" });
    expect(second.headers.get("location")).toBeNull();
  });
});

describe.each(Object.entries(frameworks))("%s", (_, start) => {
  test("a handler that never answers loses its event a minute after its client has gone", async () => {
    await using started = await startServer();
    const turns: Turn[] = [];
    await using hook = await start(started.gate, github.delivery, (turn) => {
      turns.push(turn);
      return new Promise(() => {});
    });
    const timers = vi.spyOn(globalThis, "setTimeout");
    const minutes = () => timers.mock.calls.filter(([, ms]) => ms === 60_000);
    try {
      const sender = new AbortController();
      const hungUp = post(hook, issue, sender.signal);
      await eventually(() => expect(turns).toHaveLength(1));
      expect(minutes()).toHaveLength(0);
      sender.abort();
      await expect(hungUp).rejects.toThrow("aborted");
      await eventually(() => expect(minutes()).toHaveLength(1));
      for (const [isOver] of minutes()) isOver();
      expect(turns[0]?.lostReason).toBe("CLOSED");
    } finally {
      timers.mockRestore();
    }
  });
});

/** What a client leaves in its own way: the response of Node, or a signal that is not of this realm. */
const clients = {
  response() {
    const client = new ServerResponse(new IncomingMessage(new Socket()));
    const leave = () => {
      client.destroyed = true;
      client.emit("close");
    };
    return { client, leave };
  },
  signal() {
    const client = Object.assign(new EventTarget(), { aborted: false });
    const leave = () => {
      client.aborted = true;
      client.dispatchEvent(new Event("abort"));
    };
    return { client: client as unknown as AbortSignal, leave };
  },
};

test.each([
  ["response", "while it works"],
  ["response", "while its turn is waited for"],
  ["signal", "while it works"],
  ["signal", "while its turn is waited for"],
] as const)(
  "a handler that never answers, and whose %s ends %s, keeps its event for a minute",
  async (kind, moment) => {
    await using started = await startServer();
    const turn = await started.gate.begin(github.delivery(issue.headers, issue.body));
    const { client, leave } = clients[kind]();
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    try {
      if (moment !== "while it works") leave();
      endIfAbandoned(turn, client);
      if (moment === "while it works") leave();
      vi.advanceTimersByTime(59_000);
      expect(turn.held).toBe(true);
      turn.check();
      vi.advanceTimersByTime(1000);
    } finally {
      vi.useRealTimers();
    }
    // The handler that works on stops before it writes: its event is free.
    expect(turn.signal.aborted).toBe(true);
    expect(turn.lostReason).toBe("CLOSED");
    expect(() => turn.check()).toThrow(TurnLost);
    await eventually(async () => expect(await started.server.turns()).toEqual([]));
  },
);

test("a request of Hono without a signal is handled", async () => {
  await using started = await startServer();
  const app = new Hono();
  app.post("/hook", webhook(started.gate, github.delivery), (c) => c.json({ held: c.get("turn").held }));
  const body = JSON.stringify(issue.body);
  const request = new Request("http://localhost/hook", { method: "POST", headers: issue.headers, body });
  Object.defineProperty(request, "signal", { value: undefined });
  expect(await (await app.fetch(request)).text()).toBe('{"held":true}');
});

test("a turn that has ended does not pass its check", async () => {
  await using started = await startServer();
  const turn = await started.gate.begin({ team: "T1", event: "E1" });
  turn.check();
  await turn.succeed();
  expect(() => turn.check()).toThrow("the turn has ended");
});
