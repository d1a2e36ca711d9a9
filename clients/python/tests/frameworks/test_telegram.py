"""python-telegram-bot: an application with `Turns`, fed through its own queue of updates."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, TypeAlias

import pytest
import pytest_asyncio
from telegram import Update
from telegram.ext import Application, ApplicationBuilder, Defaults, TypeHandler
from telegram.request import BaseRequest

from oncegate import AsyncGate, Busy, Reject, Session, current_turn, telegram

from .conftest import until, vector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from oncegate.testing import Server

BOT = {"id": 77, "is_bot": True, "first_name": "bot", "username": "bot"}

AnyApplication: TypeAlias = Application[Any, Any, Any, Any, Any, Any]


class Offline(BaseRequest):
    """Telegram, as far as an application asks it at its start."""

    @property
    def read_timeout(self) -> float:
        return 1

    async def initialize(self) -> None: ...
    async def shutdown(self) -> None: ...

    async def do_request(self, *_: Any, **__: Any) -> tuple[int, bytes]:
        return 200, json.dumps({"ok": True, "result": BOT}).encode()


class Bot:
    """An application with one handler that a test controls."""

    def __init__(self, gate: AsyncGate, defaults: Defaults | None = None) -> None:
        self.began: list[tuple[int, int | None, int]] = []
        self.ended: list[int] = []
        self.lost: list[int] = []
        self.errors: list[Exception | None] = []
        self.fail: list[Exception] = []
        self.go = asyncio.Event()
        self.go.set()
        builder = ApplicationBuilder()
        if defaults:
            builder = builder.defaults(defaults)
        self.app: AnyApplication = (
            builder.token("77:x")
            .request(Offline())
            .get_updates_request(Offline())
            .concurrent_updates(telegram.Turns(gate, 64))
            .build()
        )
        self.app.add_handler(TypeHandler(Update, self.handle, block=True))

    async def handle(self, update: Update, _: Any) -> None:
        turn = current_turn()
        self.began.append((update.update_id, turn.fence, turn.attempt))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.lost.append(update.update_id)
            raise
        if self.fail:
            raise self.fail.pop(0)
        self.ended.append(update.update_id)

    async def on_error(self, _: object, context: Any) -> None:
        self.errors.append(context.error)

    async def send(self, update_id: int) -> None:
        body = vector("telegram", "message in a group")["body"] | {"update_id": update_id}
        body["message"]["date"] = 1_700_000_000
        await self.app.update_queue.put(Update.de_json(body, self.app.bot))

    async def idle(self) -> None:
        await until(lambda: self.app.update_processor.current_concurrent_updates == 0)


@pytest_asyncio.fixture
async def make_bot(server: Server) -> AsyncIterator[Callable[[], Any]]:
    async with AsyncExitStack() as stack:

        async def make(ttl: float = 30, defaults: Defaults | None = None) -> Bot:
            gate = await stack.enter_async_context(AsyncGate(server.address, ttl=ttl))
            bot = Bot(gate, defaults)
            await stack.enter_async_context(bot.app)
            await bot.app.start()
            stack.push_async_callback(bot.app.stop)
            return bot

        yield make


async def state(server: Server, update_id: int) -> tuple[str, str | None]:
    body = {"update_id": update_id}
    async with AsyncGate(server.address) as gate:
        seen = await gate.seen(telegram.delivery(body, team="77"))
        return seen.state, seen.outcome


async def test_an_update_is_handled_once(make_bot: Any, server: Server) -> None:
    bot, replica = await make_bot(), await make_bot()
    await bot.send(1)
    await until(lambda: bot.ended and not server.turns())
    assert await state(server, 1) == ("PROCESSED", "SUCCEEDED")
    [(update, fence, attempt)] = bot.began
    assert (update, attempt) == (1, 1)
    assert fence is not None
    await replica.send(1)
    await until(lambda: replica.app.update_queue.empty())
    await replica.idle()
    assert replica.began == []


async def test_updates_of_a_chat_come_one_after_another(make_bot: Any, server: Server) -> None:
    bot, replica = await make_bot(), await make_bot()
    bot.go.clear()
    await bot.send(1)
    await until(lambda: bot.began)
    await replica.send(2)
    await until(lambda: server.waiting() == 1)
    assert replica.began == []
    bot.go.set()
    await until(lambda: replica.ended == [2])


async def test_a_handler_that_raises_fails_the_turn(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    bot.app.add_error_handler(bot.on_error)
    boom = RuntimeError("boom")
    bot.fail.append(boom)
    await bot.send(1)
    await until(lambda: bot.errors and not server.turns())
    assert bot.errors == [boom]
    assert (await state(server, 1))[0] == "NOT_SEEN"
    await bot.send(1)
    await until(lambda: bot.ended)
    assert [attempt for _, _, attempt in bot.began] == [1, 2]


async def test_a_refusal_that_a_handler_raises_fails_the_turn(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    bot.app.add_error_handler(bot.on_error)
    nested = Busy("another", 1, 0.01)
    bot.fail.append(nested)
    await bot.send(1)
    await until(lambda: bot.errors)
    await bot.idle()
    assert bot.errors == [nested]
    await bot.send(1)
    await until(lambda: bot.ended)
    assert [attempt for _, _, attempt in bot.began] == [1, 2]


async def test_an_error_is_logged_without_an_error_handler(
    make_bot: Any, server: Server, caplog: Any
) -> None:
    bot = await make_bot()
    bot.fail.append(RuntimeError("boom"))
    await bot.send(1)
    await until(lambda: "boom" in caplog.text)


async def test_a_rejected_update_is_done(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    bot.app.add_error_handler(bot.on_error)
    bot.fail.append(Reject("not for us"))
    await bot.send(1)
    await until(lambda: bot.began and not server.turns())
    assert await state(server, 1) == ("PROCESSED", "REJECTED")
    assert bot.errors == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [(RuntimeError("boom"), ("NOT_SEEN", None)), (Reject("no"), ("PROCESSED", "REJECTED"))],
    ids=["error", "reject"],
)
async def test_errors_end_the_turn_where_handlers_do_not_block_by_default(
    make_bot: Any, server: Server, error: Exception, expected: tuple[str, str | None]
) -> None:
    bot = await make_bot(defaults=Defaults(block=False))
    bot.fail.append(error)
    await bot.send(1)
    await until(lambda: bot.began)
    await bot.idle()
    assert await state(server, 1) == expected


async def test_an_error_outside_of_updates_is_logged_without_an_error_handler(
    make_bot: Any, server: Server, caplog: Any
) -> None:
    async def job() -> None:
        raise RuntimeError("boom")

    bot = await make_bot()
    await bot.send(1)
    await until(lambda: bot.ended)
    task = bot.app.create_task(job())
    await asyncio.wait([task])
    logged = [record.exc_info[1] for record in caplog.records if record.name == "oncegate"]
    assert logged == [task.exception()]


async def test_an_update_in_progress_is_taken_over_when_its_run_fails(
    make_bot: Any, server: Server
) -> None:
    bot, replica = await make_bot(ttl=2), await make_bot()
    bot.go.clear()
    bot.fail.append(RuntimeError("boom"))
    await bot.send(1)
    await until(lambda: bot.began)
    await replica.send(1)
    bot.go.set()
    await until(lambda: replica.ended == [1])


async def test_an_update_outlasts_an_outage(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    server.kill()
    await bot.send(1)
    server.start()
    await until(lambda: bot.ended == [1])


async def test_a_lost_turn_cancels_the_handler(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    bot.go.clear()
    await bot.send(1)
    await until(lambda: bot.began)
    server.lose(Session("77", "77:-1001234"))
    await until(lambda: bot.lost == [1])
    assert bot.ended == []
