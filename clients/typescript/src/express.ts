import type { IncomingMessage, OutgoingHttpHeaders, ServerResponse } from "node:http";
import type { Body } from "./delivery.js";
import { OncegateError, Reject } from "./errors.js";
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

type Route = {
  /** The methods that it handles. */
  readonly methods: { readonly [method: string]: boolean };
} & { readonly [method: string]: (handler: ErrorHandler) => void };

interface Response extends ServerResponse {
  locals: TurnLocals;
}

type Next = (error?: unknown) => void;
type ErrorHandler = (error: unknown, request: IncomingMessage, response: Response, next: Next) => void;
type Middleware = (request: IncomingMessage, response: Response, next: Next) => void;

/**
 * A middleware for Express: `app.post("/github", webhook(gate, github.delivery), handler)`. The
 * handler runs once for each delivery; a duplicate gets the same response. A response of 5xx fails
 * the turn, and so does an error, unless it is one of http-errors with a status of 4xx. The response is
 * sent when the turn has ended.
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
  const admissions = new WeakMap<Response, Threw>();
  const watched = new WeakMap<Route, Set<string>>();

  const watch: ErrorHandler = (error, _request, response, next) => {
    const threw = admissions.get(response);
    threw?.(error);
    if (threw && error instanceof Reject) response.end();
    else next(error); // the application's handler gets it
  };

  /** Sees what the handlers of the route throw before the application's own error handler answers it. */
  function watchErrors(route: Route, method: string): void {
    const name = method === "HEAD" && !route.methods.head ? "get" : method.toLowerCase();
    const names = watched.get(route) ?? new Set();
    if (names.has(name)) return;
    watched.set(route, names.add(name));
    route[name]?.(watch);
  }

  async function begin(request: Request, response: Response): Promise<boolean> {
    const { route, method = "" } = request;
    // Elsewhere the errors of the handler would not be seen.
    if (!route) throw new OncegateError("add webhook() to a route: app.post(path, webhook(…), handler)");
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
    admissions.set(response, capture(response, admitted));
    watchErrors(route, method);
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

/** Takes what the handler threw. */
type Threw = (error: unknown) => void;

/** Keeps the response of the handler until the turn has ended by it. */
function capture(response: Response, admitted: Admitted): Threw {
  const { write, end: finish, writeHead } = response;
  const chunks: Buffer[] = [];
  let isEnded = false;

  /** Takes the arguments of `write` or `end`. Returns the callback. */
  const take = (args: unknown[]): Callback | undefined => {
    const [chunk, encoding] = args;
    if (typeof chunk === "string") chunks.push(Buffer.from(chunk, encoding as BufferEncoding));
    else if (chunk instanceof Uint8Array) chunks.push(Buffer.from(chunk));
    return args.find((arg): arg is Callback => typeof arg === "function");
  };

  const captured = {
    writeHead(status: number, ...rest: (string | OutgoingHttpHeaders | string[])[]) {
      response.statusCode = status;
      const headers = rest.find((arg) => typeof arg === "object") ?? {};
      setHeaders(response, Array.isArray(headers) ? fromList(headers) : headers);
      return response;
    },
    write(...args: unknown[]) {
      const callback = take(args);
      if (callback) queueMicrotask(callback);
      return true;
    },
    end(...args: unknown[]) {
      if (isEnded) return response;
      isEnded = true;
      const callback = take(args);
      if (callback) response.once("finish", callback);
      // What is set after this is too late, as it would be without this middleware.
      const { statusCode: status } = response;
      const headers = response.getHeaders();
      const made = { status, headers: toText(headers), body: Buffer.concat(chunks) };
      admitted
        .end(() => made)
        .then((reply) => {
          Object.assign(response, { write, end: finish, writeHead });
          send(response, reply === made ? { ...reply, headers } : reply);
        })
        // Also if Node refuses to send what the handler has set, such as a status of 0.
        .catch((error) => response.destroy(error));
      return response;
    },
  };
  Object.assign(response, captured);
  return (error) => {
    if (isEnded) return; // too late: the response decides
    chunks.length = 0;
    admitted.threw(error);
  };
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

/** Names and values in turn. A name may come several times. */
function fromList(list: readonly string[]): OutgoingHttpHeaders {
  const headers: { [name: string]: string[] } = {};
  for (let index = 0; index + 1 < list.length; index += 2) {
    const [name, value] = list.slice(index) as [string, string];
    headers[name] = [...(headers[name] ?? []), value];
  }
  return headers;
}

function toText(headers: OutgoingHttpHeaders): Reply["headers"] {
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name, String(value)]));
}
