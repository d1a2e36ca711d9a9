import { type Body, Delivery, type PayloadOptions, toBytes } from "./delivery.js";

/**
 * A delivery of Slack: the body of a request as it came (JSON or form-encoded), or a frame of
 * Socket Mode. Verify the signature first.
 */
export function delivery(body: Body, options: PayloadOptions = {}): Delivery {
  const redelivers = options.redelivers ?? isEvent(body);
  return Delivery.payload(
    "slack",
    { case: "slackPayload", value: toBytes(body) },
    { ...options, redelivers },
  );
}

/** Slack redelivers events, and neither interactions nor commands. */
function isEvent(body: Body): boolean {
  try {
    const read =
      typeof body === "string" || body instanceof Uint8Array ? JSON.parse(String(text(body))) : body;
    return read.type === "events_api" || "event" in (read.payload ?? read);
  } catch {
    return false; // a form
  }
}

function text(body: string | Uint8Array): string {
  return typeof body === "string" ? body : new TextDecoder().decode(body);
}
