import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from "node:http";
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

export interface ExpressOptions extends WebhookOptions {
  /** The longest body, in bytes, if no parser has read it before. Default: 1 MiB. */
  readonly limit?: number | undefined;
}

/** `res.locals` of a handler. */
export type TurnLocals = {
  /** The turn of the delivery. */
  turn?: Turn;
};

interface Request extends IncomingMessage {
  /** The route that matched. */
  route?: Route;
  body?: unknown;
  /** The body as it came, if this middleware has read it. */
  rawBody?: Buffer;
}

interface Route {
  readonly [method: string]: (handler: ErrorHandler) => void;
}

interface Response extends ServerResponse {
  locals: TurnLocals;
}

type Next = (error?: unknown) => void;
type ErrorHandler = (error: unknown, request: IncomingMessage, response: Response, next: Next) => void;
type Middleware = (request: IncomingMessage, response: Response, next: Next) => void;

/**
 * A middleware for Express: `app.post("/github", webhook(gate, github.delivery), handler)`. The
 * handler runs once for each delivery; a duplicate gets the same response. A response of 5xx fails
 * the turn. The response is sent when the turn has ended.
 *
 * If no parser has read the body, it becomes `req.rawBody`, and `req.body` if it is JSON. Verify the
 * sender's signature first, with `express.raw`.
 */
export function webhook(gate: Gate, make: ByBody, options?: ExpressOptions): Middleware;
export function webhook(gate: Gate, make: ByHeaders, options?: ExpressOptions): Middleware;
export function webhook(
  gate: Gate,
  make: ByBody | ByHeaders,
  { limit = 1024 * 1024, ...options }: ExpressOptions = {},
): Middleware {
  const makeDelivery = withHeaders(make);
  const settlements = new WeakMap<Response, Settle>();
  const rejecting = new WeakSet<Route>();

  const rejects: ErrorHandler = (error, _request, response, next) => {
    const settle = error instanceof Reject ? settlements.get(response) : undefined;
    if (!settle) return next(error);
    settle(() => {
      throw error;
    });
  };

  /** After the handlers of its route, before the application's own: a Reject is no error. */
  function addRejects({ route, method = "" }: Request): void {
    if (!route || rejecting.has(route)) return;
    rejecting.add(route);
    route[method.toLowerCase()]?.(rejects);
  }

  async function begin(request: Request, response: Response): Promise<boolean> {
    const body = await readBody(request, limit);
    if (body === undefined) {
      response.writeHead(413, { connection: "close" }).end();
      return false;
    }
    const admitted = await admit(gate, makeDelivery, request.headers, body, options);
    if (!("turn" in admitted)) {
      send(response, admitted);
      return false;
    }
    response.locals.turn = admitted.turn;
    settlements.set(response, capture(response, admitted));
    addRejects(request);
    endIfAbandoned(admitted.turn, response);
    return true;
  }

  return (request, response, next) => {
    begin(request, response).then((isGranted) => {
      if (isGranted) next();
    }, next);
  };
}

/** The body as a parser left it, or as it comes. Undefined if it is too long. */
async function readBody(request: Request, limit: number): Promise<Body | undefined> {
  if (request.rawBody) return request.rawBody;
  if (request.body !== undefined) return request.body as Body;
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request.iterator({ destroyOnReturn: false })) {
    length += chunk.length;
    if (length > limit) return undefined;
    chunks.push(chunk);
  }
  request.rawBody = Buffer.concat(chunks);
  request.body = request.rawBody;
  if (request.headers["content-type"]?.includes("json")) {
    try {
      request.body = JSON.parse(request.rawBody.toString());
    } catch {
      // The handler gets the bytes.
    }
  }
  return request.rawBody;
}

type Callback = () => void;

/** Ends the turn by a response, and sends it. Only the first one counts. */
type Settle = (handle: () => Reply) => void;

/** Keeps the response of the handler until the turn has ended by it. */
function capture(response: Response, { end }: Admitted): Settle {
  const { write, end: finish, writeHead } = response;
  const chunks: Buffer[] = [];
  let isEnded = false;

  const settle = (handle: () => Reply, headers?: OutgoingHttpHeaders) => {
    if (isEnded) return;
    isEnded = true;
    let made: Reply | undefined;
    const handled = () => {
      made = handle();
      return made;
    };
    end(handled).then(
      (reply) => {
        Object.assign(response, { write, end: finish, writeHead });
        send(response, reply === made && headers ? { ...reply, headers } : reply);
      },
      (error) => response.destroy(error),
    );
  };

  /** Takes the arguments of `write` or `end`. Returns the callback. */
  const take = (args: unknown[]): Callback | undefined => {
    const [chunk, encoding] = args;
    if (typeof chunk === "string") chunks.push(Buffer.from(chunk, encoding as BufferEncoding));
    else if (chunk instanceof Uint8Array) chunks.push(Buffer.from(chunk));
    return args.find((arg): arg is Callback => typeof arg === "function");
  };

  const captured = {
    writeHead(status: number, ...rest: (string | OutgoingHttpHeaders)[]) {
      response.statusCode = status;
      setHeaders(response, rest.find((arg) => typeof arg === "object") ?? {});
      return response;
    },
    write(...args: unknown[]) {
      const callback = take(args);
      if (callback) queueMicrotask(callback);
      return true;
    },
    end(...args: unknown[]) {
      if (isEnded) return response;
      const callback = take(args);
      if (callback) response.once("finish", callback);
      // What is set after this is too late, as it would be without this middleware.
      const { statusCode: status } = response;
      const headers = response.getHeaders();
      settle(() => ({ status, headers: toText(headers), body: Buffer.concat(chunks) }), headers);
      return response;
    },
  };
  Object.assign(response, captured);
  return settle;
}

function send(
  response: Response,
  { status, headers, body }: { status: number; headers: OutgoingHttpHeaders; body: Uint8Array },
): void {
  for (const name of response.getHeaderNames()) response.removeHeader(name);
  response.statusCode = status;
  setHeaders(response, headers);
  response.end(body);
}

function setHeaders(response: Response, headers: OutgoingHttpHeaders): void {
  for (const [name, value] of Object.entries(headers)) {
    if (value !== undefined) response.setHeader(name, value);
  }
}

function toText(headers: OutgoingHttpHeaders): Reply["headers"] {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, String(value)]));
}
