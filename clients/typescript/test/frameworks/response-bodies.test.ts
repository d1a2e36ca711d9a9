import { Readable } from "node:stream";
import { serve } from "@hono/node-server";
import fastify from "fastify";
import { Hono } from "hono";
import { expect, test, vi } from "vitest";
import * as onFastify from "../../src/fastify.js";
import * as github from "../../src/github.js";
import * as onHono from "../../src/hono.js";
import { startServer } from "../../src/testing.js";
import { payload } from "./payloads.js";
import { post } from "./webhooks.js";

const issue = payload("github", "issue");

function breaking(): Readable {
  return Readable.from(
    (async function* () {
      yield "one ";
      throw new Error("the upstream broke");
    })(),
  );
}

test("Hono: a body that cannot be read fails the turn", async () => {
  await using started = await startServer();
  const app = new Hono();
  const handler = vi.fn(() => new Response(Readable.toWeb(breaking()) as ReadableStream));
  app.post("/hook", onHono.webhook(started.gate, github.delivery), handler);
  app.onError((_error, c) => c.text("failed", 500));
  const server = serve({ fetch: app.fetch, port: 0, hostname: "127.0.0.1" });
  await new Promise((resolve) => server.once("listening", resolve));
  const { port } = server.address() as { port: number };
  await using hook = { port, [Symbol.asyncDispose]: async () => void server.close() };
  expect(await post(hook, issue)).toMatchObject({ status: 500, text: "failed" });
  expect(await started.server.turns()).toEqual([]);
  await post(hook, issue);
  expect(handler).toHaveBeenCalledTimes(2);
});

async function startFastify(gate: Parameters<typeof onFastify.webhook>[0], handler: () => unknown) {
  const app = fastify({ forceCloseConnections: true });
  app.post("/hook", onFastify.webhook(gate, github.delivery), async () => handler());
  const address = await app.listen({ port: 0, host: "127.0.0.1" });
  return { port: Number(new URL(address).port), [Symbol.asyncDispose]: () => app.close() };
}

test("Fastify: a body that cannot be read fails the turn", async () => {
  await using started = await startServer();
  const handler = vi.fn(breaking);
  await using hook = await startFastify(started.gate, handler);
  expect(await post(hook, issue)).toMatchObject({ status: 500 });
  expect(await started.server.turns()).toEqual([]);
  await post(hook, issue);
  expect(handler).toHaveBeenCalledTimes(2);
});

test("Fastify: a Response of the web is stored and sent as any other", async () => {
  await using started = await startServer();
  const headers = { location: "/answers/1", "content-type": "text/plain", "x-of-this-exchange": "yes" };
  const handler = vi.fn(() => new Response("on it", { status: 202, headers }));
  await using hook = await startFastify(started.gate, handler);
  const first = await post(hook, issue);
  expect(first).toMatchObject({ status: 202, text: "on it" });
  expect(Object.fromEntries(first.headers)).toMatchObject(headers);
  const second = await post(hook, issue);
  expect(second).toMatchObject({ status: 202, text: "on it" });
  expect(second.headers.get("location")).toBe("/answers/1");
  expect(handler).toHaveBeenCalledOnce();
});

test("Fastify: a Response of the web without a body", async () => {
  await using started = await startServer();
  await using hook = await startFastify(started.gate, () => new Response(null, { status: 204 }));
  expect(await post(hook, issue)).toMatchObject({ status: 204, text: "" });
  expect(await post(hook, issue)).toMatchObject({ status: 204, text: "" });
});
