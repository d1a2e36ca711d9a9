"""Scopes for blocking callers: ``with``. A loss sets ``lost``; a thread cannot be cancelled."""

from __future__ import annotations

import logging
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from oncegate._entry import LeaseEntry, TurnEntry
from oncegate._io import run
from oncegate._kept import Kept
from oncegate._lease_flow import LeaseFlow
from oncegate._options import Hooks
from oncegate._turn import LeaseView, TurnView
from oncegate._turn_flow import TurnFlow

if TYPE_CHECKING:
    from oncegate._sync_io import SyncIo

LOG = logging.getLogger("oncegate")


class Lost(threading.Event):
    """Set when a turn or lease is lost. Long work should look at it, or call ``check``."""

    def __init__(self) -> None:
        super().__init__()
        self.reason: str | None = None
        """Why it was lost; see `TurnLost`."""


class Turn(TurnView):
    """One event, claimed, in its conversation's turn."""

    def __init__(self, flow: TurnFlow) -> None:
        super().__init__(flow)
        self.lost = Lost()

    def detach(self) -> str:
        """Leaves the turn to another process: it has the TTL to ``adopt`` the returned id.

        The scope then ends nothing. Raises `TurnLost`.
        """
        return run(self._flow.detach())


class Lease(LeaseView):
    """A conversation, held."""

    def __init__(self, flow: LeaseFlow) -> None:
        super().__init__(flow)
        self.lost = Lost()


class Runtime(Protocol):
    """What a scope needs of its gate."""

    hooks: Hooks

    def io(self) -> SyncIo:
        """The channels of this process."""
        ...

    def enter(self, flow: Kept) -> None:
        """A turn or lease runs."""
        ...

    def leave(self, flow: Kept) -> None:
        """It has ended."""
        ...


def _keep(io: SyncIo, flow: Kept, lost: Lost, hooks: Hooks) -> None:
    """Keeps a turn or lease beside the body."""

    def on_lost(reason: str) -> None:
        LOG.warning("a %s was lost: %s", flow.lost_error.what, reason)
        lost.reason = reason
        lost.set()
        hooks.on_lost(reason)

    async def keep() -> None:
        try:
            await flow.keep()
        except Exception:
            LOG.exception("the keeper of a turn or lease failed")
            flow.lose("EXPIRED")

    flow.on_lost = on_lost
    io.spawn(keep())


class TurnScope:
    """``with gate.turn(delivery) as turn``."""

    def __init__(self, runtime: Runtime, entry: TurnEntry) -> None:
        self._runtime = runtime
        self._entry = entry

    def __enter__(self) -> Turn:
        runtime = self._runtime
        io = runtime.io()
        self._flow = flow = self._entry.flow(io)
        turn = Turn(flow)
        run(self._entry.begin(flow))
        if flow.held:
            _keep(io, flow, turn.lost, runtime.hooks)
            runtime.enter(flow)
        return turn

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        try:
            return run(self._entry.leave(self._flow, error))
        finally:
            self._runtime.leave(self._flow)


class LeaseScope:
    """``with gate.lease(…) as lease``."""

    def __init__(self, runtime: Runtime, entry: LeaseEntry) -> None:
        self._runtime = runtime
        self._entry = entry

    def __enter__(self) -> Lease:
        runtime = self._runtime
        io = runtime.io()
        self._flow = flow = self._entry.flow(io)
        lease = Lease(flow)
        run(self._entry.begin(flow))
        _keep(io, flow, lease.lost, runtime.hooks)
        runtime.enter(flow)
        return lease

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            run(self._entry.leave(self._flow, error))
        finally:
            self._runtime.leave(self._flow)
