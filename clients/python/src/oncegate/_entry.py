"""How a scope is entered and left: shared by `async with` and `with`."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

from oncegate import _errors as errors
from oncegate._codec import encode
from oncegate._delivery import Delivery, Session
from oncegate._hold import Hold
from oncegate._lease_flow import LeaseFlow
from oncegate._options import LeaseOptions, Options, TurnOptions, known
from oncegate._turn_flow import TurnFlow
from oncegate._wire import Failure

if TYPE_CHECKING:
    from oncegate._io import Io

LOG = logging.getLogger("oncegate")


Flow = TypeVar("Flow", bound=Hold)
Ended = TypeVar("Ended")


class Entry(ABC, Generic[Flow, Ended]):
    """One turn or lease that a scope asks for."""

    _entered = False

    def __init__(self, settings: Options) -> None:
        self._settings = settings

    def flow(self, io: Io) -> Flow:
        """Its flow. A scope is entered once: it has room for one turn or lease."""
        if self._entered:
            raise RuntimeError("a scope is entered once; make another one")
        self._entered = True
        flow = self._make_flow(io)
        flow.on_queued = self._settings.hooks.on_queued
        return flow

    @abstractmethod
    def _make_flow(self, io: Io) -> Flow: ...

    @abstractmethod
    async def begin(self, flow: Flow) -> None:
        """Begins it."""

    @abstractmethod
    async def leave(self, flow: Flow, error: BaseException | None) -> Ended:
        """Ends it, if it is held. `error`: with which its body was left."""


class TurnEntry(Entry[TurnFlow, bool]):
    """One turn that a scope asks for."""

    def __init__(
        self,
        settings: Options,
        delivery: Delivery,
        options: TurnOptions,
        *,
        session: bool = True,
        turn_id: str | None = None,
    ) -> None:
        super().__init__(settings)
        known(options, TurnOptions)
        self._delivery = delivery
        self._options = options
        self._session = session
        self._turn_id = turn_id
        self._codec = options.get("codec") or settings.codec
        self._on_unavailable = options.get("on_unavailable") or settings.on_unavailable

    def _make_flow(self, io: Io) -> TurnFlow:
        terms = self._settings.terms(self._options)
        request = self._settings.begin(self._delivery, self._options, terms, session=self._session)
        return TurnFlow(io, terms, request, self._codec)

    async def begin(self, flow: TurnFlow) -> None:
        """Begins the turn. If the body may run unguarded, the flow is not held afterwards."""
        try:
            if self._turn_id is None:
                await flow.begin()
            else:
                await flow.adopt(self._turn_id)
        except Failure as failure:
            self._refuse(failure)
        else:
            self._settings.hooks.on_begin(self._delivery)

    def _refuse(self, failure: Failure) -> None:
        """Raises, or returns if the body runs all the same."""
        if failure.reason == "NO_KEY":
            self._settings.warn_unguarded(self._delivery)
            return
        error = failure.error()
        if isinstance(error, errors.Unavailable):
            if self._on_unavailable == "run":
                LOG.warning("%s; the handler runs without a turn", failure)
                return
            if self._on_unavailable == "drop":
                raise errors.Dropped from failure.__cause__
        raise error from failure.__cause__

    async def leave(self, flow: TurnFlow, error: BaseException | None) -> bool:
        """Ends the turn. Returns whether `error` is an order and not an error."""
        rejects = isinstance(error, errors.Reject)
        if not flow.held or flow.detached:
            return rejects
        outcome = "FAILED" if flow.lost_reason is None else "LOST"
        try:
            if isinstance(error, errors.Reject):
                await flow.reject(error.detail, self._delivery.lifetime())
                outcome = "REJECTED"
            elif error is not None:
                await flow.fail(f"{type(error).__name__}: {error}")
            else:
                await flow.succeed(*await self._encoded(flow), self._delivery.lifetime())
                outcome = "SUCCEEDED"
        except (errors.TurnLost, errors.OutcomeUnknown) as ended:
            outcome = "LOST" if isinstance(ended, errors.TurnLost) else "UNKNOWN"
            ended.value = flow.result
            raise
        finally:
            self._settings.hooks.on_end(outcome)
        return rejects

    async def _encoded(self, flow: TurnFlow) -> tuple[bytes, str]:
        """A result that cannot be encoded fails the turn."""
        if flow.lost_reason is not None:
            raise errors.TurnLost(flow.lost_reason)
        try:
            return encode(self._codec, flow.result)
        except Exception as error:
            await flow.fail(f"the result cannot be encoded: {error}")
            raise


class LeaseEntry(Entry[LeaseFlow, None]):
    """One lease that a scope asks for."""

    def __init__(
        self,
        settings: Options,
        session: Session | str,
        id: str | None,
        thread: tuple[str, str] | None,
        options: LeaseOptions,
    ) -> None:
        super().__init__(settings)
        known(options, LeaseOptions)
        self._session = _session(session, id, thread)
        self._options = options

    def _make_flow(self, io: Io) -> LeaseFlow:
        terms = self._settings.terms(self._options)
        return LeaseFlow(io, terms, self._settings.hold(self._session, terms, self._options))

    async def begin(self, flow: LeaseFlow) -> None:
        """Acquires the lease."""
        try:
            await flow.begin()
        except Failure as failure:
            raise failure.error() from failure.__cause__

    async def leave(self, flow: LeaseFlow, error: BaseException | None) -> None:
        """Releases the lease."""
        if not flow.held:
            return
        if flow.lost_reason is None:
            await flow.release()
        elif error is None:
            raise errors.LeaseLost(flow.lost_reason)


def _session(session: Session | str, id: str | None, thread: tuple[str, str] | None) -> Session:
    if isinstance(session, Session):
        return session
    if thread is not None:
        return Session.thread(session, *thread)
    if id is None:
        raise TypeError("lease() needs a Session, or a tenant with an id or a thread")
    return Session(session, id)
