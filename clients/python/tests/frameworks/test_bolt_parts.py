"""Bolt: a listener and its lazy functions share a turn, which ends with the last of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from oncegate import Gate, Reject

from .bots import Bot, SyncBot, bot, make_bot, mention, outcome, patience
from .conftest import until, vector

if TYPE_CHECKING:
    import pytest

    from oncegate.testing import Server

__all__ = ["bot", "make_bot", "patience"]


async def test_a_turn_lasts_until_its_lazy_listeners_end(bot: Bot, server: Server) -> None:
    reaction = vector("slack", "reaction_added")["body"]
    bot.script.lazy_go.clear()
    assert await bot.deliver(reaction) == 200
    assert await bot.deliver(reaction, retry=1) == 503
    bot.script.lazy_go.set()
    await until(lambda: not server.turns())
    assert (await outcome(server, reaction))[1] == "SUCCEEDED"


async def test_a_lazy_listener_that_raises_fails_the_turn(bot: Bot, server: Server) -> None:
    reaction = vector("slack", "reaction_added")["body"]
    bot.script.lazy_fail.append(RuntimeError("boom"))
    assert await bot.deliver(reaction) == 200
    await until(lambda: not server.turns())
    assert await bot.deliver(reaction, retry=1) == 200
    await until(lambda: bot.script.answers)
    assert bot.script.answers[0][2] == 2


async def test_a_listener_that_is_ended_fails_the_turn(
    bot: Bot, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    bot.script.fail.append(bot.ended)
    assert await bot.deliver(mention()) == 200
    await until(lambda: bot.script.began and not server.turns())
    assert (await outcome(server, mention()))[0] == "NOT_SEEN"
    assert bot.script.errors == []
    await until(lambda: "failed in its turn" in caplog.text)


async def test_a_lazy_listener_that_is_ended_fails_the_turn(bot: Bot, server: Server) -> None:
    reaction = vector("slack", "reaction_added")["body"]
    bot.script.lazy_fail.append(bot.ended)
    assert await bot.deliver(reaction) == 200
    await until(lambda: not bot.script.lazy_fail and not server.turns())
    assert (await outcome(server, reaction))[0] == "NOT_SEEN"


async def test_a_turn_outlasts_the_listener_if_a_lazy_one_cannot_start(
    bot: Bot, server: Server
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("no more threads")

    reaction = vector("slack", "reaction_added")["body"]
    bot.script.go.clear()
    bot.app.listener_runner._build_lazy_request = fails
    assert await bot.deliver(reaction) == 503
    bot.script.go.set()
    await until(lambda: not server.turns())
    assert (await outcome(server, reaction))[0] == "NOT_SEEN"
    # A task is cancelled before its first step; a thread cannot be.
    began = 1 if isinstance(bot, SyncBot) else 0
    assert (len(bot.script.began), bot.script.held) == (began, [True] * began)


async def test_an_event_that_only_one_part_rejects_is_not_done(bot: Bot, server: Server) -> None:
    reaction = vector("slack", "reaction_added")["body"]
    bot.script.lazy_go.clear()
    bot.script.fail.append(Reject("not for us"))
    bot.script.lazy_fail.append(RuntimeError("boom"))
    assert await bot.deliver(reaction) == 200
    await until(lambda: not bot.script.fail)
    bot.script.lazy_go.set()
    await until(lambda: not server.turns())
    assert (await outcome(server, reaction))[0] == "NOT_SEEN"


async def test_a_part_that_its_executor_drops_fails_the_turn(server: Server) -> None:
    reaction = vector("slack", "reaction_added")["body"]
    leave = threading.Event()
    with Gate(server.address, ttl=30) as gate, ThreadPoolExecutor(1) as executor:
        bot = SyncBot(gate)
        bot.app.listener_runner.lazy_listener_runner.executor = executor
        executor.submit(leave.wait, 30)
        assert await bot.deliver(reaction) == 200
        await until(lambda: bot.script.held)
        executor.shutdown(wait=False, cancel_futures=True)
        try:
            await until(lambda: not server.turns())
        finally:
            leave.set()
    assert (await outcome(server, reaction))[0] == "NOT_SEEN"
