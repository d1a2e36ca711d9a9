"""Scopes for blocking callers: ``with``. A loss sets ``lost``; a thread cannot be cancelled."""

from __future__ import annotations

import functools
import logging
import threading
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from oncegate._turn import LeaseView, TurnView

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from oncegate._entry import Entry
    from oncegate._hold import Hold
    from oncegate._lease_flow import LeaseFlow
    from oncegate._loop_thread import LoopThread
    from oncegate._options import Hooks
    from oncegate._sync_runtime import SyncRuntime
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


View = TypeVar("View", Turn, Lease)
Ended = TypeVar("Ended")


class _Scope(ABC, Generic[View, Ended]):
    """Begins a turn or lease, and ends it."""

    def __init__(self, runtime: SyncRuntime, entry: Entry[Any, Ended]) -> None:
        self._runtime = runtime
        self._entry = entry

    def __enter__(self) -> View:
        self._loop: LoopThread = self._runtime.loop()
        loop = self._loop
        self._flow = flow = self._entry.flow(loop.io)
        view = self._view(flow)
        on_lost = _on_lost(flow, view.lost, self._runtime.hooks)
        try:
            loop.run(loop.io.begin(flow, self._entry.begin, on_lost))
        except BaseException as error:
            # Ctrl-C may come when it is granted in the loop's thread already.
            self._end(error)
            raise
        return view

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Ended:
        return self._end(error)

    @abstractmethod
    def _view(self, flow: Any) -> View: ...

    def _end(self, error: BaseException | None) -> Ended:
        flow, loop = self._flow, self._loop
        flow.belongs_here(error)
        ending = functools.partial(self._entry.leave, flow, error)
        return loop.run(loop.io.finish(flow, ending), to_its_end=True)


def _on_lost(flow: Hold, lost: Lost, hooks: Hooks) -> Callable[[str], None]:
    def on_lost(reason: str) -> None:
        lost.report(reason)
        LOG.warning("a %s was lost: %s", flow.lost_error.what, reason)
        hooks.on_lost(reason)

    return on_lost


class TurnScope(_Scope[Turn, bool]):
    """``with gate.turn(delivery) as turn``."""

    def _view(self, flow: TurnFlow) -> Turn:
        return Turn(flow, self._loop)


class LeaseScope(_Scope[Lease, None]):
    """``with gate.lease(…) as lease``."""

    def _view(self, flow: LeaseFlow) -> Lease:
        return Lease(flow)
