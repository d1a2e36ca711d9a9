"""The protocol's `Io` for blocking callers. Every method blocks instead of suspending.

A stream that is open costs two threads: one of gRPC's that sends, and the keeper that reads. One more
thread ends the streams that were silent for too long.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Coroutine
from queue import SimpleQueue
from typing import Any

import grpc

from oncegate import _clock
from oncegate._connections import Connections
from oncegate._io import Latch, Stream, run, settled
from oncegate._wire import (
    CHANNEL_OPTIONS,
    Failure,
    Method,
    Req,
    Res,
    read_failure,
)


LEAVING = 5.0
"""How long a fork waits for the threads of gRPC that its closed channels end."""


CLEANING = 0.05
"""What gRPC's core needs to clean up in the background. A fork that interrupts it may not return."""


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


class Door:
    """Counts the threads inside of gRPC: ``with``. Shut, it lets no other in."""

    def __init__(self) -> None:
        self.inside = 0
        self._shut = False
        self._changed = threading.Condition(threading.Lock())

    def __enter__(self) -> None:
        with self._changed:
            while self._shut:
                self._changed.wait()
            self.inside += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self.inside -= 1

    def shut(self) -> None:
        """Lets no other thread in."""
        with self._changed:
            self._shut = True

    def open(self) -> None:
        """Lets threads in again."""
        with self._changed:
            self._shut = False
            self._changed.notify_all()


class SyncStream:
    """One stream."""

    def __init__(
        self,
        call: Any,
        sent: SimpleQueue[Any],
        timekeeper: Timekeeper,
        door: Door,
        silent: Callable[[], None],
    ) -> None:
        self._silent = silent
        self._call = call
        self._door = door
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
            with self._door:
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
        now = _clock.now()
        if until <= now:
            later = settled(until, now)
            if later is None:
                self._silent()
                self.cancel()
                return
            until = later
        with self._lock:
            if self._deadline is not None:
                self._deadline = max(self._deadline, until)
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
        self._timekeeper = Timekeeper()
        self._door = Door()
        self._connections = Connections(
            lambda: grpc.insecure_channel(server, options=CHANNEL_OPTIONS),
            lambda channel: channel.close(),
        )

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
        with self._door:
            connection = self._connections.for_call()
            try:
                response: Res = connection.stub(method, "unary_unary")(request, timeout=timeout)
            except grpc.RpcError as error:
                failure = _failure(error)
                if failure.code == "DEADLINE_EXCEEDED":
                    self._connections.suspect(connection)
                raise failure from error
            except ValueError as error:
                raise Failure("UNAVAILABLE", "the channel was closed") from error
            finally:
                self._connections.done(connection)
        return response

    async def open(self, method: Method[Any, Res], request: Any, *, more: bool) -> Stream[Any, Res]:
        """Opens a stream with its first message."""
        connections = self._connections
        sent: SimpleQueue[Any] = SimpleQueue()
        if more:
            sent.put(request)
        with self._door:
            connection = connections.for_stream()
            try:
                if more:
                    call = connection.stub(method, "stream_stream")(iter(sent.get, None))
                else:
                    call = connection.stub(method, "unary_stream")(request)
            except ValueError as error:
                connections.done(connection)
                raise Failure("UNAVAILABLE", "the channel was closed") from error
            done = functools.partial(connections.done, connection)
            if not call.add_callback(done):
                done()
        silent = functools.partial(connections.suspect, connection)
        return SyncStream(call, sent, self._timekeeper, self._door, silent)

    def spawn(self, flow: Coroutine[Any, Any, Any]) -> None:
        """Runs a flow in a thread of its own."""
        threading.Thread(target=run, args=(flow,), name="oncegate-keeper", daemon=True).start()

    def close(self) -> bool:
        """Closes the channels, and returns whether there were any. Another call opens new ones."""
        channels = self._connections.close()
        for channel in channels:
            channel.close()
        return bool(channels)

    def pause(self) -> None:
        """Before a fork: no thread may be inside of gRPC then. Calls wait for `resume`.

        Turns and leases lose their streams, and are carried on after the fork.
        """
        self._door.shut()
        if self.close():
            until = _clock.now() + LEAVING
            while (self._door.inside or _threads_of_grpc()) and _clock.now() < until:
                time.sleep(0.001)
            time.sleep(CLEANING)

    def resume(self) -> None:
        """After the fork, in the parent."""
        self._door.open()


def _threads_of_grpc() -> bool:
    return any(
        "channel_spin" in thread.name or "consume_request_iterator" in thread.name
        for thread in threading.enumerate()
    )
