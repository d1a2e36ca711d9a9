"""An `Io` without I/O: a clock that the test moves, and a server that the test writes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from google.protobuf.duration_pb2 import Duration

from oncegate._clock import duration
from oncegate._codec import JsonCodec
from oncegate._hold import Terms
from oncegate._turn_flow import TurnFlow
from oncegate._wire import Failure
from oncegate.v1 import event_pb2 as events
from oncegate.v1 import session_pb2 as sessions
from oncegate.v1 import turn_service_pb2 as pb

AWAY = Failure("UNAVAILABLE", "connection refused")
TERMS = Terms(wait=0, ttl=30, grace=15, patience=10)


class FakeLatch:
    def __init__(self, io: FakeIo) -> None:
        self._io = io
        self._set = False

    def set(self) -> None:
        self._set = True

    async def wait(self, seconds: float) -> bool:
        if not self._set:
            self._io.time += seconds
        return self._set


class FakeStream:
    """Gives its messages one by one; after the last one it is silent."""

    def __init__(self, io: FakeIo, *messages: Any) -> None:
        self._io = io
        self.messages = list(messages)
        self.written: list[Any] = []
        self.cancelled = False

    async def read(self, until: float) -> Any:
        if self.cancelled:
            raise Failure("UNAVAILABLE", "the stream has ended")
        if not self.messages:
            self._io.time = max(self._io.time, until)
            raise Failure("UNAVAILABLE", "silent")
        message = self.messages.pop(0)
        if callable(message):
            message = message()
        if isinstance(message, Failure):
            raise message
        return message

    async def write(self, message: Any, until: float) -> None:
        self.written.append(message)

    def cancel(self) -> None:
        self.cancelled = True


class FakeIo:
    def __init__(self) -> None:
        self.time = 1000.0
        self.streams: list[FakeStream | Failure] = []
        self.opened: list[Any] = []
        self.calls: list[Any] = []
        self.spawned: asyncio.Task[None]
        self.answer: Callable[[Any], Any] = lambda request: AWAY

    def now(self) -> float:
        return self.time

    async def sleep(self, seconds: float) -> None:
        self.time += seconds

    def latch(self) -> FakeLatch:
        return FakeLatch(self)

    def spawn(self, flow: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        self.spawned = asyncio.create_task(flow)
        return self.spawned

    async def call(self, method: Any, request: Any, timeout: float) -> Any:
        self.calls.append(request)
        answer = self.answer(request)
        if isinstance(answer, Failure):
            raise answer
        return answer

    async def open(self, method: Any, request: Any, *, more: bool) -> Any:
        copy = type(request)()
        copy.CopyFrom(request)
        self.opened.append(copy)
        stream = self.streams.pop(0) if self.streams else AWAY
        if isinstance(stream, Failure):
            raise stream
        return stream


def lasts(seconds: float) -> Duration:
    return duration(seconds)


def turn(remaining: float = 30, elapsed: float = 0, fence: int = 7) -> pb.Turn:
    lease = sessions.SessionLease(
        team_id="T1", fencing_token=fence, remaining=lasts(remaining), elapsed=lasts(elapsed)
    )
    return pb.Turn(
        turn_id="turn", attempt=1, lease=lease, remaining=lasts(remaining), elapsed=lasts(elapsed)
    )


def granted(**times: Any) -> pb.RunTurnResponse:
    return pb.RunTurnResponse(granted=pb.TurnGranted(turn=turn(**times)))


def renewed(**times: Any) -> pb.RunTurnResponse:
    return pb.RunTurnResponse(renewed=pb.TurnRenewed(turn=turn(**times)))


FINISHED = pb.RunTurnResponse(finished=pb.TurnFinished(event=events.ProcessedEvent(event_id="E1")))


def flow(io: FakeIo, terms: Terms = TERMS) -> TurnFlow:
    request = pb.BeginTurnRequest(
        event=events.EventKey(team_id="T1", event_id="E1"), request_id="request"
    )
    return TurnFlow(io, terms, request, JsonCodec())


async def begun(io: FakeIo, *messages: Any) -> TurnFlow:
    """A turn that is granted, and then gets these messages."""
    io.streams.append(FakeStream(io, granted(), *messages))
    held = flow(io)
    await held.begin()
    return held
