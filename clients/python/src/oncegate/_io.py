"""The interface to time, calls and streams. `oncegate._aio_io` implements it, and so do tests."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from oncegate._wire import Failure, Method, Req, Res

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

S_contra = TypeVar("S_contra", contravariant=True)
R_co = TypeVar("R_co", covariant=True)

CALL_TIMEOUT = 10.0

SHORTEST = 0.1
"""The least time for the last attempt of a call."""

LATE = 0.2
CATCH_UP = 0.3


def postponed_until(until: float, now: float) -> float | None:
    """Whether a deadline that fires `now` counts. Else returns the time when it does.

    A timer that is late by more than `LATE` was held up: the event loop was blocked, or the process
    was stopped. Messages that came meanwhile are read first, which takes up to `CATCH_UP`.
    """
    return now + CATCH_UP if now - until > LATE else None


class Latch(Protocol):
    """An event that is set once."""

    def set(self) -> None:
        """Releases all that wait."""
        ...

    async def wait(self, seconds: float) -> bool:
        """Returns whether it was set in this time."""
        ...


class Stream(Protocol[S_contra, R_co]):
    """An open stream. Reads and writes raise `Failure`, and in a cancelled task CancelledError."""

    async def read(self, until: float) -> R_co:
        """The next message. If none comes in time, the stream is cancelled and the read fails.

        A task that is cancelled here leaves a stream that fails from then on.
        """
        ...

    async def write(self, message: S_contra, until: float) -> None:
        """Sends a message. If it cannot be sent in time, the stream is cancelled."""
        ...

    def cancel(self) -> None:
        """Ends the stream."""
        ...


class Io(Protocol):
    """Time and calls."""

    def now(self) -> float:
        """The time of `oncegate._clock.now`."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Waits. Raises `Closed` if the channels are closed meanwhile."""
        ...

    def spawn(self, flow: Coroutine[Any, Any, None]) -> object:
        """Runs a flow beside its caller."""
        ...

    def latch(self) -> Latch:
        """Makes a latch."""
        ...

    async def call(self, method: Method[Req, Res], request: Req, timeout: float) -> Res:
        """Makes one call. Raises `Failure`, or `Closed` if the channels are closed."""
        ...

    async def open(self, method: Method[Any, Res], request: Any, *, more: bool) -> Stream[Any, Res]:
        """Makes a stream, whose first `read` sends this message; `more`: others follow it.

        Raises `Closed` if the channels are closed.
        """
        ...


def pauses() -> Iterator[float]:
    """Pauses between attempts: from 50 ms, doubling to 1 s, with jitter."""
    pause = 0.05
    while True:
        yield pause * random.uniform(0.75, 1.25)
        pause = min(pause * 2, 1.0)


async def call_until(
    io: Io,
    method: Method[Req, Res],
    request: Req,
    until: float,
    timeout: float = CALL_TIMEOUT,
) -> tuple[Res, float]:
    """Repeats a call that is safe to repeat until it has an answer. The last attempt is at `until`.

    Returns the answer, and when the call that got it was sent. Raises the last `Failure` that says
    more than that the time was over.
    """
    pause = pauses()
    cause: Failure | None = None
    renewed = False
    while True:
        sent = io.now()
        try:
            return await io.call(method, request, max(SHORTEST, min(timeout, until - sent))), sent
        except Failure as failure:
            if failure.outdated and not renewed:
                renewed = True
                continue
            left = until - io.now()
            delay = failure.retry_after or min(next(pause), left)
            if failure.code != "DEADLINE_EXCEEDED" or cause is None:
                cause = failure
            if not failure.retryable or left <= 0 or delay > left:
                raise cause from cause.__cause__
        await io.sleep(delay)
