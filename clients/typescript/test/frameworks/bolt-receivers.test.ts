import { App, AwsLambdaReceiver, SocketModeReceiver } from "@slack/bolt";
import { expect, test, vi } from "vitest";
import { guard } from "../../src/bolt.js";
import { Session } from "../../src/index.js";
import * as slack from "../../src/slack.js";
import { startServer } from "../../src/testing.js";
import { eventually } from "./eventually.js";
import { payload } from "./payloads.js";
import { appOptions, makeApp, quiet } from "./slack-app.js";

const message = payload("slack", "message").body;
const button = payload("slack", "button").body;
const thread = new Session("T1", "T1:C1:1700000001.000100");

/** A receiver for Socket Mode, and the envelopes that its client would get. */
function makeSocket() {
  const receiver = new SocketModeReceiver({ appToken: "xapp-1", ...quiet });
  const send = (body: object, retry = 0) => {
    const ack = vi.fn(async () => {});
    const { client } = receiver as unknown as { client: { emit(name: string, envelope: object): void } };
    client.emit("slack_event", { body, ack, retry_num: retry, retry_reason: "" });
    return ack;
  };
  return { receiver, send };
}

test("Socket Mode: granted and duplicate are acknowledged, in progress is not", async () => {
  await using started = await startServer();
  const { receiver, send } = makeSocket();
  const { app, errors } = makeApp({ receiver: guard(receiver, started.gate) });
  const listener = vi.fn(async () => {});
  app.message(listener);

  const turn = await started.gate.begin(slack.delivery(message));
  const processed = vi.spyOn(app, "processEvent");
  const refused = send(message);
  await expect(processed.mock.results[0]?.value).rejects.toThrow("the delivery is refused");
  expect(refused).not.toHaveBeenCalled();
  await turn.fail();

  const granted = send(message, 1);
  await eventually(() => expect(granted).toHaveBeenCalledOnce());
  await eventually(async () => expect(await started.server.turns()).toEqual([]));
  const duplicate = send(message, 2);
  await eventually(() => expect(duplicate).toHaveBeenCalledOnce());
  expect(listener).toHaveBeenCalledOnce();
  expect(errors).not.toHaveBeenCalled();
});

test("Socket Mode: the acknowledgement can come after the listeners, and not if one throws", async () => {
  await using started = await startServer();
  const { receiver, send } = makeSocket();
  const { app, errors } = makeApp({
    receiver: guard(receiver, started.gate, { processBeforeResponse: true }),
  });
  const processed = vi.spyOn(app, "processEvent");
  const acknowledged: number[] = [];
  let ack = vi.fn();
  app.message(async ({ context }) => {
    acknowledged.push(ack.mock.calls.length);
    if (context.turn?.attempt === 1) throw new Error("the model is overloaded");
  });

  ack = send(message);
  await expect(processed.mock.results[0]?.value).rejects.toThrow("the delivery is refused");
  expect(ack).not.toHaveBeenCalled();
  expect(errors).toHaveBeenCalledOnce();

  ack = send(message, 1);
  await eventually(() => expect(ack).toHaveBeenCalledOnce());
  expect(acknowledged).toEqual([0, 0]);
  expect(await started.gate.seen(slack.delivery(message))).toMatchObject({ outcome: "SUCCEEDED" });
});

test("Socket Mode: an event whose acknowledgement cannot be sent is handled by its next delivery", async () => {
  await using started = await startServer();
  const { receiver, send } = makeSocket();
  const { app, errors } = makeApp({ receiver: guard(receiver, started.gate) });
  const listener = vi.fn(async () => {});
  app.message(listener);
  const processed = vi.spyOn(app, "processEvent");

  send(message).mockRejectedValue(new Error("the socket is not ready"));
  await processed.mock.results[0]?.value;
  expect(errors).toHaveBeenCalledOnce();
  expect(listener).not.toHaveBeenCalled();
  expect(await started.gate.seen(slack.delivery(message))).toMatchObject({ state: "NOT_SEEN" });

  const ack = send(message, 1);
  await processed.mock.results[1]?.value;
  expect(ack).toHaveBeenCalledOnce();
  expect(listener).toHaveBeenCalledOnce();
});

test("Socket Mode: a listener waits for its thread after the acknowledgement", async () => {
  await using started = await startServer();
  const { receiver, send } = makeSocket();
  const { app } = makeApp({ receiver: guard(receiver, started.gate) });
  const listener = vi.fn(async ({ ack }) => ack());
  app.action("approve", listener);
  const lease = await started.gate.lease(thread);
  const ack = send(button);
  await eventually(() => expect(ack).toHaveBeenCalledOnce());
  expect(listener).not.toHaveBeenCalled();
  await lease.release();
  await eventually(() => expect(listener).toHaveBeenCalledOnce());
  expect(ack).toHaveBeenCalledOnce();
});

test("AWS Lambda: the response says whether Slack shall deliver again", async () => {
  await using started = await startServer();
  const receiver = new AwsLambdaReceiver({ signingSecret: "secret", signatureVerification: false, ...quiet });
  const app = new App({ ...appOptions, receiver: guard(receiver, started.gate, { wait: 0 }) });
  const listener = vi.fn(async () => {});
  app.message(listener);
  const handler = await receiver.start();
  const deliver = () => {
    const headers = { "Content-Type": "application/json" };
    // biome-ignore lint/suspicious/noExplicitAny: the event of API Gateway has many fields that Bolt does not read
    return handler({ body: JSON.stringify(message), headers } as any, {});
  };
  {
    await using _lease = await started.gate.lease(thread);
    expect(await deliver()).toMatchObject({ statusCode: 500 });
  }
  listener.mockRejectedValueOnce(new Error("the model is overloaded"));
  expect(await deliver()).toMatchObject({ statusCode: 500 });
  expect(await deliver()).toMatchObject({ statusCode: 200 });
  expect(await deliver()).toMatchObject({ statusCode: 200 });
  expect(listener).toHaveBeenCalledTimes(2);
});

test("an app that makes its receiver itself is guarded as a whole", async () => {
  await using started = await startServer();
  const { app, errors } = makeApp({ signingSecret: "secret" });
  guard(app, started.gate);
  const listener = vi.fn(async () => {});
  app.message(listener);
  const ack = vi.fn(async () => {});
  await app.processEvent({ body: message, ack });
  await app.processEvent({ body: message, ack });
  expect(listener).toHaveBeenCalledOnce();
  expect(ack).toHaveBeenCalledTimes(2);
  expect(errors).not.toHaveBeenCalled();
});

test("the app finds its receiver as it made it", async () => {
  await using started = await startServer();
  const { receiver } = makeSocket();
  expect(guard(receiver, started.gate)).toBe(receiver);
});
