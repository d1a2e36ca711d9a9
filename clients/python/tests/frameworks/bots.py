"""Bots for Bolt, asynchronous and synchronous, that a test controls in the same way."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import TYPE_CHECKING, Any, Protocol

from slack_bolt import App, BoltRequest
from slack_bolt.adapter.socket_mode.async_internals import run_async_bolt_app, send_async_response
from slack_bolt.adapter.socket_mode.internals import run_bolt_app, send_response
from slack_bolt.async_app import AsyncApp
from slack_bolt.authorization import AuthorizeResult
from slack_bolt.request.async_request import AsyncBoltRequest
from slack_sdk.socket_mode.request import SocketModeRequest

from oncegate import AsyncGate, Gate, TurnLost, bolt, current_turn

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from slack_bolt import BoltResponse

_AUTHORIZED = AuthorizeResult(
    enterprise_id=None, team_id="T1", bot_token="xoxb-1", bot_id="B1", bot_user_id="U0BOT"
)


class Script:
    """What the listeners of a bot do, and what they did."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, int | None, int]] = []
        """Per listener that ended well: event, fence and attempt."""
        self.began: list[str] = []
        self.busy: list[str] = []
        self.lost: list[str] = []
        self.errors: list[Exception] = []
        """What the app's own error handler was given."""
        self.go = threading.Event()
        """Listeners wait for it. Set unless a test clears it."""
        self.go.set()
        self.fail: list[Exception] = []
        """The errors that the next listeners raise."""
        self.ack_late = False
        """Clicks are acknowledged after the work."""
        self.result: object = None
        """The turn's result; by default, what was answered."""
        self.lazy_go = threading.Event()
        self.lazy_go.set()
        self.lazy_fail: list[Exception] = []

    def begin(self, body: dict[str, Any], turn: Any, context: Any) -> None:
        assert context["turn"] is turn
        assert current_turn() is turn
        self.began.append(name_of(body))

    def end(self, body: dict[str, Any], turn: Any) -> None:
        if self.fail:
            raise self.fail.pop(0)
        self.answers.append((name_of(body), turn.fence, turn.attempt))
        turn.result = self.result or {"answered": name_of(body)}


class Bot(Protocol):
    """A bot of either kind."""

    script: Script

    async def deliver(self, body: dict[str, Any], retry: int = 0) -> int:
        """A delivery over HTTP; returns the status."""
        ...

    async def envelope(self, body: dict[str, Any], retry: int | None = None) -> bool:
        """A delivery over Socket Mode; returns whether it was acknowledged."""
        ...


def name_of(body: dict[str, Any]) -> str:
    name: str = body.get("event_id") or body.get("trigger_id") or ""
    return name


def _headers(retry: int) -> dict[str, Any]:
    headers: dict[str, Any] = {"content-type": ["application/json"]}
    if retry:
        headers |= {"x-slack-retry-num": [str(retry)], "x-slack-retry-reason": ["http_error"]}
    return headers


def _envelope(body: dict[str, Any], retry: int | None) -> SocketModeRequest:
    kind = "events_api" if body["type"] == "event_callback" else "interactive"
    return SocketModeRequest(
        type=kind, envelope_id="e1", payload=body, retry_attempt=retry, retry_reason=None
    )


class _Client:
    """The part of a Socket Mode client that sends responses."""

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.sent: list[str] = []

    def send_socket_mode_response(self, response: Any) -> None:
        self.sent.append(response.envelope_id)


class _AsyncClient(_Client):
    async def send_socket_mode_response(self, response: Any) -> None:  # type: ignore[override]
        self.sent.append(response.envelope_id)


class AsyncBot:
    def __init__(
        self, gate: AsyncGate, *, process_before_response: bool = False, **options: Any
    ) -> None:
        self.script = script = Script()

        async def authorize() -> AuthorizeResult:
            return _AUTHORIZED

        self.app: Any = AsyncApp(
            signing_secret="x",
            authorize=authorize,
            request_verification_enabled=False,
            ignoring_self_events_enabled=False,
            process_before_response=process_before_response,
        )

        app = self.app

        async def on_busy(body: dict[str, Any]) -> None:
            script.busy.append(name_of(body))

        bolt.guard(app, gate, on_busy=on_busy, **options)

        async def mention(body: dict[str, Any], turn: Any, context: Any) -> None:
            script.begin(body, turn, context)
            try:
                while not script.go.is_set():  # noqa: ASYNC110 - threads set it
                    await asyncio.sleep(0.01)
            except asyncio.CancelledError:
                script.lost.append(name_of(body))
                raise
            script.end(body, turn)

        @app.action("approve")
        async def approve(
            ack: Callable[[], Awaitable[None]], body: dict[str, Any], turn: Any, context: Any
        ) -> None:
            if not script.ack_late:
                await ack()
            await mention(body, turn, context)

        async def ack(turn: Any) -> None:
            assert turn.held

        async def lazy(body: dict[str, Any], turn: Any) -> None:
            while not script.lazy_go.is_set():  # noqa: ASYNC110 - threads set it
                await asyncio.sleep(0.01)
            if script.lazy_fail:
                raise script.lazy_fail.pop(0)
            script.end(body, turn)

        app.event("app_mention")(mention)
        app.event("reaction_added")(ack=ack, lazy=[lazy])

        @app.options("cities")
        async def cities(ack: Callable[..., Awaitable[None]]) -> None:
            await ack(options=[])

        @app.error
        async def failed(error: Exception) -> None:
            script.errors.append(error)

    async def deliver(self, body: dict[str, Any], retry: int = 0) -> int:
        request = AsyncBoltRequest(body=json.dumps(body), headers=_headers(retry))
        response: BoltResponse = await self.app.async_dispatch(request)
        return response.status

    async def envelope(self, body: dict[str, Any], retry: int | None = None) -> bool:
        client: Any = _AsyncClient(self.app.logger)
        request = _envelope(body, retry)
        response = await run_async_bolt_app(self.app, request)
        await send_async_response(client, request, response, time.time())
        acknowledged: bool = client.sent == ["e1"]
        return acknowledged


class SyncBot:
    def __init__(self, gate: Gate, *, process_before_response: bool = False, **options: Any) -> None:
        self.script = script = Script()

        def authorize() -> AuthorizeResult:
            return _AUTHORIZED

        self.app: Any = App(
            signing_secret="x",
            authorize=authorize,
            request_verification_enabled=False,
            ignoring_self_events_enabled=False,
            process_before_response=process_before_response,
        )

        app = self.app

        def on_busy(body: dict[str, Any]) -> None:
            script.busy.append(name_of(body))

        bolt.guard(app, gate, on_busy=on_busy, **options)

        def mention(body: dict[str, Any], turn: Any, context: Any) -> None:
            script.begin(body, turn, context)
            while not script.go.is_set():
                try:
                    turn.check()
                except TurnLost:
                    script.lost.append(name_of(body))
                    raise
                time.sleep(0.01)
            script.end(body, turn)

        @app.action("approve")
        def approve(ack: Callable[[], None], body: dict[str, Any], turn: Any, context: Any) -> None:
            if not script.ack_late:
                ack()
            mention(body, turn, context)

        def ack(turn: Any) -> None:
            assert turn.held

        def lazy(body: dict[str, Any], turn: Any) -> None:
            script.lazy_go.wait(30)
            if script.lazy_fail:
                raise script.lazy_fail.pop(0)
            script.end(body, turn)

        app.event("app_mention")(mention)
        app.event("reaction_added")(ack=ack, lazy=[lazy])

        @app.options("cities")
        def cities(ack: Callable[..., None]) -> None:
            ack(options=[])

        @app.error
        def failed(error: Exception) -> None:
            script.errors.append(error)

    async def deliver(self, body: dict[str, Any], retry: int = 0) -> int:
        request = BoltRequest(body=json.dumps(body), headers=_headers(retry))
        response: BoltResponse = await asyncio.to_thread(self.app.dispatch, request)
        return response.status

    async def envelope(self, body: dict[str, Any], retry: int | None = None) -> bool:
        client: Any = _Client(self.app.logger)
        request = _envelope(body, retry)
        response = await asyncio.to_thread(run_bolt_app, self.app, request)
        send_response(client, request, response, time.time())
        acknowledged: bool = client.sent == ["e1"]
        return acknowledged
