"""Bolt, asynchronous and synchronous: what is answered to Slack, and how often a listener runs."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from oncegate import Gate, Reject, Session

from .bots import Bot, MakeBot, SyncBot, bot, click, make_bot, mention, outcome, patience
from .conftest import until, vector

if TYPE_CHECKING:
    from collections.abc import Callable

    from oncegate.testing import Server

__all__ = ["bot", "make_bot", "patience"]


async def test_a_granted_event_is_acknowledged_and_answered(bot: Bot, server: Server) -> None:
    assert await bot.deliver(mention()) == 200
    await until(lambda: not server.turns())
    [(event, fence, attempt)] = bot.script.answers
    assert (event, attempt) == ("Ev1", 1)
    assert fence is not None
    assert await outcome(server, mention()) == ("PROCESSED", "SUCCEEDED", {"answered": "Ev1"})


async def test_a_duplicate_is_acknowledged_without_the_listener(
    make_bot: MakeBot, server: Server
) -> None:
    bot, replica = make_bot(), make_bot()
    assert await bot.deliver(mention()) == 200
    await until(lambda: not server.turns())
    assert await replica.deliver(mention(), retry=1) == 200
    # The same message as another event.
    assert (
        await replica.deliver(vector("slack", "message")["body"] | {"event": mention()["event"]}) == 200
    )
    assert (len(bot.script.began), replica.script.began) == (1, [])


async def test_an_event_in_progress_is_refused_until_the_last_delivery(
    make_bot: MakeBot, server: Server
) -> None:
    bot, replica = make_bot(), make_bot()
    bot.script.go.clear()
    assert await bot.deliver(mention()) == 200
    for retry in range(1, 3):
        assert await replica.deliver(mention(), retry) == 503
    assert not await replica.envelope(mention(), retry=2)
    assert await replica.deliver(mention(), retry=3) == 200
    bot.script.go.set()
    await until(lambda: bot.script.answers)
    assert replica.script.began == []


async def test_the_last_delivery_takes_over_when_the_run_fails(
    make_bot: MakeBot, server: Server
) -> None:
    bot, replica = make_bot(gate_options={"ttl": 1}), make_bot()
    bot.script.go.clear()
    bot.script.fail.append(RuntimeError("boom"))
    assert await bot.deliver(mention()) == 200
    assert await replica.deliver(mention(), retry=3) == 200
    bot.script.go.set()
    await until(lambda: replica.script.answers)
    [(event, _, attempt)] = replica.script.answers
    assert (event, attempt) == ("Ev1", 2)


async def test_a_busy_thread_queues_and_keeps_the_order(bot: Bot, server: Server) -> None:
    bot.script.go.clear()
    thread = "1700000001.000100"
    assert await bot.deliver(mention()) == 200
    await until(lambda: bot.script.began)
    assert await bot.deliver(mention("Ev2", "1700000002.000100", thread)) == 200
    await until(lambda: server.waiting() == 1)
    assert bot.script.began == ["Ev1"]
    bot.script.go.set()
    await until(lambda: len(bot.script.answers) == 2)
    (first, first_fence, _), (second, second_fence, _) = bot.script.answers
    assert (first, second) == ("Ev1", "Ev2")
    assert first_fence is not None
    assert second_fence is not None
    assert first_fence < second_fence
    assert bot.script.busy == []


async def test_without_a_wait_a_busy_thread_refuses_until_the_last_delivery(
    make_bot: MakeBot, server: Server
) -> None:
    bot = make_bot(wait=0)
    bot.script.go.clear()
    second = mention("Ev2", "1700000002.000100", "1700000001.000100")
    assert await bot.deliver(mention()) == 200
    await until(lambda: bot.script.began)
    assert await bot.deliver(second) == 503
    assert await bot.deliver(second, retry=2) == 503
    assert bot.script.began == ["Ev1"]
    assert await bot.deliver(second, retry=3) == 200
    bot.script.go.set()
    await until(lambda: not server.turns())


async def test_a_busy_click_reports_and_queues(bot: Bot, server: Server) -> None:
    bot.script.go.clear()
    assert await bot.deliver(mention()) == 200
    await until(lambda: bot.script.began)
    assert await bot.deliver(click()) == 200
    await until(lambda: bot.script.busy == ["t1"] and server.waiting() == 1)
    bot.script.go.set()
    await until(lambda: len(bot.script.answers) == 2)
    assert [event for event, _, _ in bot.script.answers] == ["Ev1", "t1"]


async def test_a_click_is_handled_once(bot: Bot, server: Server) -> None:
    bot.script.go.clear()
    assert await bot.deliver(click()) == 200
    await until(lambda: bot.script.began)
    assert await bot.deliver(click("t2")) == 200  # in progress
    bot.script.go.set()
    await until(lambda: not server.turns())
    assert await bot.deliver(click("t3")) == 200  # a duplicate
    assert [event for event, _, _ in bot.script.answers] == ["t1"]


async def test_a_listener_that_raises_fails_the_turn(bot: Bot, server: Server) -> None:
    boom = RuntimeError("boom")
    bot.script.fail.append(boom)
    assert await bot.deliver(mention()) == 200
    await until(lambda: bot.script.errors and not server.turns())
    assert bot.script.errors == [boom]
    assert (await outcome(server, mention()))[0] == "NOT_SEEN"
    assert await bot.deliver(mention(), retry=1) == 200
    await until(lambda: bot.script.answers)
    assert bot.script.answers[0][2] == 2


async def test_a_rejected_event_is_done(bot: Bot, server: Server) -> None:
    bot.script.fail.append(Reject("not for us"))
    assert await bot.deliver(mention()) == 200
    await until(lambda: bot.script.began and not server.turns())
    assert await outcome(server, mention()) == ("PROCESSED", "REJECTED", None)
    assert await bot.deliver(mention(), retry=1) == 200
    assert (len(bot.script.began), bot.script.errors) == (1, [])


async def test_without_a_listener_there_is_no_turn(bot: Bot, server: Server) -> None:
    unmatched = vector("slack", "team_join")["body"]
    await bot.deliver(unmatched)
    assert (await outcome(server, unmatched))[0] == "NOT_SEEN"


async def test_options_pass_without_a_turn(bot: Bot, server: Server) -> None:
    body = vector("slack", "block_suggestion asks for options")["body"] | {"action_id": "cities"}
    server.kill()
    assert await bot.deliver(body) == 200


async def test_an_event_is_refused_while_the_server_is_away(
    make_bot: MakeBot, server: Server, patience: Callable[[float], None]
) -> None:
    patience(0.2)
    bot = make_bot(gate_options={"on_unavailable": "run"})
    server.kill()
    assert await bot.deliver(mention()) == 503
    assert bot.script.began == []
    server.start()
    patience(30)
    assert await bot.deliver(mention(), retry=1) == 200
    await until(lambda: bot.script.answers)


async def test_the_last_delivery_outlasts_an_outage(
    bot: Bot, server: Server, patience: Callable[[float], None]
) -> None:
    patience(0.2)
    server.kill()
    assert await bot.deliver(mention(), retry=3) == 200
    server.start()
    await until(lambda: bot.script.answers)


@pytest.mark.parametrize(
    ("policy", "status", "ran"), [("raise", 503, 0), ("run", 200, 1), ("drop", 200, 0)]
)
async def test_a_click_while_the_server_is_away(
    make_bot: MakeBot,
    server: Server,
    patience: Callable[[float], None],
    policy: str,
    status: int,
    ran: int,
) -> None:
    patience(0.2)
    bot = make_bot(gate_options={"on_unavailable": policy})
    server.kill()
    assert await bot.deliver(click()) == status
    await until(lambda: len(bot.script.answers) == ran)
    if ran:
        assert bot.script.answers == [("t1", None, 0)]


async def test_a_server_that_is_killed_under_a_listener(bot: Bot, server: Server) -> None:
    bot.script.go.clear()
    assert await bot.deliver(mention()) == 200
    await until(lambda: bot.script.began)
    server.restart()
    bot.script.go.set()
    await until(lambda: bot.script.answers and not server.turns())
    assert await outcome(server, mention()) == ("PROCESSED", "SUCCEEDED", {"answered": "Ev1"})
    assert bot.script.began == ["Ev1"]


async def test_a_lost_turn_ends_the_listener(bot: Bot, server: Server) -> None:
    bot.script.go.clear()
    assert await bot.deliver(mention()) == 200
    await until(lambda: bot.script.began)
    server.lose(Session.thread("T1", "C1", "1700000001.000100"))
    await until(lambda: bot.script.lost == ["Ev1"])
    assert bot.script.answers == []


async def test_a_failure_before_the_response_is_reported_to_slack(
    make_bot: MakeBot, server: Server
) -> None:
    bot = make_bot(process_before_response=True)
    bot.script.fail.append(RuntimeError("boom"))
    assert await bot.deliver(mention()) == 500
    assert await bot.deliver(mention(), retry=1) == 200
    assert bot.script.answers[0][2] == 2  # both turns had ended before the response
    assert server.turns() == []


async def test_a_loss_before_the_response_is_reported_to_slack(
    make_bot: MakeBot, server: Server
) -> None:
    bot = make_bot(process_before_response=True)
    bot.script.go.clear()
    delivery = asyncio.create_task(bot.deliver(mention()))
    await until(lambda: bot.script.began)
    server.lose(Session.thread("T1", "C1", "1700000001.000100"))
    assert await delivery >= 500


async def test_a_loss_before_the_acknowledgement_ends_the_listener(bot: Bot, server: Server) -> None:
    bot.script.acks = False
    bot.script.go.clear()
    delivery = asyncio.create_task(bot.deliver(click()))
    await until(lambda: bot.script.began)
    server.lose(Session.thread("T1", "C1", "1700000001.000100"))
    await until(lambda: bot.script.lost == ["t1"])
    await delivery
    assert bot.script.answers == []


async def test_a_result_that_cannot_be_stored_is_reported_to_slack(
    make_bot: MakeBot, server: Server
) -> None:
    bot = make_bot(process_before_response=True)
    bot.script.result = object()
    assert await bot.deliver(mention()) == 503
    bot.script.result = None
    assert await bot.deliver(mention(), retry=1) == 200
    assert [attempt for _, _, attempt in bot.script.answers] == [1, 2]


async def test_of_two_listeners_that_match_one_runs(make_bot: MakeBot, server: Server) -> None:
    bot = make_bot(process_before_response=True)
    bot.script.acks = False  # Bolt goes on to the next listener
    assert await bot.deliver(click()) == 200
    assert (len(bot.script.answers), bot.script.second) == (1, [])
    assert server.turns() == []


async def test_a_large_form_is_cut(bot: Bot) -> None:
    body = click()
    body["message"]["text"] = "\u0416" * 50_000
    assert await bot.deliver(body, form=True) == 200
    await until(lambda: bot.script.answers)
    [(_, fence, _)] = bot.script.answers
    assert fence is not None


async def test_a_full_queue_refuses(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("oncegate.bolt._sync._MOST_QUEUED", 1)
    with Gate(server.address, ttl=30) as gate:
        bot = SyncBot(gate)
        bot.script.go.clear()
        assert await bot.deliver(mention()) == 200
        await until(lambda: bot.script.began)
        thread = "1700000001.000100"
        assert await bot.deliver(mention("Ev2", "1700000002.000100", thread)) == 200
        await until(lambda: server.waiting() == 1)
        third = mention("Ev3", "1700000003.000100", thread)
        assert await bot.deliver(third) == 503
        bot.script.go.set()
        await until(lambda: len(bot.script.answers) == 2)
        assert await bot.deliver(third, retry=1) == 200
        await until(lambda: len(bot.script.answers) == 3)


async def test_a_delivery_without_a_thread_to_wait_in_is_refused(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncegate.bolt._sync._MOST_QUEUED", 1)
    with Gate(server.address, ttl=30) as gate:
        bot = SyncBot(gate)
        bot.script.go.clear()
        assert await bot.deliver(mention()) == 200
        await until(lambda: bot.script.began)
        second = mention("Ev2", "1700000002.000100", "1700000001.000100")
        with monkeypatch.context() as patch:
            start = threading.Thread.start

            def cannot_start(thread: Any) -> None:
                if thread.name == "oncegate-slack-queue":
                    raise RuntimeError("can't start new thread")
                start(thread)

            patch.setattr(threading.Thread, "start", cannot_start)
            assert await bot.deliver(second) == 503
        assert await bot.deliver(second, retry=1) == 200  # its place is free again
        bot.script.go.set()
        await until(lambda: len(bot.script.answers) == 2)


async def test_socket_mode(bot: Bot, server: Server) -> None:
    bot.script.go.clear()
    assert await bot.envelope(mention())
    assert not await bot.envelope(mention(), retry=1)
    bot.script.go.set()
    await until(lambda: not server.turns())
    assert await bot.envelope(mention(), retry=2)
    assert await bot.envelope(click())
    await until(lambda: len(bot.script.answers) == 2)
    assert bot.script.began == ["Ev1", "t1"]
