"""A turn or lease, as its handler sees it."""

from __future__ import annotations

import math
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from collections.abc import Generator

    from oncegate._hold import Hold
    from oncegate._lease_flow import LeaseFlow
    from oncegate._turn_flow import TurnFlow


class HoldView:
    """The common members of turns and leases. They need no call to the server."""

    def __init__(self, flow: Hold) -> None:
        self._flow = flow

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Frameworks copy their contexts; the holder stays the same."""
        return self

    @property
    def held(self) -> bool:
        """Whether it is held. False for a turn whose handler runs unguarded, and after its end."""
        return self._flow.held and not self._flow.is_over

    @property
    def fence(self) -> int | None:
        """The fencing token, to be sent with each write; ``None`` without a session."""
        return self._flow.fence

    @property
    def kept_by(self) -> Literal["stream", "renew"]:
        """Whether the server renews it over a stream, or this library by calls."""
        return self._flow.kept_by

    @property
    def waiters(self) -> int:
        """How many callers wait for the session."""
        return self._flow.waiters

    @property
    def left(self) -> float:
        """Seconds to the trusted end. Moves with each renewal. Infinite for a turn whose handler runs
        unguarded."""
        return self._flow.left if self._flow.held else math.inf

    def check(self) -> None:
        """Call it before an outside write.

        Raises `TurnLost` (`LeaseLost`) if it is lost or has ended, or its trusted end has passed, and
        `WrongProcess` in a forked child.
        """
        self._flow.check()


class TurnView(HoldView):
    """A turn, as its handler sees it."""

    _flow: TurnFlow

    @property
    def result(self) -> Any:
        """The result that a duplicate gets: set it. At most 64 KiB of JSON, or of another codec."""
        return self._flow.result

    @result.setter
    def result(self, value: Any) -> None:
        self._flow.result = value

    @property
    def id(self) -> str:
        """Names the turn for `Gate.adopt` in another process. Keep it secret."""
        return self._flow.id

    @property
    def team(self) -> str:
        """The tenant, if the delivery or its session names it."""
        return self._flow.team

    @property
    def attempt(self) -> int:
        """How many times the event has been claimed, this claim included. 0 if unguarded."""
        return self._flow.attempt


class LeaseView(HoldView):
    """A lease, as its holder sees it."""

    _flow: LeaseFlow

    @property
    def team(self) -> str:
        """The tenant."""
        return self._flow.lease.team_id

    @property
    def session(self) -> str:
        """The session's canonical id."""
        return self._flow.lease.session_id

    @property
    def epic(self) -> str:
        """The work that the session is bound to; empty: none."""
        return self._flow.lease.epic_id


current: ContextVar[TurnView] = ContextVar("oncegate_turn")


@contextmanager
def as_current(turn: TurnView) -> Generator[None]:
    """Makes a turn the one that `current_turn` returns."""
    token = current.set(turn)
    try:
        yield
    finally:
        current.reset(token)


def current_turn() -> TurnView:
    """The turn of the handler that runs, in a decorated function or one called by ``run``.

    Raises LookupError outside of one.
    """
    return current.get()
