"""The event loop of a `Gate`: one daemon thread that runs the flows of all its turns and leases.

gRPC's blocking stubs would cost two threads for each open stream, one of which wakes up ten times a
second. And a thread that is inside of gRPC's core at a fork may hang or abort the child: here all of
them can be sent away before.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, TypeVar

from oncegate import _errors as errors
from oncegate._aio_io import CLOSING, AioIo

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from oncegate._access import Access

T = TypeVar("T")
LOG = logging.getLogger("oncegate")

LEAVING = 5.0
"""How long a fork waits for calls that run and for gRPC's thread."""

CLEANING = 0.05
"""Time for gRPC's core to clean up in the background. A fork that interrupts it may not return."""


def _without_calls(flow: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that needs no call, such as the exit of a scope whose turn is over."""
    try:
        flow.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    flow.close()
    raise errors.Closed


class LoopThread:
    """Runs coroutines for blocking callers."""

    def __init__(self, access: Access) -> None:
        self._lock = threading.Lock()
        self._is_closed = False
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="oncegate", daemon=True)
        self._thread.start()
        self.io = self.run(self._make(access))

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()
            self._ended.set()

    async def _serve(self) -> None:
        await self._ending.wait()
        await self._leave()

    async def _make(self, access: Access) -> AioIo:
        return AioIo(access)

    def run(self, flow: Coroutine[Any, Any, T], *, to_its_end: bool = False) -> T:
        """Runs a coroutine, and waits for it. Ctrl-C cancels it, unless it is to run `to_its_end`."""
        if threading.current_thread() is self._thread:
            flow.close()
            raise RuntimeError("a hook must not call its gate; let another thread do it")
        with self._lock:
            if self._is_closed:
                return _without_calls(flow)
            future = asyncio.run_coroutine_threadsafe(flow, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise errors.Closed from None
        except BaseException:
            if not to_its_end:
                future.cancel()
            raise

    def end(self) -> None:
        """Ends the turns and leases, and closes the channels."""
        self.run(self.io.close(), to_its_end=True)

    def close(self) -> None:
        """Ends the thread, after `end`. If it is interrupted, the next call goes on."""
        with self._lock:
            self._is_closed = True
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._ending.set)
        self._ended.wait()  # an interrupted join() marks a running thread as ended
        self._thread.join()

    async def _leave(self) -> None:
        """Flows that still run have no channel, and end by themselves."""
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        if waiting:
            await asyncio.wait(waiting, timeout=CLOSING)
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    def pause(self) -> None:
        """Before a fork: closes the channels, so that no thread is inside of gRPC.

        Calls wait for `resume`; turns and leases are carried on then.
        """
        if self.run(self.io.pause()):
            until = time.monotonic() + LEAVING
            while _grpc_runs() and time.monotonic() < until:
                self.run(_collect())
            if _grpc_runs():
                LOG.warning(
                    "the process forks while grpc.aio is in use elsewhere; gRPC may hang in the child"
                )
            time.sleep(CLEANING)

    def resume(self) -> None:
        """After the fork, in the parent."""
        self._loop.call_soon_threadsafe(self.io.resume)


async def _collect() -> None:
    """grpc.aio ends its thread with its last object. In the loop, to which that thread belongs."""
    gc.collect()
    await asyncio.sleep(0.002)


def _grpc_runs() -> bool:
    return any("_poll_wrapper" in thread.name for thread in threading.enumerate())
