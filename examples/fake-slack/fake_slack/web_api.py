"""The Web API methods that a Bolt bot calls. Records every call."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from .events import APP, BOT, BOT_USER, TEAM, timestamp

APP_METHODS = {"apps.connections.open"}
"""Methods that need the app-level token."""


@dataclass
class Call:
    """One call of the bot."""

    method: str
    arguments: dict[str, Any]
    bot: str
    """Which bot, where each has a URL of its own."""
    time: float
    """When it came, by the monotonic clock."""


class WebApi:
    """Answers calls, and keeps them in the order in which they came."""

    def __init__(self, bot_token: str, app_token: str, on_call: Callable[[Call], None]) -> None:
        self.calls: list[Call] = []
        self._tokens = {"bot": f"Bearer {bot_token}", "app": f"Bearer {app_token}"}
        self._on_call = on_call
        self._held: dict[str, asyncio.Event] = {}

    @contextmanager
    def holding(self, method: str) -> Iterator[None]:
        """Does not answer calls of this method before the block ends: the bot is slow."""
        released = self._held[method] = asyncio.Event()
        try:
            yield
        finally:
            del self._held[method]
            released.set()

    async def serve(self, request: web.Request) -> web.Response:
        """One call, with its arguments as JSON, which may be missing, or as a form, which may have the token."""
        method = request.match_info["method"]
        if request.content_type == "application/json":
            arguments = json.loads(await request.read() or "{}")
        else:
            arguments = dict(await request.post())
        in_form = str(arguments.pop("token", ""))
        token = request.headers.get("Authorization", f"Bearer {in_form}")
        if token != self._tokens["app" if method in APP_METHODS else "bot"]:
            return web.json_response({"ok": False, "error": "invalid_auth"})
        call = Call(method, arguments, request.match_info.get("bot", ""), time.monotonic())
        self.calls.append(call)
        self._on_call(call)
        if held := self._held.get(method):
            await held.wait()
        return web.json_response(_answer(method, arguments, request))


def _answer(method: str, arguments: dict[str, Any], request: web.Request) -> dict[str, Any]:
    match method:
        case "api.test" | "assistant.threads.setStatus" | "reactions.add" | "reactions.remove":
            return {"ok": True}
        case "auth.test":
            return {
                "ok": True,
                "url": "https://fake.slack.com/",
                "team": "fake",
                "user": "bot",
                "team_id": TEAM,
                "user_id": BOT_USER,
                "bot_id": BOT,
                "is_enterprise_install": False,
            }
        case "apps.connections.open":
            return {"ok": True, "url": f"ws://{request.host}/link?app_id={APP}"}
        case "chat.postMessage" | "chat.update":
            message = {
                "type": "message",
                "user": BOT_USER,
                "bot_id": BOT,
                "app_id": APP,
                "text": arguments.get("text", ""),
                "ts": arguments.get("ts") or timestamp(),
            }
            if thread := arguments.get("thread_ts"):
                message["thread_ts"] = thread
            return {
                "ok": True,
                "channel": arguments.get("channel"),
                "ts": message["ts"],
                "message": message,
            }
        case "chat.postEphemeral":
            return {"ok": True, "message_ts": timestamp()}
        case "views.open" | "views.update" | "views.push":
            return {"ok": True, "view": {"id": f"V{timestamp()}", "team_id": TEAM, "app_id": APP}}
        case _:
            return {"ok": False, "error": "unknown_method"}
