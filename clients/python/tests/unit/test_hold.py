"""What a turn or lease may rely on, and what a holder that does not begin leaves. No test waits."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from oncegate import Duplicate, JsonCodec, PydanticCodec, TurnLost, Unavailable
from oncegate._errors import Closed
from oncegate._turn import TurnView
from oncegate._turn_flow import duplicate
from oncegate._wire import Failure
from oncegate.v1 import event_pb2 as events
from oncegate.v1 import idempotency_service_pb2 as idempotency
from oncegate.v1 import turn_service_pb2 as pb

from .fake import AWAY, FINISHED, TERMS, FakeIo, FakeStream, begun, flow, granted, turn

DRAINING = Failure("UNAVAILABLE", "the server shuts down", reason="DRAINING")


async def test_a_drained_stream_lifts_the_bound_of_the_grace() -> None:
    io = FakeIo()
    held = await begun(io, DRAINING)
    assert held.trusted_end == 1000 + TERMS.grace - TERMS.margin
    ends: list[float] = []

    def answer(request: pb.RenewTurnRequest) -> Any:
        ends.append(held.trusted_end)
        return AWAY if io.time < 1000 + TERMS.grace + 5 else Failure("", "", reason="CLAIM_LOST")

    io.answer = answer
    await held.keep()
    assert set(ends) == {1000 + TERMS.ttl - TERMS.margin}
    assert held.lost_reason == "CLAIM_LOST"


async def test_a_turn_that_has_ended_is_not_held() -> None:
    held = await begun(FakeIo(), FINISHED)
    view = TurnView(held)
    assert view.held
    await held.keep()
    await held.succeed(b"", "", None)
    assert not view.held
    with pytest.raises(TurnLost) as lost:
        view.check()
    assert lost.value.reason == "ENDED"


async def test_a_grant_that_cannot_be_confirmed_goes_back() -> None:
    io = FakeIo()
    stream = FakeStream(io)

    def late() -> pb.RunTurnResponse:
        io.time += 60
        return granted()

    stream.messages.append(late)
    io.streams.append(stream)

    def answer(request: Any) -> Any:
        if isinstance(request, pb.RenewTurnRequest):
            raise asyncio.CancelledError
        return pb.FinishTurnResponse()

    io.answer = answer
    held = flow(io)
    with pytest.raises(asyncio.CancelledError):
        await held.begin()
    await io.spawned
    assert io.calls[-1].outcome == events.TURN_OUTCOME_FAILED
    assert not held.held


async def test_a_grant_to_a_closed_gate_goes_back() -> None:
    io = FakeIo()
    held = flow(io)

    def close() -> pb.RunTurnResponse:
        held.refuse()
        return granted()

    io.streams.append(FakeStream(io, close))
    io.answer = lambda request: pb.FinishTurnResponse()
    with pytest.raises(Closed):
        await held.begin()
    await io.spawned
    assert io.calls[-1].outcome == events.TURN_OUTCOME_FAILED


async def test_a_request_of_a_closed_gate_leaves_its_queue_at_once() -> None:
    io = FakeIo()
    held = flow(io)

    def close() -> pb.RunTurnResponse:
        held.refuse()
        # The server grants the turn, and counts an attempt, as long as the stream is open.
        assert stream.cancelled
        return pb.RunTurnResponse(queued=idempotency.LeaseQueued(position=1))

    stream = FakeStream(io, close)
    io.streams.append(stream)
    with pytest.raises(Closed):
        await held.begin()


async def test_patience_lasts_to_its_end() -> None:
    io = FakeIo()
    with pytest.raises(Failure):
        await flow(io).begin()
    assert io.time == 1000 + TERMS.patience


async def test_a_detach_without_a_server_is_an_error_of_the_library() -> None:
    io = FakeIo()
    held = await begun(io)
    with pytest.raises(Unavailable):
        await held.detach()
    assert io.time <= 1000 + TERMS.patience
    held.check()


async def test_an_adoption_ends_with_its_patience() -> None:
    io = FakeIo()
    with pytest.raises(Failure):
        await flow(io).adopt("turn")
    assert io.time <= 1000 + TERMS.patience


def test_a_duplicate_whose_result_cannot_be_read_is_a_duplicate() -> None:
    answer = pb.TurnDuplicate(result=b'{"a":1}', result_type="application/json")
    unreadable = duplicate(answer, PydanticCodec(int))
    assert unreadable.result is None
    assert unreadable.__cause__ is not None
    with pytest.raises(Duplicate):
        unreadable.replay()
    assert duplicate(answer, JsonCodec()).replay() == {"a": 1}


async def test_an_adopted_turn_is_held() -> None:
    io = FakeIo()
    io.answer = lambda request: pb.RenewTurnResponse(turn=turn())
    held = flow(io)
    await held.adopt("turn")
    assert TurnView(held).held
