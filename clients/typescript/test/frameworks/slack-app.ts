import type { Server } from "node:http";
import type { AddressInfo } from "node:net";
import { App, type AppOptions, ExpressReceiver, HTTPReceiver, type LogLevel } from "@slack/bolt";
import { vi } from "vitest";
import { type GuardOptions, guard } from "../../src/bolt.js";
import type { Gate } from "../../src/index.js";

export const quiet = { logLevel: "none" as LogLevel };

const receiverOptions = { signingSecret: "secret", signatureVerification: false, ...quiet };

/** What every app of the tests has: it asks nothing of Slack. */
export const appOptions: AppOptions = {
  authorize: async () => ({ botToken: "xoxb-1", botId: "B0", botUserId: "U0BOT" }),
  ...quiet,
};

/** An app for any receiver, whose errors are kept. */
export function makeApp(options: AppOptions) {
  const app = new App({ ...appOptions, ...options });
  const errors = vi.fn<(error: Error) => void>();
  app.error(async (error) => errors(error));
  return { app, errors };
}

export interface Answer {
  readonly status: number;
  readonly retryAfter: string | null;
  readonly text: string;
}

/** A guarded app that listens for HTTP requests, as those of Slack. */
export async function startApp(gate: Gate, options: GuardOptions = {}, kind: "http" | "express" = "http") {
  const receiver = kind === "http" ? new HTTPReceiver(receiverOptions) : new ExpressReceiver(receiverOptions);
  const { app, errors } = makeApp({ receiver: guard(receiver, gate, options) });
  const server = (await app.start({ port: 0, host: "127.0.0.1" })) as Server;
  const { port } = server.address() as AddressInfo;

  async function deliver(body: object, retryNum?: number): Promise<Answer> {
    const response = await fetch(`http://127.0.0.1:${port}/slack/events`, {
      method: "POST",
      headers: {
        "content-type": "application/json",
        ...(retryNum && { "x-slack-retry-num": String(retryNum) }),
      },
      body: JSON.stringify(body),
    });
    return {
      status: response.status,
      retryAfter: response.headers.get("retry-after"),
      text: await response.text(),
    };
  }

  const dispose = async () => {
    server.closeAllConnections();
    await app.stop();
  };
  return { app, errors, deliver, [Symbol.asyncDispose]: dispose };
}
