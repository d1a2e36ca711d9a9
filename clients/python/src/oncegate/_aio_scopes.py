"""Scopes for asyncio: ``async with``. A loss cancels the task that is in the scope."""

from __future__ import annotations

import asyncio
import functools
import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from oncegate._turn import LeaseView, TurnView

if TYPE_CHECKING:
    from types import TracebackType

    from oncegate._aio_io import AioIo
    from oncegate._aio_runtime import AioRuntime
    from oncegate._entry import Entry
    from oncegate._hold import Hold
    from oncegate._lease_flow import LeaseFlow
    from oncegate._options import Hooks
    from oncegate._turn_flow import TurnFlow

LOG = logging.getLogger("oncegate")


class AsyncLost:
    """Reports the loss of a turn or lease. A loss also cancels the scope's task."""

    def __init__(self) -> None:
        self.reason: str | None = None
        """Why it was lost; see `TurnLost`."""
        self._event = asyncio.Event()

    def is_set(self) -> bool:
        """Whether it is lost."""
        return self._event.is_set()

    async def wait(self) -> str:
        """Waits for the loss, and returns its reason."""
        await self._event.wait()
        return self.reason or ""

    def report(self, reason: str) -> None:
        """Called by the library."""
        self.reason = reason
        self._event.set()


class AsyncTurn(TurnView):
    """One event, claimed, in its conversation's turn."""

    def __init__(self, flow: TurnFlow) -> None:
        super().__init__(flow)
        self.lost = AsyncLost()

    async def detach(self) -> str:
        """Leaves the turn to another process: it has the TTL to ``adopt`` the returned id.

        The scope then ends nothing. Raises `TurnLost`.
        """
        return await self._flow.detach()


class AsyncLease(LeaseView):
    """A conversation, held."""

    def __init__(self, flow: LeaseFlow) -> None:
        super().__init__(flow)
        self.lost = AsyncLost()


class _Owner:
    """The task that is in a scope: a loss cancels it."""

    def __init__(self, flow: Hold, lost: AsyncLost, hooks: Hooks) -> None:
        self._flow = flow
        self._lost = lost
        self._hooks = hooks
        self._task = asyncio.current_task()
        self._cancelling = 0 if self._task is None else self._task.cancelling()
        self._cancelled = False

    def on_lost(self, reason: str) -> None:
        """Called by the flow."""
        self._lost.report(reason)
        if self._task is not None and not self._task.done():
            self._cancelled = True
            self._task.cancel()
        LOG.warning("a %s was lost: %s", self._flow.lost_error.what, reason)
        self._hooks.on_lost(reason)

    def absorb(self, error: BaseException | None) -> BaseException | None:
        """The body was left. Returns the body's own error: not the cancellation that a loss caused."""
        task, self._task = self._task, None  # a loss from now on is for the end to report
        if not self._cancelled or task is None:
            return error
        only_ours = task.uncancel() <= self._cancelling
        return None if only_ours and isinstance(error, asyncio.CancelledError) else error


View = TypeVar("View", AsyncTurn, AsyncLease)
Ended = TypeVar("Ended")


class _Scope(ABC, Generic[View, Ended]):
    """Begins a turn or lease, and ends it."""

    def __init__(self, runtime: AioRuntime, entry: Entry[Any, Ended]) -> None:
        self._runtime = runtime
        self._entry = entry

    async def __aenter__(self) -> View:
        self._io: AioIo = self._runtime.io()
        io = self._io
        self._flow = flow = self._entry.flow(io)
        view = self._view(flow)
        self._owner = owner = _Owner(flow, view.lost, self._runtime.hooks)
        try:
            await io.begin(flow, self._entry.begin, owner.on_lost)
        except BaseException as error:
            if flow.held:
                await self._end(error)
            raise
        return view

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Ended:
        return await self._end(error)

    @abstractmethod
    def _view(self, flow: Any) -> View: ...

    async def _end(self, error: BaseException | None) -> Ended:
        ending = functools.partial(self._entry.leave, self._flow, self._owner.absorb(error))
        return await self._io.finish(self._flow, ending)


class AsyncTurnScope(_Scope[AsyncTurn, bool]):
    """``async with gate.turn(delivery) as turn``."""

    def _view(self, flow: TurnFlow) -> AsyncTurn:
        return AsyncTurn(flow)


class AsyncLeaseScope(_Scope[AsyncLease, None]):
    """``async with gate.lease(…) as lease``."""

    def _view(self, flow: LeaseFlow) -> AsyncLease:
        return AsyncLease(flow)
