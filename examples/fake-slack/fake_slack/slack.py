"""The fake as a whole: one workspace with one app."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from aiohttp import web

from .events import Attempt, Delivery, Payload, mention
from .http import HttpTransport
from .socket_mode import SocketModeTransport
from .web_api import Call, WebApi

BOT_TOKEN = "xoxb-fake"
APP_TOKEN = "xapp-fake"
SIGNING_SECRET = "fake-signing-secret"

ACK_TIMEOUT = 3.0
"""Seconds that Slack waits for an acknowledgement."""
RETRY_AFTER = (0, 60, 300)
"""Seconds that Slack waits before each retry."""

log = logging.getLogger("fake_slack")


class FakeSlack:
    """Delivers events to a bot, and records what the bot does.

    With `urls` it delivers over HTTP, otherwise over Socket Mode. `time_scale` shortens the waits
    before retries: with 0.1 they are 0 s, 6 s and 30 s.
    """

    def __init__(self, urls: Iterable[str] = (), *, port: int = 0, time_scale: float = 1.0) -> None:
        urls = list(urls)
        self.socket_mode = SocketModeTransport(ACK_TIMEOUT)
        self.web_api = WebApi(BOT_TOKEN, APP_TOKEN, self._on_call)
        http = HttpTransport(urls, SIGNING_SECRET, ACK_TIMEOUT)
        self._transport = http if urls else self.socket_mode
        self._port = port
        self._time_scale = time_scale
        self._deliveries: set[asyncio.Task[None]] = set()
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/api/{method}", self.web_api.serve)
        app.router.add_route("*", "/bots/{bot}/api/{method}", self.web_api.serve)
        app.router.add_get("/link", self.socket_mode.serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()
        self._port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._deliveries:
            task.cancel()
        if self._runner:
            await self._runner.cleanup()

    @property
    def environment(self) -> dict[str, str]:
        """The variables that point a bot at this fake."""
        return {
            "SLACK_API_URL": f"http://127.0.0.1:{self._port}/api/",
            "SLACK_BOT_TOKEN": BOT_TOKEN,
            "SLACK_SIGNING_SECRET": SIGNING_SECRET,
        } | ({"SLACK_APP_TOKEN": APP_TOKEN} if self._transport is self.socket_mode else {})

    def environment_of(self, bot: str) -> dict[str, str]:
        """The same, with a URL of its own, so that its calls are known by its name."""
        url = f"http://127.0.0.1:{self._port}/bots/{bot}/api/"
        return self.environment | {"SLACK_API_URL": url}

    def mention(self, text: str, thread: str | None = None, *, lose_ack: bool = False) -> Delivery:
        """A person mentions the bot, at the top of the channel or in a thread."""
        return self.deliver(mention(text, thread), lose_ack=lose_ack)

    def deliver(self, payload: Payload, *, lose_ack: bool = False) -> Delivery:
        """Starts to deliver an event, with retries as Slack makes them."""
        delivery = Delivery(payload, lose_ack)
        task = asyncio.create_task(self._deliver(delivery))
        self._deliveries.add(task)
        task.add_done_callback(self._deliveries.discard)
        return delivery

    def calls(self, *methods: str) -> list[Call]:
        """The bot's calls of these methods, in the order in which they came."""
        return [call for call in self.web_api.calls if call.method in methods]

    @property
    def answers(self) -> list[str]:
        """The texts that the bot posted, in order."""
        return [str(call.arguments["text"]) for call in self.calls("chat.postMessage")]

    async def until(self, holds: Callable[[], bool], within: float = 120.0) -> None:
        """Waits until something has happened; TimeoutError if it does not."""
        async with asyncio.timeout(within):
            while not holds():
                await asyncio.sleep(0.02)

    async def _deliver(self, delivery: Delivery) -> None:
        reason = None
        for number, wait in enumerate((0, *RETRY_AFTER)):
            await asyncio.sleep(wait * self._time_scale)
            if delivery.accepted:
                break
            attempt = Attempt(number)
            delivery.attempts.append(attempt)
            reason = attempt.outcome = await self._transport.attempt(delivery, attempt, reason)
            log.info(
                "%s, delivery %d to %s: %s",
                delivery.event_id,
                number + 1,
                attempt.receiver,
                reason,
            )
        delivery.ended = True

    def _on_call(self, call: Call) -> None:
        if call.method not in ("auth.test", "apps.connections.open"):
            text = call.arguments.get("text") or call.arguments.get("status", "")
            log.info("the bot calls %s: %s", call.method, text)
