"""Bots for Bolt, asynchronous and synchronous, that a test controls in the same way."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from slack_bolt import App, BoltRequest
from slack_bolt.adapter.socket_mode.async_internals import run_async_bolt_app, send_async_response
from slack_bolt.adapter.socket_mode.internals import run_bolt_app, send_response
from slack_bolt.async_app import AsyncApp
from slack_bolt.authorization import AuthorizeResult
from slack_bolt.request.async_request import AsyncBoltRequest
from slack_sdk.socket_mode.request import SocketModeRequest

from oncegate import AsyncGate, Gate, TurnLost, bolt, current_turn
from oncegate import slack as slack_names

from .conftest import vector

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from slack_bolt import BoltResponse

    from oncegate.testing import Server

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
        self.fail: list[BaseException] = []
        """The errors that the next listeners raise."""
        self.acks = True
        """Whether clicks are acknowledged."""
        self.second: list[str] = []
        """Clicks that came to the second listener which matches them."""
        self.held: list[bool] = []
        """Whether turns were held at the end of the listeners of reactions."""
        self.result: object = None
        """The turn's result; by default, what was answered."""
        self.lazy_go = threading.Event()
        self.lazy_go.set()
        self.lazy_fail: list[BaseException] = []

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

    app: Any
    script: Script
    ended: BaseException
    """What ends a listener, and is no error to Bolt."""

    async def deliver(self, body: dict[str, Any], retry: int = 0, *, form: bool = False) -> int:
        """A delivery over HTTP; returns the status."""
        ...

    async def envelope(self, body: dict[str, Any], retry: int | None = None) -> bool:
        """A delivery over Socket Mode; returns whether it was acknowledged."""
        ...


def name_of(body: dict[str, Any]) -> str:
    name: str = body.get("event_id") or body.get("trigger_id") or ""
    return name


def _request(body: dict[str, Any], retry: int, form: bool) -> dict[str, Any]:
    kind = "x-www-form-urlencoded" if form else "json"
    headers: dict[str, Any] = {"content-type": [f"application/{kind}"]}
    if retry:
        headers |= {"x-slack-retry-num": [str(retry)], "x-slack-retry-reason": ["http_error"]}
    text = json.dumps(body)
    return {"body": urlencode({"payload": text}) if form else text, "headers": headers}


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
    ended: BaseException = asyncio.CancelledError()  # as a task that the listener waits for

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
            if script.acks:
                await ack()
            await mention(body, turn, context)

        @app.action("approve")
        async def approve_again(ack: Callable[[], Awaitable[None]], body: dict[str, Any]) -> None:
            await ack()
            script.second.append(name_of(body))

        async def ack(body: dict[str, Any], turn: Any) -> None:
            script.began.append(name_of(body))
            while not script.go.is_set():  # noqa: ASYNC110 - threads set it
                await asyncio.sleep(0.01)
            script.held.append(turn.held)
            if script.fail:
                raise script.fail.pop(0)

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

    async def deliver(self, body: dict[str, Any], retry: int = 0, *, form: bool = False) -> int:
        request = AsyncBoltRequest(**_request(body, retry, form))
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
    ended: BaseException = SystemExit(3)

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
            if script.acks:
                ack()
            mention(body, turn, context)

        @app.action("approve")
        def approve_again(ack: Callable[[], None], body: dict[str, Any]) -> None:
            ack()
            script.second.append(name_of(body))

        def ack(body: dict[str, Any], turn: Any) -> None:
            script.began.append(name_of(body))
            script.go.wait(30)
            script.held.append(turn.held)
            if script.fail:
                raise script.fail.pop(0)

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

    async def deliver(self, body: dict[str, Any], retry: int = 0, *, form: bool = False) -> int:
        request = BoltRequest(**_request(body, retry, form))
        response: BoltResponse = await asyncio.to_thread(self.app.dispatch, request)
        return response.status

    async def envelope(self, body: dict[str, Any], retry: int | None = None) -> bool:
        client: Any = _Client(self.app.logger)
        request = _envelope(body, retry)
        response = await asyncio.to_thread(run_bolt_app, self.app, request)
        send_response(client, request, response, time.time())
        acknowledged: bool = client.sent == ["e1"]
        return acknowledged


MakeBot: TypeAlias = Callable[..., Bot]


@pytest_asyncio.fixture(params=["async", "sync"])
async def make_bot(request: pytest.FixtureRequest, server: Server) -> AsyncIterator[MakeBot]:
    """Makes bots of both kinds, each with a gate of its own."""
    gates: list[AsyncGate | Gate] = []

    def make(*, gate_options: dict[str, Any] | None = None, **options: Any) -> Bot:
        settings: dict[str, Any] = {"ttl": 30, **(gate_options or {})}
        if request.param == "async":
            gate = AsyncGate(server.address, **settings)
            gates.append(gate)
            return AsyncBot(gate, **options)
        sync_gate = Gate(server.address, **settings)
        gates.append(sync_gate)
        return SyncBot(sync_gate, **options)

    yield make
    for gate in gates:
        if isinstance(gate, AsyncGate):
            await gate.close()
        else:
            gate.close()


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets how long a bot asks for a turn before it answers Slack: on a loaded machine, long."""

    def set_patience(seconds: float) -> None:
        for module in ("_aio", "_sync"):
            monkeypatch.setattr(f"oncegate.bolt.{module}.PATIENCE_BEFORE_ACK", seconds)

    set_patience(30)
    return set_patience


@pytest.fixture
def bot(make_bot: MakeBot) -> Bot:
    return make_bot()


def mention(event_id: str = "Ev1", ts: str = "1700000001.000100", thread: str = "") -> Any:
    """Somebody mentions the bot; `thread`: in the thread that this message started."""
    what = "app_mention of the same message: has two names in common with it"
    body = vector("slack", what)["body"]
    body["event_id"] = event_id
    body["event"] |= {"ts": ts, "client_msg_id": f"{event_id}-{ts}"}
    if thread:
        body["event"]["thread_ts"] = thread
    return body


def click(trigger: str = "t1") -> Any:
    """Somebody clicks a button of the message that `mention` is."""
    body = vector("slack", "button")["body"]
    body["trigger_id"] = trigger
    body["message"]["ts"] = body["container"]["message_ts"] = "1700000001.000100"
    body["actions"][0]["action_id"] = "approve"
    return body


async def outcome(server: Server, body: Any) -> tuple[str, str | None, Any]:
    async with AsyncGate(server.address) as gate:
        seen = await gate.seen(slack_names.delivery(body), include_result=True)
        return seen.state, seen.outcome, seen.result
