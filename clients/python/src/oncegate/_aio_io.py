"""The protocol's `Io` over grpc.aio. One for each event loop: its channels belong to the loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import grpc
import grpc.aio

from oncegate import _clock
from oncegate._io import Latch, Stream
from oncegate._wire import (
    CHANNEL_OPTIONS,
    STREAMS_PER_CHANNEL,
    Failure,
    Method,
    Req,
    Res,
    read_failure,
)

LATE = 0.2
"""Seconds by which a timer is late if the event loop was blocked, or the process stopped."""


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

    def __init__(self, call: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._call = call
        self._loop = loop
        self._cancelled = False

    async def read(self, until: float) -> Any:
        """The next message; see `Stream`."""
        task = asyncio.current_task()
        cancelling = 0 if task is None else task.cancelling()
        alarm = self._alarm(until)
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
            alarm.cancel()
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

    def _alarm(self, until: float) -> asyncio.TimerHandle:
        return self._loop.call_later(max(0.0, until - _clock.now()), self.cancel)


class AioIo:
    """Time, calls and channels of one event loop."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._channels: list[grpc.aio.Channel] = []
        self._live: dict[int, int] = {}
        self._calls: grpc.aio.Channel | None = None
        self._methods: dict[tuple[int, str], Any] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

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
        if self._calls is None:
            self._calls = self._channel()
        try:
            response: Res = await self._stub(self._calls, method, "unary_unary")(
                request, timeout=timeout
            )
        except grpc.aio.AioRpcError as error:
            raise _failure(error) from error
        return response

    async def open(self, method: Method[Any, Res], request: Any, *, more: bool) -> Stream[Any, Res]:
        """Opens a stream with its first message."""
        channel = self._stream_channel()
        if not more:
            call = self._stub(channel, method, "unary_stream")(request)
            return AioStream(self._counted(channel, call), self._loop)
        call = self._stub(channel, method, "stream_stream")()
        stream = AioStream(self._counted(channel, call), self._loop)
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
        if self._calls is not None:
            self._channels.append(self._calls)
        for channel in self._channels:
            await channel.close()
        self._channels, self._calls = [], None
        self._methods.clear()

    def _channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(self._server, options=CHANNEL_OPTIONS)

    def _stub(self, channel: grpc.aio.Channel, method: Method[Any, Any], kind: str) -> Any:
        key = (id(channel), method.path)
        stub = self._methods.get(key)
        if stub is None:
            make: Callable[..., Any] = getattr(channel, kind)
            stub = self._methods[key] = make(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return stub

    def _stream_channel(self) -> grpc.aio.Channel:
        for channel in self._channels:
            if self._live[id(channel)] < STREAMS_PER_CHANNEL:
                return channel
        channel = self._channel()
        self._channels.append(channel)
        self._live[id(channel)] = 0
        return channel

    def _counted(self, channel: grpc.aio.Channel, call: Any) -> Any:
        key = id(channel)
        self._live[key] += 1

        def done(_: Any) -> None:
            self._live[key] -= 1

        call.add_done_callback(done)
        return call
