"""Deliveries that nobody sends again: this process asks for their turn until it has an answer."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from oncegate._errors import (
    Busy,
    Closed,
    Dropped,
    Duplicate,
    GaveUp,
    NotGranted,
    Overloaded,
    Unavailable,
)
from oncegate._turn import as_current

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from contextlib import AbstractContextManager

    from oncegate._aio_scopes import AsyncTurn, AsyncTurnScope
    from oncegate._sync_scopes import Turn

LOG = logging.getLogger("oncegate")

_REFUSALS = (NotGranted, Unavailable, Overloaded)

PATIENCE = 30.0
"""Seconds that one request outlasts an outage."""

_LONGEST_WAIT = 600.0  # that the server accepts


class Refused(Exception):
    """A turn was not granted. The same error raised by a handler is the handler's own."""

    def __init__(self, refusal: Exception) -> None:
        super().__init__(str(refusal))
        self.refusal = refusal


@asynccontextmanager
async def granted(scope: AsyncTurnScope) -> AsyncGenerator[AsyncTurn, None]:
    """Enters a turn and makes it the current one. Only entering it raises `Refused`."""
    async with AsyncExitStack() as stack:
        try:
            turn = await stack.enter_async_context(scope)
        except _REFUSALS as refusal:
            raise Refused(refusal) from refusal
        with as_current(turn):
            yield turn


def enter(scope: AbstractContextManager[Turn]) -> Turn:
    """Enters the turn of a thread. Raises `Refused`."""
    try:
        return scope.__enter__()
    except _REFUSALS as refusal:
        raise Refused(refusal) from refusal


class Retry:
    """When to ask again for a turn, within `wait` seconds."""

    def __init__(self, wait: float, refusal: Exception | None = None) -> None:
        self._until = time.monotonic() + wait
        # The queue of a busy conversation is joined at once.
        self.pause = 0.0 if isinstance(refusal, Busy | None) else retry_after(refusal)
        """Seconds until the next request."""

    @property
    def wait(self) -> float:
        """Seconds that the next request may wait in the server's queue."""
        return min(_LONGEST_WAIT, max(0.0, self._until - time.monotonic()))

    def after(self, refusal: Exception) -> bool:
        """Whether to ask again after this answer."""
        if isinstance(refusal, Duplicate | GaveUp | Dropped):
            return False
        self.pause, left = retry_after(refusal), self.wait
        if not isinstance(refusal, Overloaded):
            self.pause = min(self.pause, left)  # the last request is at the end of `wait`
        if left <= 0 or self.pause > left or isinstance(refusal, Closed):
            LOG.error("a delivery that is not sent again was not handled: %s", refusal)
            return False
        return True


def retry_after(refusal: Exception) -> float:
    """Seconds after which to ask again."""
    after: float = getattr(refusal, "retry_after", 1.0)
    return after


async def keep_asking(
    attempt: Callable[[float], Awaitable[None]], wait: float, refusal: Exception | None = None
) -> None:
    """Repeats an attempt, which takes its own wait, until it has its turn or `wait` is over."""
    retry = Retry(wait, refusal)
    while True:
        await asyncio.sleep(retry.pause)
        try:
            return await attempt(retry.wait)
        except Refused as refused:
            if not retry.after(refused.refusal):
                return None


def keep_asking_in_thread(
    attempt: Callable[[float], object], wait: float, refusal: Exception | None = None
) -> None:
    """The same for a thread."""
    retry = Retry(wait, refusal)
    while True:
        time.sleep(retry.pause)
        try:
            attempt(retry.wait)
        except Refused as refused:
            if not retry.after(refused.refusal):
                return
        else:
            return
