import { once } from "node:events";
import { request as httpRequest, type IncomingMessage } from "node:http";
import type { AddressInfo } from "node:net";
import express, { type Express } from "express";
import { expect, test, vi } from "vitest";
import { type HeaderInit, header } from "../../src/delivery.js";
import { webhook } from "../../src/express.js";
import * as github from "../../src/github.js";
import { Delivery, Reject } from "../../src/index.js";
import * as slack from "../../src/slack.js";
import { startServer } from "../../src/testing.js";
import { eventually } from "./eventually.js";
import { payload } from "./payloads.js";
import { type Hook, post } from "./webhooks.js";

const issue = payload("github", "issue");

async function listen(app: Express): Promise<Hook> {
  const server = app.listen(0, "127.0.0.1");
  await once(server, "listening");
  const dispose = async () => {
    server.closeAllConnections();
    server.close();
  };
  return { port: (server.address() as AddressInfo).port, [Symbol.asyncDispose]: dispose };
}

test("the body is left as it came, for signatures", async () => {
  await using started = await startServer();
  const app = express();
  const seen: unknown[] = [];
  app.post("/hook", webhook(started.gate, github.delivery), (request, response) => {
    const { body, rawBody } = request as typeof request & { rawBody: Buffer };
    seen.push(body.action, rawBody.toString());
    response.end();
  });
  await using hook = await listen(app);
  await post(hook, issue);
  expect(seen).toEqual(["opened", JSON.stringify(issue.body)]);
});

test("a body that a parser has read names the same event", async () => {
  await using started = await startServer();
  const app = express();
  const handler = vi.fn((_request: express.Request, response: express.Response) => void response.end());
  for (const [path, parser] of Object.entries({
    "/hook": express.json(),
    "/raw": express.raw({ type: "*/*" }),
  })) {
    app.post(path, parser, webhook(started.gate, github.delivery), handler);
  }
  await using hook = await listen(app);
  await post(hook, issue);
  const { port } = hook;
  const headers = { "content-type": "application/json", ...issue.headers };
  const body = JSON.stringify(issue.body);
  await fetch(`http://127.0.0.1:${port}/raw`, { method: "POST", headers, body });
  expect(handler).toHaveBeenCalledOnce();
});

test("a form that a delivery is made from by its body alone", async () => {
  await using started = await startServer();
  const app = express();
  const handler = vi.fn(
    (_request: express.Request, response: express.Response) => void response.send("on it"),
  );
  app.post("/hook", webhook(started.gate, slack.delivery), handler);
  await using hook = await listen(app);
  const body = new URLSearchParams(payload("slack", "slash command, its fields as JSON").body);
  for (let delivery = 0; delivery < 2; delivery += 1) {
    const response = await fetch(`http://127.0.0.1:${hook.port}/hook`, { method: "POST", body });
    expect(await response.text()).toBe("on it");
  }
  expect(handler).toHaveBeenCalledOnce();
});

test("a body that is too long is 413", async () => {
  await using started = await startServer();
  const app = express();
  const handler = vi.fn();
  app.post("/hook", webhook(started.gate, github.delivery, { limit: 100 }), handler);
  await using hook = await listen(app);
  expect(await post(hook, issue)).toMatchObject({ status: 413 });
  expect(handler).not.toHaveBeenCalled();
});

test("a response in parts arrives whole, and its callbacks are called", async () => {
  await using started = await startServer();
  const app = express();
  const called: string[] = [];
  app.post("/hook", webhook(started.gate, github.delivery), (_request, response) => {
    response.writeHead(207, "Multi-Status", { "content-type": "text/plain", "set-cookie": ["a=1", "b=2"] });
    response.write("one ", () => called.push("written"));
    response.write(Buffer.from("two "));
    response.end("dHJvaXM=", "base64", () => called.push("ended"));
  });
  await using hook = await listen(app);
  const first = await post(hook, issue);
  expect(first).toMatchObject({ status: 207, text: "one two trois" });
  expect(first.headers.getSetCookie()).toEqual(["a=1", "b=2"]);
  expect(called).toEqual(["written", "ended"]);
  const second = await post(hook, issue);
  expect(second).toMatchObject({ status: 207, text: "one two trois" });
  expect(second.headers.getSetCookie()).toEqual([]);
});

test("an error after a part of the response drops that part", async () => {
  await using started = await startServer();
  const app = express().set("env", "test");
  app.post("/hook", webhook(started.gate, github.delivery), (_request, response) => {
    response.write("a part");
    throw new Error("the upstream broke");
  });
  await using hook = await listen(app);
  const answer = await post(hook, issue);
  expect(answer).toMatchObject({ status: 500 });
  expect(answer.text).toMatch(/^<!DOCTYPE html>.*<\/html>\n$/s);
  expect(await started.gate.seen(github.delivery(issue.headers, issue.body))).toMatchObject({
    state: "NOT_SEEN",
  });
});

test("headers as a list, in which a name may come again", async () => {
  await using started = await startServer();
  const app = express();
  app.post("/hook", webhook(started.gate, github.delivery), (_request, response) => {
    response.writeHead(201, ["content-type", "text/x", "set-cookie", "a=1", "set-cookie", "b=2"]);
    response.end("on it");
  });
  await using hook = await listen(app);
  const { status, headers } = await post(hook, issue);
  expect([status, headers.get("content-type"), headers.getSetCookie()]).toEqual([
    201,
    "text/x",
    ["a=1", "b=2"],
  ]);
  expect(headers.get("0")).toBeNull();
});

type Add = (app: Express, ...handlers: express.RequestHandler[]) => void;

test.each<[string, Add]>([
  ["app.all", (app, ...handlers) => app.all("/hook", ...handlers)],
  ["route.all", (app, ...handlers) => app.route("/hook").all(...handlers)],
  [
    "one route",
    (app, ...handlers) =>
      app
        .route("/hook")
        .put(...handlers)
        .post(...handlers)
        .get(...handlers),
  ],
])("a Reject is no error in any method: %s", async (_, add) => {
  await using started = await startServer();
  const app = express();
  const byId = (headers: HeaderInit, _body: unknown) => new Delivery("T1", header(headers, "x-id") as string);
  add(app, webhook(started.gate, byId), () => {
    throw new Reject("not for us");
  });
  await using hook = await listen(app);
  const methods = ["PUT", "POST", "HEAD", "GET", "HEAD", "GET", "POST"];
  const statuses: unknown[] = [];
  for (const [index, method] of methods.entries()) {
    const headers = { "x-id": `E${index}` };
    const { status } = await fetch(`http://127.0.0.1:${hook.port}/hook`, { method, headers });
    statuses.push(`${method} ${status}`);
  }
  expect(statuses).toEqual(methods.map((method) => `${method} 200`));
});

test("outside of a route it is refused: it would not see what the handler throws", async () => {
  await using started = await startServer();
  const app = express();
  app.use(webhook(started.gate, github.delivery));
  const handler = vi.fn();
  app.post("/hook", handler);
  app.use(((error, _request, response, _next) => {
    response.status(500).send(error.message);
  }) satisfies express.ErrorRequestHandler);
  await using hook = await listen(app);
  expect(await post(hook, issue)).toMatchObject({ status: 500, text: expect.stringContaining("to a route") });
  expect(handler).not.toHaveBeenCalled();
});

test("an error after the response changes nothing", async () => {
  await using started = await startServer();
  const app = express();
  app.post("/hook", webhook(started.gate, github.delivery), async (_request, response) => {
    response.status(201).json({ done: true });
    throw new Error("while cleaning up");
  });
  app.use(((_error, _request, response, _next) => {
    response.status(500).type("text").send("failed");
  }) satisfies express.ErrorRequestHandler);
  await using hook = await listen(app);
  expect(await post(hook, issue)).toMatchObject({ status: 201, text: '{"done":true}' });
  expect(await post(hook, issue)).toMatchObject({ status: 201, text: '{"done":true}' });
});

test("a sender that hangs up gets the response by its next delivery", async () => {
  await using started = await startServer();
  const app = express();
  let answer!: () => void;
  const handler = vi.fn((_request: express.Request, response: express.Response) => {
    answer = () => response.status(201).send("done");
  });
  app.post("/hook", webhook(started.gate, github.delivery), handler);
  await using hook = await listen(app);

  const options = { port: hook.port, method: "POST", path: "/hook", headers: issue.headers };
  const sender = httpRequest(options, (_response: IncomingMessage) => {});
  sender.on("error", () => {});
  sender.end(JSON.stringify(issue.body));
  await eventually(() => expect(handler).toHaveBeenCalledOnce());
  const closed = once(handler.mock.calls[0]?.[1] as express.Response, "close");
  sender.destroy();
  await closed;

  expect(await post(hook, issue)).toMatchObject({ status: 503 });
  answer();
  await eventually(async () => expect(await post(hook, issue)).toMatchObject({ status: 201, text: "done" }));
  expect(handler).toHaveBeenCalledOnce();
});

test("a status that Node refuses ends the connection, and no promise is left unhandled", async () => {
  await using started = await startServer();
  const app = express();
  app.post("/hook", webhook(started.gate, github.delivery), (_request, response) => {
    response.statusCode = 0;
    response.end();
  });
  await using hook = await listen(app);
  await expect(post(hook, issue)).rejects.toThrow();
});
