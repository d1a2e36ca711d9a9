import fastify, { type FastifyReply, type FastifyRequest } from "fastify";
import { expect, test, vi } from "vitest";
import { webhook } from "../../src/fastify.js";
import * as github from "../../src/github.js";
import { Reject } from "../../src/index.js";
import { startServer } from "../../src/testing.js";
import { eventually } from "./eventually.js";
import { payload } from "./payloads.js";
import { post } from "./webhooks.js";

const issue = payload("github", "issue");

test("a reply that the handler has hijacked ends its turn", async () => {
  await using started = await startServer();
  const app = fastify({ forceCloseConnections: true });
  const handler = vi.fn((_request: FastifyRequest, reply: FastifyReply) => {
    reply.hijack();
    reply.raw.writeHead(202).end("on it");
  });
  app.post("/hook", webhook(started.gate, github.delivery), handler);
  const address = await app.listen({ port: 0, host: "127.0.0.1" });
  await using hook = { port: Number(new URL(address).port), [Symbol.asyncDispose]: () => app.close() };
  expect(await post(hook, issue)).toMatchObject({ status: 202, text: "on it" });
  await eventually(async () => expect(await started.server.turns()).toEqual([]));
  expect(await post(hook, issue)).toMatchObject({ status: 202, text: "" });
  expect(handler).toHaveBeenCalledOnce();
});

test("a Reject that is thrown before there is a turn is an error as any other", async () => {
  await using started = await startServer();
  const app = fastify({ forceCloseConnections: true });
  const handler = vi.fn(async () => "on it");
  app.addHook("onRequest", async () => {
    throw new Reject("not for us");
  });
  app.post("/hook", webhook(started.gate, github.delivery), handler);
  const address = await app.listen({ port: 0, host: "127.0.0.1" });
  await using hook = { port: Number(new URL(address).port), [Symbol.asyncDispose]: () => app.close() };
  expect(await post(hook, issue)).toMatchObject({ status: 500 });
  expect(handler).not.toHaveBeenCalled();
});
