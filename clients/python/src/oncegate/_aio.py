"""`AsyncGate`: turns, leases and marks for asyncio."""

from __future__ import annotations

import functools
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, Self, TypeVar, Unpack, overload

from oncegate import _errors as errors
from oncegate import _marks
from oncegate._aio_runtime import AioRuntime
from oncegate._aio_scopes import AsyncLeaseScope, AsyncTurn, AsyncTurnScope
from oncegate._clock import Time, seconds
from oncegate._delivery import Delivery, Session
from oncegate._entry import LeaseEntry, TurnEntry
from oncegate._options import GateOptions, LeaseOptions, Options, TurnOptions, known
from oncegate._turn import as_current

if TYPE_CHECKING:
    from oncegate._errors import Outcome
    from oncegate._marks import MarkItem, Seen

P = ParamSpec("P")
R = TypeVar("R")
Handler = TypeVar("Handler", bound=Callable[..., Any])


class AsyncGate:
    """The client for asyncio. One a process; connects on first use, and once in each event loop.

    `server`: ``host:port``, ``https://host:port``, ``dns:///name:port`` or ``unix:/path``; by default
    ``ONCEGATE_SERVER`` of the environment, else ``127.0.0.1:7411``. Options: `GateOptions`, and for TLS
    and tokens `AccessOptions`. Raises `Misconfigured`.
    """

    _environment: ClassVar[Mapping[str, str]] = os.environ

    def __init__(self, server: str | None = None, **options: Unpack[GateOptions]) -> None:
        self._options = Options(server, options, self._environment)
        self._runtime = AioRuntime(self._options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @overload
    def turn(self, delivery: Delivery, **options: Unpack[TurnOptions]) -> AsyncTurnScope: ...

    @overload
    def turn(self, delivery: Callable[P, Delivery], **options: Unpack[TurnOptions]) -> Decorator[P]: ...

    def turn(
        self, delivery: Delivery | Callable[P, Delivery], **options: Unpack[TurnOptions]
    ) -> AsyncTurnScope | Decorator[P]:
        """Claims an event and its conversation, keeps both, and ends both together.

        A scope: ``async with gate.turn(slack.delivery(body), wait=20) as turn``. With a callable that
        makes a delivery of a handler's arguments: a decorator; the handler reads `current_turn`.

        Raises:
            NotGranted: `Duplicate`, `GaveUp`, `InProgress`, `Busy` or `Dropped`: there is no turn.
            Unavailable, Overloaded, Denied, EpicMismatch, PayloadMismatch, Invalid: From its beginning.
            TurnLost, OutcomeUnknown: From its end.
        """
        if isinstance(delivery, Delivery):
            return self._scope(delivery, options)
        known(options, TurnOptions)
        return Decorator(lambda made: self._scope(made, options), delivery)

    async def run(
        self,
        handler: Callable[[AsyncTurn], Awaitable[R]],
        delivery: Delivery,
        **options: Unpack[TurnOptions],
    ) -> Outcome[R]:
        """Runs a handler in a turn, and returns the outcome as a value.

        What the handler returns is stored as the turn's result. Raises as `turn`, without
        `NotGranted`.
        """
        return await _run(self._scope(delivery, options), handler)

    def once(
        self, make_delivery: Callable[P, Delivery], **options: Unpack[TurnOptions]
    ) -> Decorator[P]:
        """A decorator: runs once for each event, and returns its stored result to duplicates.

        `make_delivery` makes a delivery of the function's arguments; its conversation is ignored.
        The function raises `NotGranted` other than `Duplicate`.
        """
        known(options, TurnOptions)
        return Decorator(
            lambda made: self._scope(made, options, session=False), make_delivery, replays=True
        )

    def webhook(
        self, make_delivery: Callable[..., Delivery], **options: Unpack[TurnOptions]
    ) -> Callable[[Handler], Handler]:
        """A decorator for handlers of FastAPI, Starlette and Django, which are coroutine functions.

        ``@gate.webhook(github.delivery)``, below the framework's own decorator. `make_delivery` gets
        the request's headers and body, or the body alone. Verify the sender's signature outside.

        A status below 500 ends the turn; a duplicate gets the same status, headers and body, or
        the status alone if their record is longer than 64 KiB, which takes a body of about 47 KiB.
        So does an HTTP exception of the framework, such as ``HTTPException(404)``, whose duplicates get
        the status alone. A status of 500 or more, or another exception, fails the turn.

        While another run has the event or its conversation, or the server is unavailable, the sender
        gets 503 with Retry-After. A delivery that is not sent again waits 5 s for its conversation,
        unless ``wait`` is set.
        """
        from oncegate._webhook import async_webhook

        return async_webhook(self, make_delivery, options)

    def lease(
        self,
        session: Session | str,
        id: str | None = None,
        *,
        thread: tuple[str, str] | None = None,
        **options: Unpack[LeaseOptions],
    ) -> AsyncLeaseScope:
        """Holds a conversation: ``async with gate.lease("T1", thread=("C1", "17.5")) as lease``.

        `session` is a `Session`, or a tenant with an `id` or a `thread` of channel and timestamp.

        Raises:
            Busy: Another holder has it, and ``wait`` is over.
            LeaseLost: From its end.
            Unavailable, Overloaded, Denied, EpicMismatch, Invalid: From its beginning.
        """
        entry = LeaseEntry(self._options, session, id, thread, options)
        return AsyncLeaseScope(self._runtime, entry)

    async def mark(self, delivery: Delivery, ttl: Time | None = None) -> MarkItem:
        """Marks an event as processed, at most once: a crash afterwards loses it.

        `ttl`: how long it stays processed, 1 s to 30 days; the delivery's, else 24 h, by default.
        Raises `Unavailable`, `Overloaded`, `Denied`, `PayloadMismatch` or `Invalid`.
        """
        options = self._options
        request = options.mark(delivery, ttl)
        return await _marks.mark(self._runtime.io(), delivery, request, options.patience)

    async def mark_all(self, deliveries: Iterable[Delivery]) -> AsyncIterator[MarkItem]:
        """Marks any number of events, and yields the answers in their order.

        A delivery that cannot be marked has an `error` of its own.
        """
        options = self._options
        pairs = ((delivery, options.mark(delivery)) for delivery in deliveries)
        for batch in _marks.batches(pairs):
            for item in await _marks.mark_batch(self._runtime.io(), batch, options.patience):
                yield item

    async def seen(self, delivery: Delivery, include_result: bool = False) -> Seen:
        """Reads the state of an event. Never writes."""
        options = self._options
        request = options.is_processed(delivery, include_result)
        return await _marks.seen(self._runtime.io(), request, options.codec, options.patience)

    def adopt(
        self, turn_id: str, *, event_ttl: Time | None = None, **options: Unpack[TurnOptions]
    ) -> AsyncTurnScope:
        """Carries on a turn that another process began and detached. It ends as any turn.

        `event_ttl`: how long the event stays processed, as in `Delivery`. Raises `TurnLost` if the turn
        has ended.
        """
        delivery = Delivery("", "", ttl=event_ttl)
        entry = TurnEntry(self._options, delivery, options, turn_id=turn_id)
        return AsyncTurnScope(self._runtime, entry)

    async def drain(self, within: Time) -> None:
        """Grants no new turns, waits so many seconds for those that run, and closes the gate.

        In all event loops. Turns that still run then fail, as with `close`.
        """
        await self._runtime.drain(seconds(within))

    async def close(self) -> None:
        """Fails the turns that run, so that the next delivery gets their events; closes channels.

        Those of other event loops go on: close the gate in each. May be called in a turn's body, which
        this cancels.
        """
        await self._runtime.close()

    def _scope(
        self, delivery: Delivery, options: TurnOptions, *, session: bool = True
    ) -> AsyncTurnScope:
        entry = TurnEntry(self._options, delivery, options, session=session)
        return AsyncTurnScope(self._runtime, entry)


class Decorator(Generic[P]):
    """Runs a function in a turn of the delivery that its arguments make."""

    def __init__(
        self,
        scope: Callable[[Delivery], AsyncTurnScope],
        make_delivery: Callable[P, Delivery],
        *,
        replays: bool = False,
    ) -> None:
        self._scope = scope
        self._make_delivery = make_delivery
        self._replays = replays

    def __call__(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Awaitable[R]]:
        @functools.wraps(function)
        async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            scope = self._scope(self._make_delivery(*args, **kwargs))
            outcome = await _run(scope, lambda _: function(*args, **kwargs))
            if isinstance(outcome, errors.Ran):
                return outcome.value
            if isinstance(outcome, errors.Duplicate) and self._replays:
                result: R = outcome.replay()
                return result
            raise outcome

        return guarded


async def _run(scope: AsyncTurnScope, handler: Callable[[AsyncTurn], Awaitable[R]]) -> Outcome[R]:
    async with AsyncExitStack() as stack:
        try:
            turn = await stack.enter_async_context(scope)
        except errors.NOT_GRANTED as outcome:
            return outcome
        with as_current(turn):
            value = await handler(turn)
        if value is not None:
            turn.result = value
        return errors.Ran(value)
    return errors.REJECTED
