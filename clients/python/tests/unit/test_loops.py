"""An `AsyncGate` in several event loops; against a real server."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from oncegate import AsyncGate, Delivery, Gate, TurnLost
from oncegate._access import Access
from oncegate._aio_io import AioIo
from oncegate._aio_scopes import AsyncTurn
from oncegate._errors import Closed
from oncegate.testing import Server

EVENT = Delivery("T1", "event", session="session")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


async def hold(gate: AsyncGate, name: str, entered: threading.Event) -> None:
    async with gate.turn(Delivery("T1", name, session=name)):
        entered.set()
        await asyncio.sleep(60)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():  # noqa: ASYNC110 - no event reports it
            await asyncio.sleep(0.01)


def test_the_end_of_an_event_loop_fails_its_turns_after_their_cleanup(server: Server) -> None:
    gate = AsyncGate(server.address)
    tasks: list[asyncio.Task[None]] = []
    cleaned_up = False

    async def handler() -> None:
        nonlocal cleaned_up
        async with gate.turn(EVENT):
            entered.set()
            try:
                await asyncio.sleep(60)
            finally:
                await gate.seen(EVENT)
                cleaned_up = True

    async def main() -> None:
        tasks.append(asyncio.create_task(handler()))
        await asyncio.to_thread(entered.wait, 30)

    entered = threading.Event()
    asyncio.run(main())
    assert tasks[0].cancelled()
    assert cleaned_up
    with Gate(server.address) as other, other.turn(EVENT) as turn:
        assert turn.attempt == 2


async def test_a_keeper_that_was_cancelled_carries_the_turn_on(server: Server) -> None:
    async with AsyncGate(server.address, ttl=2) as gate:
        async with gate.turn(EVENT) as turn:
            await gate.seen(EVENT)  # meanwhile its keeper reads the stream
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await until(lambda: turn.kept_by == "renew")
            end = turn._flow.trusted_end
            await until(lambda: turn._flow.trusted_end > end)
            turn.check()


@pytest.mark.parametrize("seconds", [0, 60])
def test_a_scope_that_is_never_left_ends_with_its_event_loop(
    server: Server, caplog: pytest.LogCaptureFixture, seconds: float
) -> None:
    gate = AsyncGate(server.address)
    turns: list[AsyncTurn] = []

    async def enter() -> None:
        turns.append(await gate.turn(EVENT).__aenter__())
        await gate.seen(EVENT)  # meanwhile its keeper reads the stream
        entered.set()
        await asyncio.sleep(seconds)

    async def main() -> None:
        task = asyncio.create_task(enter())
        await asyncio.to_thread(entered.wait, 30)
        if seconds == 0:
            await task

    entered = threading.Event()
    asyncio.run(main())
    gc.collect()
    assert turns[0].lost.reason == "CLOSED"
    assert "pending" not in caplog.text


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


async def test_a_drain_closes_the_channels_of_a_loop_that_ends_meanwhile(server: Server) -> None:
    gate = AsyncGate(server.address)
    entered, leave = threading.Event(), threading.Event()

    async def there() -> None:
        handler = asyncio.create_task(hold(gate, "there", entered))
        await asyncio.to_thread(leave.wait, 30)
        assert not handler.done()

    with ThreadPoolExecutor() as threads:
        task = threads.submit(asyncio.run, there())
        await asyncio.to_thread(entered.wait, 30)
        [io] = gate._runtime._ios.values()
        draining = asyncio.create_task(gate.drain(60))
        await until(lambda: io._refusing)
        leave.set()
        await draining
        await asyncio.to_thread(task.result, 30)
    assert io._closed.is_set()
    assert not io._connections.close()


async def test_a_loop_that_comes_while_its_gate_is_drained_gets_no_channels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Late(AioIo):
        """Is made when another thread has looked at the event loops."""

        def __init__(self, access: Access) -> None:
            super().__init__(access)
            gate._runtime._closed = True

    monkeypatch.setattr("oncegate._aio_io.AioIo", Late)
    gate = AsyncGate()
    with pytest.raises(Closed):
        gate._runtime.io()
    assert not gate._runtime._ios


async def test_loops_come_and_go_while_a_gate_looks_at_them() -> None:
    class Gone:
        """Another thread forgets it too."""

        def is_closed(self) -> bool:
            ios.pop(self, None)
            return True

    gate = AsyncGate()
    ios: dict[Any, Any] = gate._runtime._ios
    ios.update({Gone(): None, Gone(): None})
    assert gate._runtime.io() in ios.values()
    assert len(ios) == 1
    await gate.close()
