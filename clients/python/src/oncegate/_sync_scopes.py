"""Scopes for blocking callers: ``with``. A loss sets ``lost``; a thread cannot be cancelled."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Protocol

from oncegate._turn import LeaseView, TurnView

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from oncegate._entry import LeaseEntry, TurnEntry
    from oncegate._kept import Kept
    from oncegate._lease_flow import LeaseFlow
    from oncegate._loop_thread import LoopThread
    from oncegate._options import Hooks
    from oncegate._turn_flow import TurnFlow

LOG = logging.getLogger("oncegate")


class Lost(threading.Event):
    """Set when a turn or lease is lost. Long work should look at it, or call ``check``."""

    def __init__(self) -> None:
        super().__init__()
        self.reason: str | None = None
        """Why it was lost; see `TurnLost`."""

    def report(self, reason: str) -> None:
        """Called by the library."""
        self.reason = reason
        self.set()


class Turn(TurnView):
    """One event, claimed, in its conversation's turn."""

    def __init__(self, flow: TurnFlow, loop: LoopThread) -> None:
        super().__init__(flow)
        self.lost = Lost()
        self._loop = loop

    def detach(self) -> str:
        """Leaves the turn to another process: it has the TTL to ``adopt`` the returned id.

        The scope then ends nothing. Raises `TurnLost`.
        """
        self._flow.belongs_here()
        return self._loop.run(self._flow.detach())


class Lease(LeaseView):
    """A conversation, held."""

    def __init__(self, flow: LeaseFlow) -> None:
        super().__init__(flow)
        self.lost = Lost()


class Runtime(Protocol):
    """What a scope needs of its gate."""

    hooks: Hooks

    def loop(self) -> LoopThread:
        """The event loop of this process."""
        ...


def _on_lost(flow: Kept, lost: Lost, hooks: Hooks) -> Callable[[str], None]:
    def on_lost(reason: str) -> None:
        lost.report(reason)
        LOG.warning("a %s was lost: %s", flow.lost_error.what, reason)
        hooks.on_lost(reason)

    return on_lost


class TurnScope:
    """``with gate.turn(delivery) as turn``."""

    def __init__(self, runtime: Runtime, entry: TurnEntry) -> None:
        self._runtime = runtime
        self._entry = entry

    def __enter__(self) -> Turn:
        runtime = self._runtime
        loop = runtime.loop()
        flow = self._entry.flow(loop.io)
        self._loop, self._flow = loop, flow
        turn = Turn(flow, loop)
        on_lost = _on_lost(flow, turn.lost, runtime.hooks)
        loop.run(loop.io.begin(flow, self._entry.begin(flow), on_lost))
        return turn

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if not self._flow.belongs_here(error):
            return False
        ending = self._entry.leave(self._flow, error)
        return self._loop.run(self._loop.io.finish(self._flow, ending), to_its_end=True)


class LeaseScope:
    """``with gate.lease(…) as lease``."""

    def __init__(self, runtime: Runtime, entry: LeaseEntry) -> None:
        self._runtime = runtime
        self._entry = entry

    def __enter__(self) -> Lease:
        runtime = self._runtime
        loop = runtime.loop()
        flow = self._entry.flow(loop.io)
        self._loop, self._flow = loop, flow
        lease = Lease(flow)
        on_lost = _on_lost(flow, lease.lost, runtime.hooks)
        loop.run(loop.io.begin(flow, self._entry.begin(flow), on_lost))
        return lease

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not self._flow.belongs_here(error):
            return
        ending = self._entry.leave(self._flow, error)
        self._loop.run(self._loop.io.finish(self._flow, ending), to_its_end=True)
