"""The protocol's `Io` over grpc.aio. One for each event loop: its channels belong to the loop."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from oncegate import _clock
from oncegate import _errors as errors
from oncegate._aio_stream import AioStream, cancellations, failure_of
from oncegate._connections import Connections
from oncegate._wire import CHANNEL_OPTIONS, Failure, Method, Req, Res

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from oncegate._access import Access, Certificates, Credentials
    from oncegate._hold import Hold
    from oncegate._io import Latch, Stream

R = TypeVar("R")
Flow = TypeVar("Flow", bound="Hold")

FORKING = 0.1
"""How long calls may go on before a fork."""

ENDING = 2.0
"""How long ends may go on before the channels are closed."""

CLOSING = 1.0
"""How long flows that have lost their channel may take to notice."""

LOG = logging.getLogger("oncegate")


class AioLatch:
    """An event that is set once."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Releases all that wait."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Returns whether it was set in this time."""
        if not self._event.is_set():
            try:
                async with asyncio.timeout(seconds):
                    await self._event.wait()
            except TimeoutError:
                return False
        return True


class AioIo:
    """Time, calls and channels of one event loop, and the turns and leases that use them."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._certificates: Certificates | None = None
        """Those of the channels that are open."""
        self._loop = asyncio.get_running_loop()
        self._flows: set[Hold] = set()
        """Those that begin, that run, and that end."""
        self._refusing = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._open: set[Any] = set()
        self._closed = asyncio.Event()
        self._pause: asyncio.Event | None = None
        self._connections = Connections(
            self._channel,
            lambda channel: self.spawn(channel.close()),
        )

    def _channel(self) -> Any:
        target, options = self._access.target, [*CHANNEL_OPTIONS]
        if not self._access.is_tls:
            if self._access.avoids_proxy:
                options.append(("grpc.enable_http_proxy", 0))
            return grpc.aio.insecure_channel(target, options=options)
        if self._access.server_name is not None:
            options.append(("grpc.ssl_target_name_override", self._access.server_name))
        found = self._certificates
        assert found is not None, "TLS has certificates"
        credentials = grpc.ssl_channel_credentials(found.ca, found.key, found.cert)
        return grpc.aio.secure_channel(target, credentials, options=options)

    def _connect(self) -> tuple[Connections, Credentials]:
        """For one more call or stream: other connections if the certificates have changed."""
        credentials = self._access.credentials(self.now())
        if credentials.certificates != self._certificates:
            self._certificates = credentials.certificates
            self._connections.replace()
        return self._connections, credentials

    def now(self) -> float:
        """See `oncegate._clock`."""
        return _clock.now()

    async def sleep(self, seconds: float) -> None:
        """Waits. Raises `Closed` if the channels are closed meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return
        raise errors.Closed

    def latch(self) -> Latch:
        """Makes a latch."""
        return AioLatch()

    async def call(self, method: Method[Req, Res], request: Req, timeout: float) -> Res:
        """Makes one call."""
        await self._resumed()
        before = cancellations()
        connections, credentials = self._connect()
        connection = connections.for_call()
        call = connection.stub(method, "unary_unary")(
            request, timeout=timeout, metadata=credentials.metadata()
        )
        self._open.add(call)
        try:
            response: Res = await call
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._connections.suspect(connection)
            raise failure_of(error, credentials) from error
        except asyncio.CancelledError:
            if (self._pause or self._closed.is_set()) and cancellations() == before:
                raise Failure("UNAVAILABLE", "the channel was closed") from None
            raise
        finally:
            self._open.discard(call)
            self._connections.done(connection)
        return response

    async def open(self, method: Method[Any, Res], request: Any, *, more: bool) -> Stream[Any, Res]:
        """Makes a stream; see `Io`."""
        await self._resumed()
        connections, credentials = self._connect()
        connection, metadata = connections.for_stream(), credentials.metadata()
        if more:
            call = connection.stub(method, "stream_stream")(metadata=metadata)
        else:
            call = connection.stub(method, "unary_stream")(request, metadata=metadata)
        first = request if more else None
        stream = AioStream(
            call,
            first,
            self._loop,
            lambda: self._connections.suspect(connection),
            credentials,
        )
        self._open.add(stream)

        def done(_: Any) -> None:
            self._open.discard(stream)
            self._connections.done(connection)

        call.add_done_callback(done)
        return stream

    async def _resumed(self) -> None:
        while self._pause is not None:
            await self._pause.wait()
        if self._closed.is_set():
            raise errors.Closed

    async def begin(
        self,
        flow: Flow,
        begin: Callable[[Flow], Coroutine[Any, Any, None]],
        on_lost: Callable[[str], object],
    ) -> None:
        """Begins a turn or lease, and keeps it from its grant on.

        Between the two nothing else runs: a grant is either kept, or raises `Closed`. If
        `begin` raises after the grant, the caller ends it.
        """
        if self._refusing:
            raise errors.Closed
        self._flows.add(flow)
        try:
            await begin(flow)
        finally:
            if flow.held:
                flow.on_lost = on_lost
                self._keep(flow, asyncio.current_task())
            else:
                self._flows.discard(flow)

    def _keep(self, flow: Hold, holder: asyncio.Task[Any] | None) -> asyncio.Task[None]:
        keeper = self.spawn(flow.keep())
        keeper.add_done_callback(functools.partial(self._keeper_ended, flow, holder))
        return keeper

    def _keeper_ended(
        self, flow: Hold, holder: asyncio.Task[Any] | None, keeper: asyncio.Task[None]
    ) -> None:
        if keeper.cancelled() and not self._closed.is_set() and holder and not holder.done():
            # By the author: asyncio.run cancels all tasks at its end. The holder's cleanup goes on, and
            # ends the turn. If it does not, nothing else will.
            again = self._keep(flow, holder)
            holder.add_done_callback(lambda _: again.cancel())
            return
        error = errors.Closed() if keeper.cancelled() else keeper.exception()
        if isinstance(error, errors.Closed):
            flow.lose("CLOSED")
        elif error is not None:
            LOG.error("the keeper of a turn or lease failed", exc_info=error)
            flow.lose("EXPIRED")

    async def finish(self, flow: Hold, ending: Callable[[], Coroutine[Any, Any, R]]) -> R:
        """Ends it, although the caller is cancelled. Until then the gate is not drained."""

        if self._closed.is_set():
            return await ending()  # which needs no call, and no event loop: the gate has ended the turn

        async def finish() -> R:
            try:
                return await ending()
            finally:
                self._flows.discard(flow)

        try:
            return await asyncio.shield(self.spawn(finish()))
        finally:
            await flow.after_close(ENDING)

    def refuse(self) -> None:
        """Grants no new turns and leases: their beginnings raise `Closed`."""
        self._refusing = True
        for flow in list(self._flows):
            flow.refuse()

    async def drain(self, seconds: float) -> None:
        """Grants no new turns and leases, and waits for those that run, but not for lost ones."""
        self.refuse()
        await self._while_any(lambda flow: flow.lost_reason is None, seconds)

    async def _while_any(self, condition: Callable[[Hold], bool], seconds: float) -> None:
        until = self.now() + seconds
        while any(map(condition, self._flows)) and self.now() < until:  # noqa: ASYNC110
            await asyncio.sleep(0.02)

    def spawn(self, flow: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs a flow beside its caller."""
        task = self._loop.create_task(flow)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def run_in_loop(self, flow: Coroutine[Any, Any, None]) -> asyncio.Future[None] | None:
        """Runs a flow in this event loop, for a caller in any. Not if the loop has been closed."""
        try:
            return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(flow, self._loop))
        except RuntimeError:
            flow.close()
            return None

    async def close(self) -> None:
        """Ends the turns and leases, and closes the channels.

        First it refuses new ones, or an ended turn would let the next one of its queue begin. Ends
        have 2 s. Calls without an answer then raise `Closed`, or `OutcomeUnknown` if they are ends.
        """
        if self._closed.is_set():
            return
        self.refuse()
        until = self.now() + ENDING
        for flow in list(self._flows):
            self.spawn(flow.close())
        # A beginning gives its grant back in a task.
        await self._while_any(lambda flow: not flow.held, ENDING)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=max(0.0, until - self.now()))
        self._closed.set()
        for running in list(self._open):
            running.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSING)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._connections.close():
            await channel.close()

    async def pause(self) -> bool:
        """Closes the channels, and returns whether there were any. Calls wait for `resume`.

        Running calls end with UNAVAILABLE, and are repeated then.
        """
        self._pause = asyncio.Event()
        # Most calls have their answer before: gRPC keeps a call that is cancelled while
        # it starts.
        await asyncio.sleep(FORKING)
        for running in list(self._open):
            running.cancel()
        channels = self._connections.close()
        for channel in channels:
            await channel.close()
        return bool(channels)

    def resume(self) -> None:
        """Lets calls open channels again."""
        if self._pause is not None:
            self._pause.set()
            self._pause = None
