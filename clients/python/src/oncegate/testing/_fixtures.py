"""The fixtures for pytest."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

import pytest

from oncegate import AsyncGate, Gate
from oncegate.testing._server import Server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from pytest_asyncio import fixture as _async_fixture
else:
    try:
        from pytest_asyncio import fixture as _async_fixture
    except ImportError:  # anyio's plugin runs asynchronous fixtures of pytest itself
        _async_fixture = pytest.fixture


_ENVIRONMENT = MappingProxyType[str, str]({})
"""Not that of the process, whose settings are those of another server."""


class ServedGate(Gate):
    """A gate with a server of its own."""

    _environment = _ENVIRONMENT
    server: Server


class AsyncServedGate(AsyncGate):
    """A gate with a server of its own."""

    _environment = _ENVIRONMENT
    server: Server


@_async_fixture
async def gate() -> AsyncIterator[AsyncServedGate]:
    """An `AsyncGate` with a server of its own, as ``gate.server``."""
    with Server() as server:
        gate = AsyncServedGate(server.address)
        gate.server = server
        async with gate:
            yield gate


@pytest.fixture
def sync_gate() -> Iterator[ServedGate]:
    """A `Gate` with a server of its own, as ``sync_gate.server``."""
    with Server() as server:
        gate = ServedGate(server.address)
        gate.server = server
        with gate:
            yield gate
