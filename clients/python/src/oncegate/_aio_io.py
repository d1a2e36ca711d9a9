"""The protocol's `Io` over grpc.aio. One for each event loop: its channels belong to the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio

from oncegate import _clock
from oncegate._connections import Connections
from oncegate._io import Latch, Stream, settled
from oncegate._wire import (
    CHANNEL_OPTIONS,
    Failure,
    Method,
    Req,
    Res,
    read_failure,
)


def _failure(error: grpc.aio.AioRpcError) -> Failure:
    trailers = [(name, value) for name, value in error.trailing_metadata() or ()]
    failure = read_failure(error.code().name, error.details(), trailers)
    failure.__cause__ = error
    return failure


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


class AioStream:
    """One stream."""

    def __init__(
        self, call: Any, loop: asyncio.AbstractEventLoop, silent: Callable[[], None]
    ) -> None:
        self._call = call
        self._loop = loop
        self._silent = silent
        self._cancelled = False

    async def read(self, until: float) -> Any:
        """The next message; see `Stream`."""
        task = asyncio.current_task()
        cancelling = 0 if task is None else task.cancelling()
        self._arm(until)
        try:
            message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from error
        except asyncio.CancelledError:
            # Either the stream was cancelled, or the task that reads it.
            if self._cancelled and task is not None and task.cancelling() == cancelling:
                raise Failure("UNAVAILABLE", "the server did not answer in time") from None
            raise
        finally:
            self._alarm.cancel()
        if message is grpc.aio.EOF:
            raise Failure("UNAVAILABLE", "the server ended the stream")
        return message

    async def write(self, message: Any) -> None:
        """Sends a message."""
        try:
            await self._call.write(message)
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from error
        except asyncio.InvalidStateError as error:
            raise Failure("UNAVAILABLE", "the stream has ended") from error

    def cancel(self) -> None:
        """Ends the stream."""
        self._cancelled = True
        self._call.cancel()

    def _arm(self, until: float) -> None:
        self._alarm = self._loop.call_later(max(0.0, until - _clock.now()), self._ring, until)

    def _ring(self, until: float) -> None:
        later = settled(until, _clock.now())
        if later is not None:
            self._arm(later)
        else:
            self._silent()
            self.cancel()


class AioIo:
    """Time, calls and channels of one event loop."""

    def __init__(self, server: str) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._connections = Connections(
            lambda: grpc.aio.insecure_channel(server, options=CHANNEL_OPTIONS),
            lambda channel: self.spawn(channel.close()),
        )

    def now(self) -> float:
        """See `oncegate._clock`."""
        return _clock.now()

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        await asyncio.sleep(seconds)

    def latch(self) -> Latch:
        """Makes a latch."""
        return AioLatch()

    async def call(self, method: Method[Req, Res], request: Req, timeout: float) -> Res:
        """Makes one call."""
        connection = self._connections.for_call()
        try:
            response: Res = await connection.stub(method, "unary_unary")(request, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                self._connections.suspect(connection)
            raise _failure(error) from error
        finally:
            self._connections.done(connection)
        return response

    async def open(self, method: Method[Any, Res], request: Any, *, more: bool) -> Stream[Any, Res]:
        """Opens a stream with its first message."""
        connections = self._connections
        connection = connections.for_stream()
        if more:
            call = connection.stub(method, "stream_stream")()
        else:
            call = connection.stub(method, "unary_stream")(request)
        call.add_done_callback(lambda _: connections.done(connection))
        stream = AioStream(call, self._loop, lambda: connections.suspect(connection))
        if more:
            await stream.write(request)
        return stream

    def spawn(self, flow: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs a flow beside its caller."""
        task = self._loop.create_task(flow)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Ends the flows that run, and closes the channels."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for channel in self._connections.close():
            await channel.close()
