"""A turn: RunTurn, then RenewTurn and FinishTurn after a broken stream."""

from __future__ import annotations

import logging
from typing import Any

from oncegate import _errors as errors
from oncegate._clock import duration, span
from oncegate._codec import Codec, decode_or_error
from oncegate._hold import Hold, Terms, lease_span
from oncegate._io import Io, Stream, call_until
from oncegate._wire import FINISH_TURN, RENEW_TURN, RUN_TURN, Failure
from oncegate.v1 import event_pb2 as events
from oncegate.v1 import turn_service_pb2 as pb

LOG = logging.getLogger("oncegate")

MAX_DETAIL = 2048

ANSWER = 2.0
"""How long the stream may take to answer `end` before FinishTurn is called."""

FAILING = 2.0
"""The effort for an end that the author does not wait for: that of a failed handler."""

FINISHING = 5.0
"""The least effort for an end whose result counts."""


class TurnFlow(Hold):
    """The state and the flows of one turn."""

    lost_error = errors.TurnLost

    def __init__(self, io: Io, terms: Terms, request: pb.BeginTurnRequest, codec: Codec) -> None:
        super().__init__(io, terms)
        self.id = ""
        self.team = request.event.team_id
        self.attempt = 0
        self.detached = False
        self.result: Any = None
        self._request = request
        self._codec = codec
        self._finished = False
        self._end_failure: Failure | None = None
        self._answered = io.latch()

    # Begin.

    async def _open(self, wait: float) -> Stream[Any, Any]:
        self._request.wait.CopyFrom(duration(wait))
        request = pb.RunTurnRequest(begin=self._request)
        return await self._io.open(RUN_TURN, request, more=True)

    def _granted(self, message: pb.RunTurnResponse) -> bool:
        match message.WhichOneof("news"):
            case "granted":
                self.id = message.granted.turn.turn_id
                self._read(message.granted.turn, self._sent, self.terms.grace)
                return True
            case "queued":
                self.on_queued(message.queued.position)
            case "duplicate":
                raise duplicate(message.duplicate, self._codec)
            case "gave_up":
                event = message.gave_up.event
                raise errors.GaveUp(event.attempt, event.detail)
            case "in_progress":
                other = message.in_progress
                raise errors.InProgress(other.holder, other.attempt, span(other.retry_after))
            case "busy":
                held = message.busy
                raise errors.Busy(held.holder, held.queue_length, span(held.retry_after))
            case _:
                pass
        return False

    async def adopt(self, turn_id: str) -> None:
        """Carries on a turn that another process began."""
        self.id = turn_id
        await self._carry_on()
        self._refuse_if_closed()
        self.held = True

    # Keep.

    def _news(self, message: pb.RunTurnResponse) -> None:
        match message.WhichOneof("news"):
            case "renewed":
                self._read(message.renewed.turn, self._sent, self.terms.grace)
            case "waiting":
                self.waiters = message.waiting.waiters
            case "finished":
                self._finished = True
                self._answered.set()
            case _:
                pass

    def _is_finished(self) -> bool:
        return self._finished

    def _break(self, failure: Failure) -> bool:
        if self._over:
            self._end_failure = failure
            self._answered.set()
            return False
        return super()._break(failure)

    async def _renew(self, until: float) -> None:
        ttl = duration(self.terms.ttl)
        request = pb.RenewTurnRequest(turn_id=self.id, claim_ttl=ttl, lease_ttl=ttl)
        response, sent = await self._call_renew(RENEW_TURN, request, until)
        self._read(response.turn, sent)

    def _read(self, turn: pb.Turn, sent: float, grace: float | None = None) -> None:
        self.attempt = turn.attempt
        remaining, elapsed = span(turn.remaining), span(turn.elapsed)
        if turn.HasField("lease"):
            self.team = turn.lease.team_id
            self.fence = turn.lease.fencing_token
            lease_remaining, lease_elapsed = lease_span(turn.lease)
            remaining = min(remaining, lease_remaining)
            elapsed = min(elapsed, lease_elapsed)
        self._trust(remaining, elapsed, sent, grace)

    # End.

    async def succeed(self, result: bytes, result_type: str, ttl: float | None) -> None:
        """Ends it SUCCEEDED. Raises `TurnLost`, `OutcomeUnknown` or `Invalid`."""
        end = pb.TurnEnd(outcome=events.TURN_OUTCOME_SUCCEEDED, result=result, result_type=result_type)
        await self._finish(end, ttl)

    async def reject(self, detail: str, ttl: float | None) -> None:
        """Ends it REJECTED. Raises as `succeed`."""
        end = pb.TurnEnd(outcome=events.TURN_OUTCOME_REJECTED, detail=short(detail))
        await self._finish(end, ttl)

    async def _finish(self, end: pb.TurnEnd, ttl: float | None) -> None:
        if not self._close():
            raise errors.TurnLost(self.lost_reason or "CLOSED")
        if ttl is not None:
            end.ttl.CopyFrom(duration(ttl))
        until = max(self.trusted_end, self._io.now() + FINISHING)
        try:
            await self._end(end, until)
        except Failure as failure:
            if failure.lost:
                raise errors.TurnLost(failure.reason) from failure.__cause__
            if failure.retryable:
                raise errors.OutcomeUnknown(self.id) from failure.__cause__
            # The server refuses the end itself, such as a result that is too large.
            await self._give_back(failure.message)
            raise failure.error() from failure.__cause__
        except errors.Closed:
            raise errors.OutcomeUnknown(self.id) from None

    async def fail(self, detail: str) -> None:
        """Ends it FAILED, if it is not over. Raises nothing: the handler's own error counts."""
        if self._close():
            await self._give_back(detail)

    async def _give_back(self, detail: str) -> None:
        end = pb.TurnEnd(outcome=events.TURN_OUTCOME_FAILED, detail=short(detail))
        try:
            await self._end(end, self._io.now() + FAILING)
        except (Failure, errors.Closed) as failure:
            LOG.debug("the end of turn %s failed: %s", self.id, failure)

    async def _end(self, end: pb.TurnEnd, until: float) -> None:
        """Over the stream; without an answer there, by FinishTurn until `until`."""
        try:
            if self._stream is not None and await self._end_stream(self._stream, end, until):
                return
            request = pb.FinishTurnRequest(
                turn_id=self.id,
                outcome=end.outcome,
                result=end.result,
                result_type=end.result_type,
                detail=end.detail,
            )
            if end.HasField("ttl"):
                request.ttl.CopyFrom(end.ttl)
            await call_until(self._io, FINISH_TURN, request, until)
        finally:
            self._hang_up()

    async def _end_stream(self, stream: Stream[Any, Any], end: pb.TurnEnd, until: float) -> bool:
        answered_by = self._io.now() + min(ANSWER, max(0.0, until - self._io.now()) / 2)
        try:
            await stream.write(pb.RunTurnRequest(end=end), answered_by)
        except Failure:
            return False
        # Its keeper reads the answer.
        await self._answered.wait(max(0.0, answered_by - self._io.now()))
        failure = self._end_failure
        if failure is not None and (failure.lost or not failure.retryable):
            raise failure
        return self._finished

    async def detach(self) -> str:
        """Leaves the turn to another process, which has its TTL to adopt it."""
        self.check()
        try:
            await self._renew(min(self.trusted_end, self._io.now() + self.terms.patience))
        except Failure as failure:
            if failure.lost:
                raise errors.TurnLost(failure.reason) from failure.__cause__
            raise failure.error() from failure.__cause__
        if not self._close():
            raise errors.TurnLost(self.lost_reason or "EXPIRED")
        self.detached = True
        self._hang_up()
        return self.id


def duplicate(answer: pb.TurnDuplicate, codec: Codec) -> errors.Duplicate:
    """The outcome of an event that has been handled, even if its result cannot be decoded."""
    found = errors.Duplicate(None, outcome_name(answer.event.outcome), answer.event.detail)
    found.result, found.__cause__ = decode_or_error(codec, answer.result, answer.result_type)
    return found


def outcome_name(outcome: events.TurnOutcome) -> str | None:
    """The name without its prefix; None for a mark."""
    if outcome == events.TURN_OUTCOME_UNSPECIFIED:
        return None
    return events.TurnOutcome.Name(outcome)[len("TURN_OUTCOME_") :]


def short(detail: str) -> str:
    """A detail that the server takes."""
    return detail.encode()[:MAX_DETAIL].decode(errors="ignore")
