"""The state that the turns of a `Gate` share: its event loop. Made anew after a fork."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import TYPE_CHECKING

from oncegate import _errors as errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from oncegate._loop_thread import LoopThread
    from oncegate._options import Options

_ABANDONED: list[object] = []
"""Objects of the process that forked this one: gRPC must not clean them up here."""


class SyncRuntime:
    """The state of one gate in one process."""

    def __init__(self, options: Options) -> None:
        self.hooks = options.hooks
        self._access = options.access
        self._closed = False
        self._start()
        os.register_at_fork(
            before=_weakly(self._before_fork),
            after_in_parent=_weakly(self._after_fork),
            after_in_child=_weakly(self._forked),
        )
        atexit.register(_weakly(self.close))

    def _start(self) -> None:
        self._loop: LoopThread | None = None
        self._ended: LoopThread | None = None
        """The one without turns and channels, whose thread ends: a fork need not pause it."""
        self._lock = threading.RLock()

    def _before_fork(self) -> None:
        self._lock.acquire()  # no other thread begins to use gRPC
        if self._loop is not None:
            self._loop.pause()

    def _after_fork(self) -> None:
        if self._loop is not None:
            self._loop.resume()
        self._lock.release()

    def _forked(self) -> None:
        _ABANDONED.extend((self._loop, self._ended, self._lock))
        self._start()

    def loop(self) -> LoopThread:
        """The event loop of this process."""
        with self._lock:
            if self._closed:
                raise errors.Closed
            if self._loop is None:
                from oncegate._loop_thread import LoopThread

                self._loop = LoopThread(self._access)
            return self._loop

    def drain(self, seconds: float) -> None:
        """Grants no new turns, and waits for those that run."""
        with self._lock:
            self._closed = True
            loop = self._loop
        if loop is not None:
            loop.run(loop.io.drain(seconds))

    def close(self) -> None:
        """Ends the turns that run, and closes the channels."""
        with self._lock:
            self._closed = True
            loop = self._loop
        # Both ends raise in a hook and on Ctrl-C: then the next close() goes on.
        if loop is not None:
            loop.end()
            with self._lock:
                self._loop, self._ended = None, loop
        if self._ended is not None:
            self._ended.close()


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """A function that calls the method as long as its gate lives."""
    reference = weakref.WeakMethod(method)

    def call() -> None:
        if (bound := reference()) is not None:
            bound()

    return call
