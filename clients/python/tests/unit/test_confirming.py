"""What is renewed before a body runs, and when renewals are due. No test waits."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from oncegate import AsyncGate, Delivery, Gate, Invalid
from oncegate._hold import Terms
from oncegate._lease_flow import LeaseFlow
from oncegate._wire import Failure
from oncegate.v1 import event_pb2 as events
from oncegate.v1 import idempotency_service_pb2 as idempotency
from oncegate.v1 import session_pb2 as sessions
from oncegate.v1 import turn_service_pb2 as pb

from .fake import AWAY, TERMS, FakeIo, FakeStream, begun, flow, granted, lasts, turn

if TYPE_CHECKING:
    from collections.abc import Callable

LOST = Failure("NOT_FOUND", "the claim was lost", reason="CLAIM_LOST")


def late(io: FakeIo) -> FakeStream:
    """A grant that comes after its end."""
    stream = FakeStream(io)

    def answer() -> pb.RunTurnResponse:
        io.time += 60
        return granted()

    stream.messages.append(answer)
    return stream


def lease(io: FakeIo, terms: Terms) -> LeaseFlow:
    held = sessions.SessionLease(lease_id="lease", remaining=lasts(45), elapsed=lasts(0))
    message = idempotency.HoldSessionLeaseResponse(granted=idempotency.LeaseGranted(lease=held))
    io.streams.append(FakeStream(io, message))
    return LeaseFlow(io, terms, idempotency.HoldSessionLeaseRequest())


async def test_the_confirmation_of_a_lease_ends_with_its_patience() -> None:
    io = FakeIo()
    with pytest.raises(Failure):
        await lease(io, Terms(wait=0, ttl=45, grace=22.5, patience=2)).begin()
    assert io.time <= 1000 + 2


async def test_a_grant_that_is_lost_on_its_way_is_asked_for_anew() -> None:
    io = FakeIo()
    io.streams = [late(io), FakeStream(io, granted(fence=8))]
    io.answer = lambda request: LOST
    held = flow(io, replace(TERMS, patience=100))
    await held.begin()
    assert (held.held, held.fence, held.kept_by) == (True, 8, "stream")
    first, second = (request.begin.request_id for request in io.opened)
    assert first == "request" != second


def late_answers(io: FakeIo, response: Any, *, number: int) -> Callable[[Any], Any]:
    """Answers so many renewals after their trusted end."""

    def answer(request: Any) -> Any:
        if isinstance(request, pb.FinishTurnRequest):
            return pb.FinishTurnResponse()
        if isinstance(request, idempotency.ReleaseSessionLeaseRequest):
            return idempotency.ReleaseSessionLeaseResponse()
        nonlocal number
        if number > 0:
            io.time += 60
        number -= 1
        return response

    return answer


RENEWED = pb.RenewTurnResponse(turn=turn())


async def test_a_turn_begins_after_a_renewal_that_is_trusted() -> None:
    io = FakeIo()
    io.streams = [late(io)]
    io.answer = late_answers(io, RENEWED, number=1)
    held = flow(io, replace(TERMS, patience=100, ttl=100))
    await held.begin()
    assert held.left > 0


async def test_a_lease_begins_after_a_renewal_that_is_trusted() -> None:
    io = FakeIo()
    held = lease(io, Terms(wait=0, ttl=100, grace=50, patience=100))
    renewal = idempotency.RenewSessionLeaseResponse(lease=sessions.SessionLease(remaining=lasts(45)))
    io.answer = late_answers(io, renewal, number=1)
    await held.begin()
    assert held.left > 0


async def test_a_turn_is_adopted_after_a_renewal_that_is_trusted() -> None:
    io = FakeIo()
    io.answer = late_answers(io, RENEWED, number=1)
    held = flow(io, replace(TERMS, patience=100, ttl=100))
    await held.adopt("turn")
    assert held.left > 0


async def test_a_grant_whose_renewals_are_never_trusted_goes_back() -> None:
    io = FakeIo()
    io.streams = [late(io)]
    io.answer = late_answers(io, RENEWED, number=100)
    held = flow(io)
    with pytest.raises(Failure) as outage:
        await held.begin()
    assert outage.value.retryable
    await io.spawned
    assert io.calls[-1].outcome == events.TURN_OUTCOME_FAILED
    assert not held.held


async def test_grants_that_are_all_lost_are_an_outage() -> None:
    io = FakeIo()
    io.streams = [late(io) for _ in range(10)]
    io.answer = lambda request: LOST
    with pytest.raises(Failure) as outage:
        await flow(io, replace(TERMS, patience=100)).begin()
    assert outage.value.retryable
    assert len(io.opened) == 2


async def test_an_adopted_turn_has_its_tenant() -> None:
    io = FakeIo()
    io.answer = lambda request: pb.RenewTurnResponse(turn=turn())
    held = flow(io)
    held.team = ""
    await held.adopt("turn")
    assert held.team == "T1"


async def test_a_turn_that_is_longer_than_its_lease_is_renewed_before_the_lease_ends() -> None:
    io = FakeIo()
    hour = 3600.0
    held = await begun(io, AWAY)
    held.terms = Terms(wait=0, ttl=hour, grace=hour / 2, patience=10)
    renewals: list[float] = []

    def answer(request: pb.RenewTurnRequest) -> Any:
        renewals.append(held.left)
        cut = turn(remaining=hour)
        cut.lease.remaining.CopyFrom(lasts(900))
        return pb.RenewTurnResponse(turn=cut) if len(renewals) < 5 else LOST

    io.answer = answer
    await held.keep()
    assert held.lost_reason == "CLAIM_LOST"
    assert all(left > 0 for left in renewals)


async def test_a_renewal_whose_trusted_end_has_passed_loses_the_turn() -> None:
    io = FakeIo()
    held = await begun(io, AWAY)
    answers = [LOST, pb.RenewTurnResponse(turn=turn(remaining=TERMS.margin / 2))]
    io.answer = lambda request: answers.pop()
    await held.keep()
    assert (held.lost_reason, len(io.calls)) == ("EXPIRED", 1)


@pytest.mark.parametrize(("grace", "share"), [(15.0, 0.9), (8.0, 0.5)])
async def test_silence_is_probed_early_if_the_server_would_renew_too_late(
    grace: float, share: float
) -> None:
    io = FakeIo()
    io.streams.append(FakeStream(io, granted()))
    held = flow(io, replace(TERMS, grace=grace))
    await held.begin()
    called: list[float] = []

    def answer(_: Any) -> Any:
        called.append(io.time)
        return LOST

    io.answer = answer
    await held.keep()
    assert called == [1000 + min(0.4 * TERMS.ttl, share * (grace - TERMS.margin))]


async def test_a_grace_of_which_the_margin_leaves_nothing_is_invalid() -> None:
    for kind in (Gate, AsyncGate):
        with pytest.raises(Invalid) as invalid:
            kind(grace=1)
        assert invalid.value.field == "grace"
    gate = AsyncGate("127.0.0.1:1", ttl=1, grace=0.2)
    with pytest.raises(Invalid):
        async with gate.turn(Delivery("T1", "E1"), ttl=10):
            raise AssertionError("the body ran")
