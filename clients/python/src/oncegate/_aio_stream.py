"""One stream of grpc.aio: its messages, errors and cancellation."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc.aio

from oncegate import _clock
from oncegate._io import postponed_until
from oncegate._wire import Failure, read_failure

if TYPE_CHECKING:
    from collections.abc import Callable

    from oncegate._access import Credentials


def failure_of(error: grpc.aio.AioRpcError, credentials: Credentials) -> Failure:
    """What the error of a call with these credentials means."""
    trailers = [(name, value) for name, value in error.trailing_metadata() or ()]
    failure = read_failure(error.code().name, error.details(), trailers)
    failure = credentials.judge(failure, _clock.now())
    # Its frames would keep the call alive, and with it gRPC's thread.
    failure.__cause__ = error.with_traceback(None)
    return failure


def cancellations() -> int:
    """How often the running task was cancelled: if no more often than before, a call was."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


class _Alarm:
    """Rings at a time that counts, see `postponed_until`, unless its block is left before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, until: float, ring: Callable[[], None]) -> None:
        self._loop = loop
        self._until = until
        self._ring = ring

    def __enter__(self) -> None:
        self._arm(self._until)

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()

    def _arm(self, until: float) -> None:
        self._timer = self._loop.call_later(max(0.0, until - _clock.now()), self._due, until)

    def _due(self, until: float) -> None:
        later = postponed_until(until, _clock.now())
        if later is not None:
            self._arm(later)
        else:
            self._ring()


class AioStream:
    """One stream."""

    def __init__(
        self,
        call: Any,
        first: Any,
        loop: asyncio.AbstractEventLoop,
        silent: Callable[[], None],
        credentials: Credentials,
    ) -> None:
        self._call: Any = call
        self._first = first
        """The first message, until it is sent."""
        self._loop = loop
        self._silent = silent
        self._credentials = credentials
        self._cancelled = False
        self._writing: asyncio.Timeout | None = None

    async def read(self, until: float) -> Any:
        """The next message; see `Stream`."""
        if self._first is not None:
            first, self._first = self._first, None
            await self.write(first, until)
        call = self._open_call()
        before = cancellations()
        try:
            with _Alarm(self._loop, until, self._time_out):
                message = await call.read()
        except grpc.aio.AioRpcError as error:
            self._call = None
            raise failure_of(error, self._credentials) from error
        except asyncio.CancelledError:
            # Either the stream was cancelled, or the task that reads it.
            if self._cancelled and cancellations() == before:
                raise Failure("UNAVAILABLE", "the server did not answer in time") from None
            self.cancel()  # as gRPC has done with its call
            raise
        if message is grpc.aio.EOF:
            self._call = None
            raise Failure("UNAVAILABLE", "the server ended the stream")
        return message

    async def write(self, message: Any, until: float) -> None:
        """Sends a message; see `Stream`."""
        call = self._open_call()
        before = cancellations()
        try:
            # Not by an alarm: gRPC leaves a write waiting if the call is cancelled while it connects.
            async with asyncio.timeout(max(0.0, until - _clock.now())) as self._writing:
                # Not by `call.write`: if the server has ended the call, it replaces the server's status
                # by INTERNAL. The next read has the status.
                await call.wait_for_connection()
                with contextlib.suppress(grpc.aio.InternalError):
                    await call._cython_call.send_serialized_message(message.SerializeToString())
        except TimeoutError:
            if self._cancelled:
                raise Failure("UNAVAILABLE", "the stream has ended") from None
            self._time_out()
            raise Failure("UNAVAILABLE", "the server did not answer in time") from None
        except grpc.aio.AioRpcError as error:
            raise failure_of(error, self._credentials) from error
        except asyncio.CancelledError:
            if self._cancelled and cancellations() == before:
                raise Failure("UNAVAILABLE", "the stream has ended") from None
            raise
        finally:
            self._writing = None

    def cancel(self) -> None:
        """Ends the stream."""
        self._cancelled = True
        if self._writing is not None and not self._writing.expired():
            self._writing.reschedule(self._loop.time())
        if self._call is not None:
            self._call.cancel()
            self._call = None  # gRPC's thread runs as long as there is a call

    def _open_call(self) -> Any:
        if self._call is None:
            raise Failure("UNAVAILABLE", "the stream has ended")
        return self._call

    def _time_out(self) -> None:
        self._silent()
        self.cancel()
