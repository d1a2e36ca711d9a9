import { buffer } from "node:stream/consumers";
import type { FastifyReply, FastifyRequest } from "fastify";
import type { Body } from "./delivery.js";
import { Reject } from "./errors.js";
import type { Gate } from "./gate.js";
import type { Turn } from "./turn.js";
import {
  type Admitted,
  admit,
  type ByBody,
  type ByHeaders,
  endIfAbandoned,
  type Reply,
  type WebhookOptions,
  withHeaders,
} from "./webhook.js";

declare module "fastify" {
  interface FastifyRequest {
    /** The turn of the delivery, in a handler with `webhook`. */
    turn?: Turn;
  }
}

/** The options of one route. */
export interface WebhookRoute {
  preHandler(request: FastifyRequest, reply: FastifyReply): Promise<unknown>;
  errorHandler(error: unknown, request: FastifyRequest, reply: FastifyReply): Promise<unknown>;
  onSend(request: FastifyRequest, reply: FastifyReply, payload: unknown): Promise<unknown>;
}

/**
 * The options of a route of Fastify: `app.post("/github", webhook(gate, github.delivery), handler)`.
 * The handler runs once for each delivery; a duplicate gets the same response. A response of 5xx
 * fails the turn, and so does an error, unless it is one of http-errors with a status of 4xx. Verify the
 * sender's signature first.
 */
export function webhook(gate: Gate, make: ByBody, options?: WebhookOptions): WebhookRoute;
export function webhook(gate: Gate, make: ByHeaders, options?: WebhookOptions): WebhookRoute;
export function webhook(gate: Gate, make: ByBody | ByHeaders, options: WebhookOptions = {}): WebhookRoute {
  const makeDelivery = withHeaders(make);
  const admissions = new WeakMap<FastifyRequest, Admitted>();
  return {
    async preHandler(request, reply) {
      // How a body is encoded does not change what it names.
      const admitted = await admit(gate, makeDelivery, request.headers, request.body as Body, options);
      if (!("turn" in admitted)) return reply.send(answer(reply, admitted));
      admissions.set(request, admitted);
      request.turn = admitted.turn;
      endIfAbandoned(admitted.turn, reply.raw);
      // A reply that the handler has hijacked has no onSend: its status ends the turn.
      reply.raw.once("finish", () => {
        if (!admissions.delete(request)) return;
        const made = { status: reply.raw.statusCode, headers: {}, body: new Uint8Array() };
        admitted.end(() => made).catch((error) => request.log.error(error));
      });
    },
    async errorHandler(error, request, reply) {
      const admitted = admissions.get(request);
      admitted?.threw(error);
      if (admitted && error instanceof Reject) return reply.send();
      throw error; // the application's handler gets it
    },
    async onSend(request, reply, payload) {
      const admitted = admissions.get(request);
      admissions.delete(request);
      if (!admitted) return payload;
      let made: Reply | undefined;
      const sent = await admitted.end(async () => {
        made = await toReply(reply, payload);
        return made;
      });
      if (sent !== made) for (const name of Object.keys(reply.getHeaders())) reply.removeHeader(name);
      return sent === made ? Buffer.from(sent.body) : answer(reply, sent);
    },
  };
}

/** Applies a Response of the web to the reply, as Fastify would after its hooks. */
function applyResponse(reply: FastifyReply, response: Response): ReadableStream | null {
  reply.code(response.status);
  for (const [name, value] of response.headers) reply.header(name, value);
  return response.body;
}

async function toReply(reply: FastifyReply, payload: unknown): Promise<Reply> {
  const content = payload instanceof Response ? applyResponse(reply, payload) : payload;
  const body = await toBuffer(content);
  const headers = Object.entries(reply.getHeaders()).map(([name, value]) => [name, String(value)]);
  return { status: reply.statusCode, headers: Object.fromEntries(headers), body };
}

function answer(reply: FastifyReply, { status, headers, body }: Reply): Buffer {
  reply.code(status).headers(headers);
  return Buffer.from(body);
}

async function toBuffer(payload: unknown): Promise<Buffer> {
  if (payload === null || payload === undefined) return Buffer.alloc(0);
  if (typeof payload === "string" || payload instanceof Uint8Array) return Buffer.from(payload as string);
  return buffer(payload as AsyncIterable<Uint8Array>);
}
