"""What the turns of an `AsyncGate` share: its channels, by event loop."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from oncegate import _errors as errors

if TYPE_CHECKING:
    from oncegate._aio_io import AioIo
    from oncegate._options import Options


class AioRuntime:
    """The state of one gate."""

    def __init__(self, options: Options) -> None:
        self.hooks = options.hooks
        self.closed = False
        self.ios: dict[asyncio.AbstractEventLoop, AioIo] = {}
        self._server = options.server
        self._pid: int | None = None
        """The process that has used grpc.aio."""

    def io(self) -> AioIo:
        """The channels of the event loop that runs."""
        if self.closed:
            raise errors.Closed
        if self._pid not in (None, os.getpid()):
            raise errors.WrongProcess(
                "gRPC's asyncio channels do not survive a fork; fork before the gate is used, "
                "or start the child by spawn"
            )
        loop = asyncio.get_running_loop()
        io = self.ios.get(loop)
        if io is None:
            from oncegate._aio_io import AioIo

            self._pid = os.getpid()
            for other in [other for other in self.ios if other.is_closed()]:
                del self.ios[other]
            io = self.ios[loop] = AioIo(self._server)
        return io
