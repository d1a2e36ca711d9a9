"""Scopes for asyncio: ``async with``. A loss cancels the task that is in the scope."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from oncegate._turn import LeaseView, TurnView

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from types import TracebackType

    from oncegate._aio_io import AioIo
    from oncegate._entry import LeaseEntry, TurnEntry
    from oncegate._kept import Kept
    from oncegate._lease_flow import LeaseFlow
    from oncegate._options import Hooks
    from oncegate._turn_flow import TurnFlow

R = TypeVar("R")
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


class Runtime(Protocol):
    """What a scope needs of its gate."""

    hooks: Hooks
    flows: set[Kept]

    def io(self) -> AioIo:
        """The channels of the event loop that runs."""
        ...


class _Keeper:
    """Keeps a turn or lease beside the body, and cancels the body when it is lost."""

    def __init__(self, io: AioIo, flow: Kept, lost: AsyncLost, runtime: Runtime) -> None:
        self._flow = flow
        self._lost = lost
        self._runtime = runtime
        self._owner = asyncio.current_task()
        self._cancelling = 0 if self._owner is None else self._owner.cancelling()
        self._cancelled = False
        flow.on_lost = self._on_lost
        io.keep(flow)

    def _on_lost(self, reason: str) -> None:
        LOG.warning("a %s was lost: %s", self._flow.lost_error.what, reason)
        self._lost.report(reason)
        self._runtime.flows.discard(self._flow)
        self._runtime.hooks.on_lost(reason)
        if self._owner is not None and not self._owner.done():
            self._cancelled = True
            self._owner.cancel()

    def absorb(self, error: BaseException | None) -> None:
        """The body was left. Raises if `error` is only the cancellation that a loss caused."""
        owner, self._owner = self._owner, None  # a loss from now on is for the end to report
        if not self._cancelled or owner is None:
            return
        only_ours = owner.uncancel() <= self._cancelling
        if only_ours and isinstance(error, asyncio.CancelledError):
            reason = self._flow.lost_reason or "EXPIRED"
            raise self._flow.lost_error(reason) from error


async def _finish(runtime: Runtime, io: AioIo, flow: Kept, ending: Coroutine[Any, Any, R]) -> R:
    """Ends what a scope held. Until then the gate is not drained."""

    async def finish() -> R:
        try:
            return await ending
        finally:
            runtime.flows.discard(flow)

    # In a task of its own: a cancellation of the caller must not interrupt the end.
    return await asyncio.shield(io.spawn(finish()))


class AsyncTurnScope:
    """``async with gate.turn(delivery) as turn``."""

    def __init__(self, runtime: Runtime, entry: TurnEntry) -> None:
        self._runtime = runtime
        self._entry = entry
        self._keeper: _Keeper | None = None

    async def __aenter__(self) -> AsyncTurn:
        runtime = self._runtime
        self._io = io = runtime.io()
        self._flow = flow = self._entry.flow(io)
        turn = AsyncTurn(flow)
        await self._entry.begin(flow)
        if flow.held:
            self._keeper = _Keeper(io, flow, turn.lost, runtime)
            runtime.flows.add(flow)
        return turn

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if self._keeper is not None:
            self._keeper.absorb(error)
        ending = self._entry.leave(self._flow, error)
        return await _finish(self._runtime, self._io, self._flow, ending)


class AsyncLeaseScope:
    """``async with gate.lease(…) as lease``."""

    def __init__(self, runtime: Runtime, entry: LeaseEntry) -> None:
        self._runtime = runtime
        self._entry = entry

    async def __aenter__(self) -> AsyncLease:
        runtime = self._runtime
        self._io = io = runtime.io()
        self._flow = flow = self._entry.flow(io)
        lease = AsyncLease(flow)
        await self._entry.begin(flow)
        self._keeper = _Keeper(io, flow, lease.lost, runtime)
        runtime.flows.add(flow)
        return lease

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._keeper.absorb(error)
        ending = self._entry.leave(self._flow, error)
        await _finish(self._runtime, self._io, self._flow, ending)
