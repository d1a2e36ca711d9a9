import fastify from "fastify";
import { expect, test, vi } from "vitest";
import { webhook } from "../../src/fastify.js";
import * as github from "../../src/github.js";
import { Reject } from "../../src/index.js";
import { startServer } from "../../src/testing.js";
import { payload } from "./payloads.js";
import { post } from "./webhooks.js";

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
  expect(await post(hook, payload("github", "issue"))).toMatchObject({ status: 500 });
  expect(handler).not.toHaveBeenCalled();
});
