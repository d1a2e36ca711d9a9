// A Slack bot that answers every mention in its thread once, also over redelivery and crashes. A crash after
// the post may repeat it.
//
// Over Socket Mode if SLACK_APP_TOKEN is set, otherwise over HTTP on PORT.

import { setTimeout as sleep } from "node:timers/promises";
import bolt from "@slack/bolt";
import { Gate } from "oncegate";
import { guard } from "oncegate/bolt";

const { SLACK_API_URL, SLACK_APP_TOKEN, SLACK_BOT_TOKEN, SLACK_SIGNING_SECRET } = process.env;
const { GUARD = "on", PORT = "3000", THINK_SECONDS = "5" } = process.env;
const clientOptions = { slackApiUrl: SLACK_API_URL };

// Acknowledge after the handler: if this process is killed, Slack delivers the event again.
const processBeforeResponse = true;
const receiver = SLACK_APP_TOKEN
  ? new bolt.SocketModeReceiver({ appToken: SLACK_APP_TOKEN, installerOptions: { clientOptions } })
  : new bolt.HTTPReceiver({ signingSecret: SLACK_SIGNING_SECRET, processBeforeResponse });
// "off" shows what Slack's redelivery does to this bot.
if (GUARD !== "off") guard(receiver, new Gate(), { processBeforeResponse });

const app = new bolt.App({ token: SLACK_BOT_TOKEN, clientOptions, receiver });

app.event("app_mention", async ({ event, client, context, say }) => {
  const thread = event.thread_ts ?? event.ts;
  await client.assistant.threads.setStatus({
    channel_id: event.channel,
    thread_ts: thread,
    status: "is thinking…",
  });
  await sleep(1000 * Number(THINK_SECONDS)); // A language model would do its work here.
  context.turn?.check();
  const question = event.text.slice(event.text.indexOf("> ") + 2);
  await say({ text: `You said: ${question}`, thread_ts: thread });
});

await app.start(Number(PORT));
