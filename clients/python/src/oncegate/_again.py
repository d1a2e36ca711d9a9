"""Deliveries that nobody sends again: this process asks for their turn until it has an answer."""

from __future__ import annotations

import asyncio
import logging
import time
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

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

LOG = logging.getLogger("oncegate")

REFUSALS = (NotGranted, Unavailable, Overloaded)
"""A turn that was not granted."""

PATIENCE = 30.0
"""Seconds that one request outlasts an outage."""

_LONGEST_WAIT = 600.0  # that the server accepts


class Again:
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
        self.pause = retry_after(refusal)
        if isinstance(refusal, Duplicate | GaveUp | Dropped):
            return False
        if self.pause > self.wait or isinstance(refusal, Closed):
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
    again = Again(wait, refusal)
    while True:
        await asyncio.sleep(again.pause)
        try:
            return await attempt(again.wait)
        except REFUSALS as answer:
            if not again.after(answer):
                return None


def keep_asking_in_thread(
    attempt: Callable[[float], object], wait: float, refusal: Exception | None = None
) -> None:
    """The same for a thread."""
    again = Again(wait, refusal)
    while True:
        time.sleep(again.pause)
        try:
            attempt(again.wait)
        except REFUSALS as answer:
            if not again.after(answer):
                return
        else:
            return
