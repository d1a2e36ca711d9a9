"""A Slack bot that answers every mention in its thread once, also over redelivery and crashes.

A crash after the post may repeat it.
Over Socket Mode if SLACK_APP_TOKEN is set, otherwise over HTTP on PORT.
"""

import asyncio
import os

import oncegate.bolt
from oncegate import AsyncGate
from slack_bolt.adapter.socket_mode.async_handler import AsyncSocketModeHandler
from slack_bolt.async_app import AsyncApp

THINK_SECONDS = float(os.environ.get("THINK_SECONDS", "5"))

# Acknowledge after the handler: if this process is killed, Slack delivers the event again.
app = AsyncApp(process_before_response=True)
app.client.base_url = os.environ.get("SLACK_API_URL", app.client.base_url)
if os.environ.get("GUARD") != "off":  # "off" shows what Slack's redelivery does to this bot
    oncegate.bolt.guard(app, AsyncGate())


@app.event("app_mention")
async def answer(event, client, say, turn=None):
    thread = event.get("thread_ts") or event["ts"]
    await client.assistant_threads_setStatus(
        channel_id=event["channel"], thread_ts=thread, status="is thinking…"
    )
    await asyncio.sleep(THINK_SECONDS)  # A language model would do its work here.
    if turn:
        turn.check()
    _, _, question = event["text"].partition("> ")
    await say(f"You said: {question}", thread_ts=thread)


async def listen():
    await AsyncSocketModeHandler(app).start_async()


if "SLACK_APP_TOKEN" in os.environ:
    asyncio.run(listen())
else:
    app.start(port=int(os.environ.get("PORT", "3000")))
