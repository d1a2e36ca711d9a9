"""The state that the turns of an `AsyncGate` share: its channels, by event loop."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from oncegate import _errors as errors

if TYPE_CHECKING:
    from oncegate._aio_io import AioIo
    from oncegate._options import Options

CLOSING = 5.0
"""How long the other event loops may take to close theirs. One that has stopped answers nothing."""


class AioRuntime:
    """The state of one gate."""

    def __init__(self, options: Options) -> None:
        self.hooks = options.hooks
        self._closed = False
        self._ios: dict[asyncio.AbstractEventLoop, AioIo] = {}
        self._access = options.access
        self._pid: int | None = None
        """The process that has used grpc.aio."""

    def io(self) -> AioIo:
        """The channels of the event loop that runs."""
        if self._closed:
            raise errors.Closed
        if self._pid not in (None, os.getpid()):
            raise errors.WrongProcess(
                "gRPC's asyncio channels do not survive a fork; fork before the gate is used, "
                "or start the child by spawn"
            )
        loop = asyncio.get_running_loop()
        io = self._ios.get(loop)
        if io is None:
            from oncegate._aio_io import AioIo

            self._pid = os.getpid()
            for other in list(self._ios):  # as other threads add theirs
                if other.is_closed():
                    self._ios.pop(other, None)
            io = self._ios[loop] = AioIo(self._access)
            if self._closed:  # by another thread, whose drain may have missed this one
                self._ios.pop(loop, None)
                raise errors.Closed
        return io

    async def drain(self, seconds: float) -> None:
        """Closes it in all event loops, after so many seconds for the turns that run."""
        self._closed = True
        drained = [io.run_in_loop(_drained(io, seconds)) for io in list(self._ios.values())]
        running = [future for future in drained if future is not None]
        if running:
            await asyncio.wait(running, timeout=seconds + CLOSING)

    async def close(self) -> None:
        """Closes it in the event loop that runs."""
        self._closed = True
        io = self._ios.pop(asyncio.get_running_loop(), None)
        if io is not None:
            await asyncio.shield(io.close())


async def _drained(io: AioIo, seconds: float) -> None:
    try:
        await io.drain(seconds)
    finally:  # asyncio.run cancels it if its event loop ends meanwhile
        await asyncio.shield(io.close())
