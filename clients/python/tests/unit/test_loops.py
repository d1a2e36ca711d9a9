"""An `AsyncGate` in several event loops; against a real server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from oncegate import AsyncGate, Delivery, TurnLost
from oncegate.testing import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


async def hold(gate: AsyncGate, name: str, entered: threading.Event) -> None:
    async with gate.turn(Delivery("T1", name, session=name)):
        entered.set()
        await asyncio.sleep(60)


async def test_a_drain_ends_turns_although_another_loop_has_been_closed(server: Server) -> None:
    gate = AsyncGate(server.address)
    entered = threading.Event()
    task = asyncio.create_task(hold(gate, "here", entered))
    await asyncio.to_thread(entered.wait, 30)
    await asyncio.to_thread(asyncio.run, gate.mark(Delivery("T1", "there")))
    await gate.drain(0)
    with pytest.raises(TurnLost):
        await task
    assert not server.turns()


async def test_a_drain_ends_the_turns_of_other_loops(server: Server) -> None:
    gate = AsyncGate(server.address)
    entered = threading.Event()
    with ThreadPoolExecutor() as threads:
        task = threads.submit(asyncio.run, hold(gate, "there", entered))
        await asyncio.to_thread(entered.wait, 30)
        await gate.drain(0)
        assert isinstance(await asyncio.to_thread(task.exception, 30), TurnLost)
    assert not server.turns()


async def test_loops_come_and_go_while_a_gate_looks_at_them() -> None:
    class Closed:
        """Another thread forgets it too."""

        def is_closed(self) -> bool:
            ios.pop(self, None)
            return True

    gate = AsyncGate()
    ios: dict[Any, Any] = gate._runtime._ios
    ios.update({Closed(): None, Closed(): None})
    assert gate._runtime.io() in ios.values()
    assert len(ios) == 1
    await gate.close()
