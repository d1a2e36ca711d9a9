"""The protocol of a turn: begun, kept, carried on, lost and ended. No test waits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from oncegate import Busy, Invalid, OutcomeUnknown, TurnLost
from oncegate._wire import Failure
from oncegate.v1 import event_pb2 as events
from oncegate.v1 import session_pb2 as sessions
from oncegate.v1 import turn_service_pb2 as pb

from .fake import AWAY, FINISHED, TERMS, FakeIo, FakeStream, begun, flow, granted, lasts, renewed, turn

LOST = Failure("FAILED_PRECONDITION", "the lease was lost", reason="LEASE_LOST")


async def test_the_trusted_end_counts_from_the_request() -> None:
    io = FakeIo()
    stream = FakeStream(io)

    def answer() -> pb.RunTurnResponse:
        io.time += 9  # on its way for 4 s each
        return granted(remaining=10, elapsed=1)

    stream.messages.append(answer)
    io.streams.append(stream)
    held = flow(io)
    await held.begin()
    assert held.trusted_end == 1000 + 1 + 10 - 1
    held.check()
    io.time = held.trusted_end
    with pytest.raises(TurnLost) as lost:
        held.check()
    assert lost.value.reason == "EXPIRED"


async def test_a_stream_that_the_server_may_have_lost_is_trusted_for_the_grace_only() -> None:
    held = await begun(FakeIo())
    assert held.trusted_end == 1000 + TERMS.grace - TERMS.margin


async def test_a_grant_that_comes_after_its_end_is_renewed_before_the_body_runs() -> None:
    io = FakeIo()
    stream = FakeStream(io)

    def late() -> pb.RunTurnResponse:
        io.time += 60
        return granted()

    stream.messages.append(late)
    io.streams.append(stream)
    io.answer = lambda request: pb.RenewTurnResponse(turn=turn())
    held = flow(io, replace(TERMS, patience=100))
    await held.begin()
    assert held.kept_by == "renew"
    assert held.left > 0


async def test_a_request_that_broke_is_repeated_as_it_was() -> None:
    io = FakeIo()
    queued = pb.RunTurnResponse(queued={"position": 1})
    io.streams = [AWAY, FakeStream(io, queued, AWAY), FakeStream(io, granted())]
    positions: list[int] = []
    held = flow(io, replace(TERMS, wait=20))
    held.on_queued = positions.append
    await held.begin()
    assert {request.begin.request_id for request in io.opened} == {"request"}
    waits = [request.begin.wait.ToMilliseconds() for request in io.opened]
    assert waits == sorted(waits, reverse=True)
    assert waits[0] == 20_000
    assert positions == [1]


async def test_a_request_that_an_older_copy_of_itself_replaced_is_repeated() -> None:
    io = FakeIo()
    replaced = Failure("FAILED_PRECONDITION", "replaced", reason="STREAM_REPLACED")
    io.streams = [FakeStream(io, replaced), FakeStream(io, granted())]
    held = flow(io)
    await held.begin()
    assert held.held


async def test_begin_gives_up_after_its_patience() -> None:
    io = FakeIo()
    with pytest.raises(Failure) as away:
        await flow(io).begin()
    assert away.value is AWAY
    assert 1009 <= io.time <= 1010


async def test_begin_waits_as_an_overloaded_server_says() -> None:
    io = FakeIo()
    full = Failure("RESOURCE_EXHAUSTED", "too many calls", retry_after=4.0)
    io.streams = [full, full, full, full]
    with pytest.raises(Failure):
        await flow(io).begin()
    assert len(io.opened) == 3
    assert io.time == 1008


async def test_an_invalid_request_is_not_repeated() -> None:
    io = FakeIo()
    io.streams = [Failure("INVALID_ARGUMENT", "must not be empty", field="event.event_id")]
    with pytest.raises(Failure):
        await flow(io).begin()
    assert len(io.opened) == 1


async def test_busy_is_raised_and_the_stream_ended() -> None:
    io = FakeIo()
    held = sessions.LeaseHeld(holder="other", queue_length=2, retry_after=lasts(1.5))
    stream = FakeStream(io, pb.RunTurnResponse(busy=held))
    io.streams = [stream]
    with pytest.raises(Busy) as busy:
        await flow(io).begin()
    assert (busy.value.holder, busy.value.queue_length, busy.value.retry_after) == ("other", 2, 1.5)
    assert stream.cancelled


async def test_news_move_the_trusted_end() -> None:
    io = FakeIo()
    waiting = pb.RunTurnResponse(waiting=sessions.SessionWaiting(waiters=3))
    held = await begun(io, renewed(elapsed=10), waiting, LOST)
    await held.keep()
    assert held.trusted_end == 1000 + 10 + TERMS.grace - TERMS.margin
    assert held.waiters == 3


async def test_a_loss_is_reported_once_and_ends_nothing() -> None:
    io = FakeIo()
    held = await begun(io, LOST)
    reasons: list[str] = []
    held.on_lost = reasons.append
    await held.keep()
    assert reasons == ["LEASE_LOST"]
    held.lose("EXPIRED")
    assert reasons == ["LEASE_LOST"]
    with pytest.raises(TurnLost):
        await held.succeed(b"", "", None)
    assert io.calls == []


async def test_a_silent_stream_is_carried_on_before_the_trusted_end() -> None:
    io = FakeIo()
    held = await begun(io)
    seen: list[float] = []

    def answer(request: pb.RenewTurnRequest) -> Any:
        seen.append(held.left)
        return pb.RenewTurnResponse(turn=turn()) if len(seen) < 3 else LOST

    io.answer = answer
    await held.keep()
    assert held.kept_by == "renew"
    assert all(left > 0 for left in seen)
    assert held.lost_reason == "LEASE_LOST"


async def test_a_server_that_stays_away_loses_the_turn_at_its_trusted_end() -> None:
    io = FakeIo()
    held = await begun(io, AWAY)
    await held.keep()
    assert held.lost_reason == "EXPIRED"
    assert held.trusted_end - 2 <= io.time <= held.trusted_end


async def test_the_end_is_answered_on_the_stream() -> None:
    io = FakeIo()
    held = await begun(io, FINISHED)
    stream = held._stream
    assert isinstance(stream, FakeStream)
    await held.keep()
    await held.succeed(b"1", "application/json", 60)
    end = stream.written[-1].end
    assert (end.outcome, end.result) == (events.TURN_OUTCOME_SUCCEEDED, b"1")
    assert end.ttl.ToSeconds() == 60
    assert io.calls == []


async def test_an_end_without_an_answer_is_repeated() -> None:
    io = FakeIo()
    held = await begun(io)
    answers = [AWAY, AWAY, pb.FinishTurnResponse()]
    io.answer = lambda request: answers.pop(0)
    await held.succeed(b"1", "application/json", None)
    assert len(io.calls) == 3
    assert {call.turn_id for call in io.calls} == {"turn"}
    assert {call.result for call in io.calls} == {b"1"}


async def test_an_end_that_nobody_confirms_is_unknown() -> None:
    io = FakeIo()
    held = await begun(io)
    with pytest.raises(OutcomeUnknown) as unknown:
        await held.succeed(b"", "", None)
    assert unknown.value.turn_id == "turn"
    assert io.time >= held.trusted_end - 2


async def test_an_end_that_the_server_refuses_fails_the_turn() -> None:
    io = FakeIo()
    held = await begun(io)
    refusal = Failure("INVALID_ARGUMENT", "too long", reason="INVALID_FIELD", field="result")
    answers = [refusal, pb.FinishTurnResponse()]
    io.answer = lambda request: answers.pop(0)
    with pytest.raises(Invalid) as invalid:
        await held.succeed(b"1", "", None)
    assert invalid.value.field == "result"
    assert io.calls[-1].outcome == events.TURN_OUTCOME_FAILED


async def test_a_failure_costs_little_and_raises_nothing() -> None:
    io = FakeIo()
    held = await begun(io)
    await held.fail("é" * 2000)
    assert io.time <= 1000 + 2 + 1
    assert len(io.calls[-1].detail.encode()) <= 2048
    assert io.calls[-1].outcome == events.TURN_OUTCOME_FAILED


async def test_an_adopted_turn_is_renewed_first() -> None:
    io = FakeIo()
    io.answer = lambda request: pb.RenewTurnResponse(turn=turn(fence=9))
    held = flow(io)
    await held.adopt("turn")
    assert (held.held, held.fence, held.kept_by) == (True, 9, "renew")
    io.answer = lambda request: LOST
    with pytest.raises(TurnLost):
        await flow(io).adopt("turn")
