"""The base of turns and leases: how each is granted, kept, carried on and lost.

One object is used by two flows of one event loop: the holder's (`begin`, and the end), and `keep`,
which runs beside the body. Between two awaits nothing else runs, so each decision is taken only once.
"""

from __future__ import annotations

import os
import uuid
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from oncegate import _errors as errors
from oncegate._clock import span
from oncegate._io import SHORTEST, Io, Latch, Stream, call_until, pauses
from oncegate._wire import Failure

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from oncegate.v1 import session_pb2 as sessions

QUEUE_SILENCE = 30.0
"""In a queue the server says something every 20 s."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The times that a holder asks for, in seconds."""

    wait: float
    ttl: float
    grace: float
    patience: float

    @property
    def margin(self) -> float:
        """The time taken off the end of a turn or lease, for clocks and scheduling."""
        return min(1.0, self.ttl / 10)


def nothing(*_: object) -> None:
    """A hook that is not set."""


class Hold(ABC):
    """A turn or lease: its trusted end, and the flows that keep it."""

    lost_error: type[errors.Lost]
    _request: Any

    def __init__(self, io: Io, terms: Terms) -> None:
        self._io = io
        self.terms = terms
        self._pid = os.getpid()
        self.held = False
        self.trusted_end = 0.0
        self._valid_end = 0.0
        """The trusted end of what no stream keeps: that of the server, without `grace`."""
        self.kept_by: Literal["stream", "renew"] = "stream"
        self.lost_reason: str | None = None
        self.fence: int | None = None
        self.waiters = 0
        self.on_lost: Callable[[str], object] = nothing
        self.on_queued: Callable[[int], object] = nothing
        self._stream: Stream[Any, Any] | None = None
        self._probe_at = 0.0
        self._sent = 0.0
        self._over = False
        """Ended or lost. The first of the two counts."""
        self._refused = False
        """The gate was closed before it was granted."""
        self._stopped = io.latch()
        self._closed: Latch | None = None
        """Set when the gate has ended it."""

    # The differences between a turn and a lease.

    @abstractmethod
    async def _open(self, wait: float) -> Stream[Any, Any]:
        """Makes the stream, whose first read sends the request."""

    @abstractmethod
    def _granted(self, message: Any) -> bool:
        """Reads a message of a stream that is not granted yet. Raises `NotGranted`."""

    @abstractmethod
    def _news(self, message: Any) -> None:
        """Reads a message of a stream that is granted."""

    @abstractmethod
    async def _give_back(self, detail: str) -> None:
        """Ends it so that another run gets it at once. Raises nothing."""

    @abstractmethod
    async def _renew(self, until: float) -> None:
        """Extends it over the other channel."""

    # The holder's side.

    def now(self) -> float:
        """The time that ends are counted on."""
        return self._io.now()

    @property
    def left(self) -> float:
        """Seconds until the trusted end."""
        return self.trusted_end - self._io.now()

    def check(self) -> None:
        """Raises if it is lost or has ended, or its trusted end has passed."""
        self.belongs_here()
        if self._over:
            raise self.lost_error(self.lost_reason or "ENDED")
        if self.held and self.left <= 0:
            raise self.lost_error("EXPIRED")

    @property
    def is_over(self) -> bool:
        """Whether it has ended or was lost."""
        return self._over

    def belongs_here(self, error: BaseException | None = None) -> None:
        """Raises `WrongProcess` in a forked child. The `error` of a body that it leaves comes first."""
        if self._pid == os.getpid():
            return
        raise error or errors.WrongProcess(
            f"the {self.lost_error.what} stays with the process that began it; "
            "begin one in this process"
        )

    async def begin(self) -> None:
        """Waits until it is granted, and asks for another one if it is lost before it is trusted."""
        wait_until = self._io.now() + self.terms.wait
        pause = pauses()
        while True:
            await self._ask(wait_until)
            try:
                return await self._admit(self._make_sure())
            except self.lost_error as lost:
                if self._io.now() >= wait_until + self.terms.patience:
                    raise Failure("UNAVAILABLE", "grants are lost on their way") from lost.__cause__
            self._request.request_id = str(uuid.uuid4())
            await self._stopped.wait(next(pause))
            self._refuse_if_closed()

    async def _ask(self, wait_until: float) -> None:
        """Waits for the grant. A broken request is repeated with its request id."""
        outage: float | None = None
        pause = pauses()
        renewed = False
        while True:
            self._sent = self._io.now()
            heard = False
            silent_at = max(
                (self._sent if outage is None else outage) + self.terms.patience,
                self._sent + 0.5,
            )
            try:
                self._stream = stream = await self._open(max(0.0, wait_until - self._sent))
                self._refuse_if_closed()
                while not self._granted(await stream.read(silent_at)):
                    heard, outage = True, None
                    silent_at = self._io.now() + QUEUE_SILENCE
                return
            except Failure as failure:
                self._hang_up()
                self._refuse_if_closed()
                if failure.outdated and not renewed:
                    renewed = True
                    continue
                if outage is None:
                    outage = self._io.now() if heard else self._sent
                left = outage + self.terms.patience - self._io.now()
                # The last attempt is at the end of the patience, unless the server asks for more.
                delay = failure.retry_after or min(next(pause), left)
                over = left <= 0 or delay > left
                if over or not failure.retryable:
                    raise
            except BaseException:
                self._hang_up()
                raise
            await self._stopped.wait(delay)
            self._refuse_if_closed()

    async def _admit(self, confirmation: Coroutine[Any, Any, None]) -> None:
        """It is granted. If the body does not get it after all, it goes back to the server."""
        try:
            await confirmation
            self._refuse_if_closed()
        except self.lost_error:
            self._hang_up()
            raise
        except BaseException:
            self._hang_up()
            self._io.spawn(self._give_back("its holder did not begin"))
            raise
        self.held = True

    async def _make_sure(self) -> None:
        """A grant that was long on its way is renewed before the body runs."""
        if self.left <= 0:
            await self._carry_on()

    async def _carry_on(self) -> None:
        """Renews from now on, instead of the stream."""
        self._hang_up()
        await self._confirm()
        self.kept_by = "renew"

    async def _confirm(self) -> None:
        """Renews before the body runs, within the patience, until the trusted end lies ahead."""
        until = self._io.now() + max(1.0, min(self.terms.ttl, self.terms.patience))
        pause = pauses()
        try:
            await self._renew(until)
            while self.left <= 0:
                if self._io.now() >= until:
                    raise Failure("UNAVAILABLE", "renewals are answered after their trusted end")
                await self._stopped.wait(next(pause))
                self._refuse_if_closed()
                await self._renew(until)
        except Failure as failure:
            if failure.lost:
                raise self.lost_error(failure.reason) from failure.__cause__
            raise

    def refuse(self) -> None:
        """The gate is closed: if it has not begun, its beginning raises `Closed`.

        The server grants nothing to a cancelled stream. A grant that is on its way lasts for its grace.
        """
        if not self.held:
            self._refused = True
            self._stopped.set()
            self._hang_up()

    def _refuse_if_closed(self) -> None:
        if self._refused:
            self._hang_up()
            raise errors.Closed

    async def close(self) -> None:
        """The gate ends it under its holder."""
        if self.held and self._close():
            self._closed = self._io.latch()
            self.lost_reason = "CLOSED"
            self.on_lost(self.lost_reason)
            await self._give_back("the gate was closed")
            self._closed.set()

    async def after_close(self, seconds: float) -> None:
        """Waits for the gate's end, if it is the gate that ended it."""
        if self._closed is not None:
            await self._closed.wait(seconds)

    def _hang_up(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
            self._stream = None

    def _close(self) -> bool:
        """It is over. False if it was before."""
        if self._over:
            return False
        self._over = True
        self._stopped.set()
        return True

    # The keeper's side.

    async def keep(self) -> None:
        """Keeps it until it is lost, or its holder has ended it."""
        if await self._read_news():
            await self._keep_renewing()

    async def _read_news(self) -> bool:
        """Reads the stream to its end. Returns whether there is something to carry on then."""
        while self._stream is not None:
            try:
                self._news(await self._stream.read(self._probe_at))
            except Failure as failure:
                return self._break(failure)
            if self._is_finished():
                return False
        return not self._over

    def _is_finished(self) -> bool:
        """The stream has nothing more to say."""
        return False

    def _break(self, failure: Failure) -> bool:
        """The stream ended. Returns whether there is something to carry on."""
        if self._over:
            return False
        if failure.loss:
            self.lose(failure.loss)
            return False
        self._hang_up()
        self.kept_by = "renew"
        if failure.reason == "DRAINING":  # the server says that it keeps its grants
            self.trusted_end = self._valid_end
        return True

    async def _keep_renewing(self) -> None:
        while not self._over:
            try:
                await self._renew(self.trusted_end)
            except Failure as failure:
                self.lose(failure.loss or "EXPIRED")
                return
            if self.left <= 0:  # before max_hold, the server grants less than the margin
                self.lose("EXPIRED")
                return
            # A turn that is longer than its lease has less of the TTL left.
            await self._stopped.wait(min(self.terms.ttl / 3, self.left / 2))

    def lose(self, reason: str) -> None:
        """It ended without its holder, unless it was over before."""
        if self._close():
            self.lost_reason = reason
            self._hang_up()
            self.on_lost(reason)

    # Trust.

    def _trust(self, remaining: float, elapsed: float, sent: float, grace: float | None = None) -> None:
        """Moves the trusted end: the server said how long is left, and how long it took to say so.

        `grace`: the server may see a break of the stream that this side does not see, and keeps
        a turn of the stream for so long only.
        """
        lasts = remaining if grace is None else min(remaining, grace)
        self.trusted_end = sent + elapsed + lasts - self.terms.margin
        self._valid_end = self.trusted_end + remaining - lasts
        # A call renews after silence. Early, if it is needed anyway: the trusted end comes before the
        # server's next renewal.
        left, third = self.left, self.terms.ttl / 3
        latest = (0.9 if 0.9 * left > third else 0.5) * left
        self._probe_at = self._io.now() + min(0.4 * self.terms.ttl, latest)

    async def _call_renew(self, method: Any, request: Any, until: float) -> tuple[Any, float]:
        timeout = max(0.5, self.terms.ttl / 20)
        return await call_until(self._io, method, request, until - SHORTEST, timeout)


def lease_span(lease: sessions.SessionLease) -> tuple[float, float]:
    """How long a lease has left, and how long the server took to say so."""
    return span(lease.remaining), span(lease.elapsed)
