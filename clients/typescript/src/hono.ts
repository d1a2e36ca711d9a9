import type { MiddlewareHandler } from "hono";
import type { Gate } from "./gate.js";
import type { Turn } from "./turn.js";
import {
  admit,
  type ByBody,
  type ByHeaders,
  endIfAbandoned,
  type Reply,
  type WebhookOptions,
  withHeaders,
} from "./webhook.js";

/** `c.get("turn")` is the turn of the delivery. */
export interface TurnVariables {
  turn: Turn;
}

type TurnMiddleware = MiddlewareHandler<{ Variables: TurnVariables }>;

/**
 * A middleware for Hono: `app.post("/github", webhook(gate, github.delivery), handler)`. The handler
 * runs once for each delivery; a duplicate gets the same response. A response of 5xx fails the turn, and so
 * does an error, unless it is an HTTPException with a status of 4xx. Verify the sender's signature first.
 */
export function webhook(gate: Gate, make: ByBody, options?: WebhookOptions): TurnMiddleware;
export function webhook(gate: Gate, make: ByHeaders, options?: WebhookOptions): TurnMiddleware;
export function webhook(gate: Gate, make: ByBody | ByHeaders, options: WebhookOptions = {}): TurnMiddleware {
  const makeDelivery = withHeaders(make);
  return async (c, next) => {
    const body = new Uint8Array(await c.req.arrayBuffer());
    const admitted = await admit(gate, makeDelivery, c.req.raw.headers, body, options);
    if (!("turn" in admitted)) return toResponse(admitted);
    c.set("turn", admitted.turn);
    endIfAbandoned(admitted.turn, c.req.raw.signal);
    let reply: Reply | undefined;
    const sent = await admitted.end(async () => {
      await next();
      // Hono has answered what the handler threw.
      if (c.error) admitted.threw(c.error);
      reply = await toReply(c.res.clone());
      return reply;
    });
    if (sent === reply) return;
    c.res = undefined; // Hono would keep its headers
    c.res = toResponse(sent);
  };
}

async function toReply(response: Response): Promise<Reply> {
  return {
    status: response.status,
    headers: Object.fromEntries(response.headers),
    body: new Uint8Array(await response.arrayBuffer()),
  };
}

function toResponse({ status, headers, body }: Reply): Response {
  return new Response(body.length > 0 ? (body as Uint8Array<ArrayBuffer>) : null, { status, headers });
}
