"""The protocol's `Io` for blocking callers. Every method blocks instead of suspending.

A stream that is open costs two threads: one of gRPC's that sends, and the keeper that reads. One more
thread ends the streams that were silent for too long.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any

import grpc

from oncegate import _clock
from oncegate._io import Latch, Stream, run
from oncegate._wire import (
    CHANNEL_OPTIONS,
    STREAMS_PER_CHANNEL,
    Failure,
    Method,
    Req,
    Res,
    read_failure,
)


def _failure(error: Any) -> Failure:
    trailers = [(name, value) for name, value in error.trailing_metadata() or ()]
    failure = read_failure(error.code().name, error.details(), trailers)
    failure.__cause__ = error
    return failure


class SyncLatch:
    """An event that is set once."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Releases all that wait."""
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        """Returns whether it was set in this time."""
        return self._event.wait(seconds)


class Timekeeper:
    """Cancels streams whose deadline has passed, in one thread for all of them.

    A deadline moves with every message. So a stream has one entry here at most, which is read again
    when its time comes.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, SyncStream]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._started = False

    def watch(self, at: float, stream: SyncStream) -> None:
        """Looks at the stream at this time."""
        with self._changed:
            heapq.heappush(self._entries, (at, next(self._numbers), stream))
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name="oncegate-time", daemon=True).start()
            if self._entries[0][2] is stream:
                self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._entries or self._entries[0][0] > _clock.now():
                    at = self._entries[0][0] if self._entries else None
                    self._changed.wait(None if at is None else at - _clock.now())
                _, _, stream = heapq.heappop(self._entries)
            stream.look()


class SyncStream:
    """One stream."""

    def __init__(self, call: Any, sent: SimpleQueue[Any], timekeeper: Timekeeper) -> None:
        self._call = call
        self._sent = sent
        self._timekeeper = timekeeper
        self._deadline: float | None = None
        self._watched_at = float("inf")
        self._lock = threading.Lock()

    async def read(self, until: float) -> Any:
        """The next message; see `Stream`."""
        with self._lock:
            self._deadline = until
            watch = until < self._watched_at
            if watch:
                self._watched_at = until
        if watch:
            self._timekeeper.watch(until, self)
        try:
            return next(self._call)
        except StopIteration:
            raise Failure("UNAVAILABLE", "the server ended the stream") from None
        except grpc.RpcError as error:
            raise _failure(error) from error
        finally:
            self._deadline = None

    def look(self) -> None:
        """Called at the time of an entry of the timekeeper."""
        with self._lock:
            until = self._deadline
            self._watched_at = float("inf")
        if until is None:
            return
        if until <= _clock.now():
            self.cancel()
            return
        with self._lock:
            self._watched_at = until
        self._timekeeper.watch(until, self)

    async def write(self, message: Any) -> None:
        """Sends a message."""
        self._sent.put(message)

    def cancel(self) -> None:
        """Ends the stream."""
        self._call.cancel()
        self._sent.put(None)


class SyncIo:
    """Time, calls and channels of one process."""

    def __init__(self, server: str) -> None:
        self._server = server
        self._lock = threading.Lock()
        self._timekeeper = Timekeeper()
        self._channels: list[grpc.Channel] = []
        self._live: dict[int, int] = {}
        self._calls: grpc.Channel | None = None
        self._methods: dict[tuple[int, str], Any] = {}

    def now(self) -> float:
        """See `oncegate._clock`."""
        return _clock.now()

    async def sleep(self, seconds: float) -> None:
        """Waits."""
        time.sleep(seconds)

    def latch(self) -> Latch:
        """Makes a latch."""
        return SyncLatch()

    async def call(self, method: Method[Req, Res], request: Req, timeout: float) -> Res:
        """Makes one call."""
        with self._lock:
            if self._calls is None:
                self._calls = self._channel()
            stub = self._stub(self._calls, method, "unary_unary")
        try:
            response: Res = stub(request, timeout=timeout)
        except grpc.RpcError as error:
            raise _failure(error) from error
        except ValueError as error:  # the channel was closed
            raise Failure("UNAVAILABLE", str(error)) from error
        return response

    async def open(self, method: Method[Any, Res], request: Any, *, more: bool) -> Stream[Any, Res]:
        """Opens a stream with its first message."""
        sent: SimpleQueue[Any] = SimpleQueue()
        with self._lock:
            channel = self._stream_channel()
            stub = self._stub(channel, method, "stream_stream" if more else "unary_stream")
            self._live[id(channel)] += 1
        if more:
            sent.put(request)
        try:
            call = stub(iter(sent.get, None) if more else request)
        except ValueError as error:  # the channel was closed
            raise Failure("UNAVAILABLE", str(error)) from error
        done = self._done(id(channel))
        if not call.add_callback(done):
            done()
        return SyncStream(call, sent, self._timekeeper)

    def spawn(self, flow: Coroutine[Any, Any, Any]) -> None:
        """Runs a flow in a thread of its own."""
        threading.Thread(target=run, args=(flow,), name="oncegate-keeper", daemon=True).start()

    def close(self) -> None:
        """Closes the channels."""
        with self._lock:
            channels = self._channels + ([self._calls] if self._calls is not None else [])
            self._channels, self._calls = [], None
            self._methods.clear()
        for channel in channels:
            channel.close()

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self._server, options=CHANNEL_OPTIONS)

    def _stub(self, channel: grpc.Channel, method: Method[Any, Any], kind: str) -> Any:
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

    def _stream_channel(self) -> grpc.Channel:
        for channel in self._channels:
            if self._live[id(channel)] < STREAMS_PER_CHANNEL:
                return channel
        channel = self._channel()
        self._channels.append(channel)
        self._live[id(channel)] = 0
        return channel

    def _done(self, key: int) -> Callable[[], None]:
        def done() -> None:
            with self._lock:
                self._live[key] -= 1

        return done
