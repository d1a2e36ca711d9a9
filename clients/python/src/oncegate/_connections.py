"""The connections of one process or event loop: streams apart from calls, and few enough on each."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from oncegate._wire import STREAMS_PER_CHANNEL, Method

if TYPE_CHECKING:
    from collections.abc import Callable


class Connection:
    """One channel, with the number of its calls and streams."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.live = 0
        self._stubs: dict[str, Any] = {}

    def stub(self, method: Method[Any, Any], kind: str) -> Any:
        """A callable for a method; `kind` as in ``grpc.Channel``."""
        stub = self._stubs.get(method.path)
        if stub is None:
            stub = self._stubs[method.path] = getattr(self.channel, kind)(
                method.path,
                request_serializer=method.request.SerializeToString,
                response_deserializer=method.response.FromString,
            )
        return stub


class Connections:
    """Opens channels on first use. Its methods may be called by several threads."""

    def __init__(self, make: Callable[[], Any], close: Callable[[Any], object]) -> None:
        self._make = make
        self._close = close
        self._lock = threading.Lock()
        self._all: list[Connection] = []
        self._streams: list[Connection] = []
        self._calls: Connection | None = None

    def for_stream(self) -> Connection:
        """One that has room for another stream, which `done` takes off."""
        with self._lock:
            for connection in self._streams:
                if connection.live < STREAMS_PER_CHANNEL:
                    break
            else:
                connection = self._open()
                self._streams.append(connection)
            connection.live += 1
            return connection

    def for_call(self) -> Connection:
        """The one for calls, which must not wait behind streams. `done` takes the call off."""
        with self._lock:
            if self._calls is None:
                self._calls = self._open()
            self._calls.live += 1
            return self._calls

    def done(self, connection: Connection) -> None:
        """A stream or call has ended."""
        with self._lock:
            connection.live -= 1
            unused = connection.live == 0 and not self._is_used(connection)
            if unused and connection in self._all:
                self._all.remove(connection)
                self._close(connection.channel)

    def suspect(self, connection: Connection) -> None:
        """It was silent: it may be dead without a notice. Another one is opened for what comes."""
        with self._lock:
            if connection is self._calls:
                self._calls = None
            elif connection in self._streams:
                self._streams.remove(connection)

    def replace(self) -> None:
        """Others are opened for what comes. Those that are in use close after their last call."""
        with self._lock:
            self._streams, self._calls = [], None
            unused = [connection for connection in self._all if connection.live == 0]
            for connection in unused:
                self._all.remove(connection)
                self._close(connection.channel)

    def close(self) -> list[Any]:
        """Forgets all connections, and returns their channels."""
        with self._lock:
            channels = [connection.channel for connection in self._all]
            self._all, self._streams, self._calls = [], [], None
        return channels

    def _open(self) -> Connection:
        connection = Connection(self._make())
        self._all.append(connection)
        return connection

    def _is_used(self, connection: Connection) -> bool:
        return connection is self._calls or connection in self._streams
