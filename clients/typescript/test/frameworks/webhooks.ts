import type { AddressInfo } from "node:net";
import { serve } from "@hono/node-server";
import express from "express";
import fastify from "fastify";
import { Hono } from "hono";
import type { ContentfulStatusCode } from "hono/utils/http-status";
import * as onExpress from "../../src/express.js";
import * as onFastify from "../../src/fastify.js";
import * as onHono from "../../src/hono.js";
import type { Gate, Turn } from "../../src/index.js";
import type { ByHeaders, WebhookOptions } from "../../src/webhook.js";

export interface Made {
  readonly status: number;
  readonly headers?: { readonly [name: string]: string };
  readonly json: unknown;
}

export type Handler = (turn: Turn, body: unknown) => Promise<Made> | Made;

/** A server with one webhook at `/hook`. */
export interface Hook extends AsyncDisposable {
  readonly port: number;
}

/** As the frameworks' own error handlers do, or those of many applications. */
function statusOf(error: unknown): ContentfulStatusCode {
  return (error as { status?: ContentfulStatusCode }).status ?? 500;
}

type Start = (gate: Gate, make: ByHeaders, handler: Handler, options?: WebhookOptions) => Promise<Hook>;

const startExpress: Start = async (gate, make, handler, options) => {
  const app = express();
  app.post("/hook", onExpress.webhook(gate, make, options), async (request, response) => {
    const { status, headers, json } = await handler(response.locals.turn as Turn, request.body);
    response
      .status(status)
      .set({ ...headers })
      .json(json);
  });
  app.use(((error, _request, response, _next) => {
    response.status(statusOf(error)).end();
  }) satisfies express.ErrorRequestHandler);
  const server = app.listen(0, "127.0.0.1");
  await new Promise((resolve) => server.once("listening", resolve));
  const dispose = async () => {
    server.closeAllConnections();
    server.close();
  };
  return { port: (server.address() as AddressInfo).port, [Symbol.asyncDispose]: dispose };
};

const startFastify: Start = async (gate, make, handler, options) => {
  const app = fastify({ forceCloseConnections: true });
  app.post("/hook", onFastify.webhook(gate, make, options), async (request, reply) => {
    const { status, headers, json } = await handler(request.turn as Turn, request.body);
    return reply
      .code(status)
      .headers({ ...headers })
      .send(json);
  });
  const address = await app.listen({ port: 0, host: "127.0.0.1" });
  return { port: Number(new URL(address).port), [Symbol.asyncDispose]: () => app.close() };
};

const startHono: Start = async (gate, make, handler, options) => {
  const app = new Hono();
  app.post("/hook", onHono.webhook(gate, make, options), async (c) => {
    const { status, headers, json } = await handler(c.get("turn"), await c.req.json());
    return Response.json(json, { status, headers: { ...headers } });
  });
  app.onError((error, c) => c.text("failed", statusOf(error)));
  return new Promise((resolve) => {
    const server = serve({ fetch: app.fetch, port: 0, hostname: "127.0.0.1" }, ({ port }) => {
      const dispose = async () => {
        if ("closeAllConnections" in server) server.closeAllConnections();
        server.close();
      };
      resolve({ port, [Symbol.asyncDispose]: dispose });
    });
  });
};

export const frameworks = { express: startExpress, fastify: startFastify, hono: startHono };

export interface Answer {
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
}

export async function post(
  { port }: Hook,
  { headers = {}, body }: { headers?: { readonly [name: string]: string }; body: unknown },
  signal: AbortSignal | null = null,
): Promise<Answer> {
  const response = await fetch(`http://127.0.0.1:${port}/hook`, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: JSON.stringify(body),
    signal,
  });
  return { status: response.status, headers: response.headers, text: await response.text() };
}
