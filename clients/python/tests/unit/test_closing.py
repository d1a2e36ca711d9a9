"""Closing and draining a gate, against a real server: what begins, what runs, and what ends then."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from oncegate import AsyncGate, Delivery, Gate, Hooks, OutcomeUnknown, TurnLost
from oncegate._aio_stream import AioStream
from oncegate._errors import Closed
from oncegate._lease_flow import LeaseFlow
from oncegate._loop_thread import LoopThread
from oncegate.testing import Server


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


class Queued(Hooks):
    """Reports that so many turns wait in a queue."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.all = threading.Event()

    def on_queued(self, position: int) -> None:
        self._number -= 1
        if self._number == 0:
            self.all.set()


def event(name: str, session: str | None = None) -> Delivery:
    return Delivery("T1", name, session=session)


async def test_what_waits_in_the_queue_of_a_closed_gate_never_runs(server: Server) -> None:
    hooks = Queued(10)
    gate = AsyncGate(server.address, hooks=hooks)
    entered = asyncio.Event()
    running = 0

    async def first(number: int) -> None:
        nonlocal running
        async with gate.turn(event(f"first-{number}", f"queue-{number}")):
            running += 1
            if running == 10:
                entered.set()
            await asyncio.sleep(60)

    async def second(number: int) -> None:
        async with gate.turn(event(f"second-{number}", f"queue-{number}"), wait=60):
            raise AssertionError("the body ran")

    holders = [asyncio.create_task(first(number)) for number in range(10)]
    await entered.wait()
    waiters = [asyncio.create_task(second(number)) for number in range(10)]
    await asyncio.to_thread(hooks.all.wait, 30)
    await gate.close()
    ends = await asyncio.gather(*holders, *waiters, return_exceptions=True)
    assert [type(end) for end in ends] == [TurnLost] * 10 + [Closed] * 10


def test_what_waits_in_the_queue_of_a_closed_blocking_gate_never_runs(server: Server) -> None:
    hooks = Queued(1)
    gate = Gate(server.address, hooks=hooks)
    entered = threading.Event()

    def first() -> None:
        with gate.turn(event("first", "queue")) as turn:
            entered.set()
            turn.lost.wait(60)

    def second() -> None:
        with gate.turn(event("second", "queue"), wait=60):
            raise AssertionError("the body ran")

    with ThreadPoolExecutor() as threads:
        holder = threads.submit(first)
        assert entered.wait(30)
        waiter = threads.submit(second)
        assert hooks.all.wait(30)
        gate.close()
        assert isinstance(holder.exception(30), TurnLost)
        assert isinstance(waiter.exception(30), Closed)


async def test_a_drained_gate_lets_turns_end_and_grants_none(server: Server) -> None:
    hooks = Queued(1)
    gate = AsyncGate(server.address, hooks=hooks)
    go_on = asyncio.Event()
    entered = asyncio.Event()

    async def first() -> None:
        async with gate.turn(event("first", "queue")):
            entered.set()
            await go_on.wait()

    async def second() -> None:
        async with gate.turn(event("second", "queue"), wait=60):
            raise AssertionError("the body ran")

    holder = asyncio.create_task(first())
    await entered.wait()
    waiter = asyncio.create_task(second())
    await asyncio.to_thread(hooks.all.wait, 30)
    draining = asyncio.create_task(gate.drain(60))
    with pytest.raises(Closed):
        await waiter
    go_on.set()
    await draining
    await holder
    async with AsyncGate(server.address) as other:
        assert (await other.seen(event("first"))).outcome == "SUCCEEDED"


def test_a_drained_blocking_gate_grants_no_turns(server: Server) -> None:
    hooks = Queued(1)
    gate = Gate(server.address, hooks=hooks)

    def second() -> None:
        with gate.turn(event("second", "queue"), wait=60):
            raise AssertionError("the body ran")

    with ThreadPoolExecutor() as threads, gate.turn(event("first", "queue")):
        waiter = threads.submit(second)
        assert hooks.all.wait(30)
        threads.submit(gate.drain, 60)
        assert isinstance(waiter.exception(30), Closed)
    with Gate(server.address) as other:
        assert other.seen(event("first")).outcome == "SUCCEEDED"


async def test_a_close_during_the_end_leaves_the_outcome_unknown(server: Server) -> None:
    gate = AsyncGate(server.address)
    ending = asyncio.Event()

    async def handler() -> None:
        async with gate.turn(event("muted")) as turn:
            turn.result = 1
            server.mute()
            ending.set()

    task = asyncio.create_task(handler())
    await ending.wait()
    await asyncio.sleep(0)
    await gate.close()
    with pytest.raises(OutcomeUnknown) as unknown:
        await task
    assert unknown.value.value == 1


def test_a_close_during_the_end_of_a_blocking_turn_leaves_the_outcome_unknown(server: Server) -> None:
    gate = Gate(server.address)
    ending = threading.Event()

    def handler() -> None:
        with gate.turn(event("muted")) as turn:
            turn.result = 1
            server.mute()
            ending.set()

    with ThreadPoolExecutor() as threads:
        task = threads.submit(handler)
        assert ending.wait(30)
        gate.close()
        unknown = task.exception(30)
    assert isinstance(unknown, OutcomeUnknown)
    assert unknown.value == 1


async def test_a_body_may_close_its_gate(server: Server) -> None:
    gate = AsyncGate(server.address)
    with pytest.raises(TurnLost) as lost:
        async with gate.turn(event("self", "self")):
            await gate.close()
    assert lost.value.reason == "CLOSED"
    async with AsyncGate(server.address) as other, other.turn(event("self", "self")) as turn:
        assert turn.attempt == 2


def test_a_hook_that_calls_its_blocking_gate_does_not_hang(server: Server) -> None:
    class Calls(Hooks):
        def on_begin(self, delivery: Delivery) -> None:
            try:
                gate.seen(delivery)
            except RuntimeError as error:
                raised.append(str(error))

    raised: list[str] = []
    gate = Gate(server.address, hooks=Calls())
    with gate.turn(event("hook")):
        pass
    gate.close()
    assert "hook" in raised[0]


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections, and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


async def connecting(gate: AsyncGate) -> AioStream:
    """The stream whose request waits for the connection."""
    while True:
        for io in gate._runtime._ios.values():
            for stream in io._open:
                if stream._writing is not None:
                    return cast("AioStream", stream)
        await asyncio.sleep(0)


async def begin(gate: AsyncGate) -> None:
    async with gate.turn(event("begins", "begins"), wait=60, patience=600):
        raise AssertionError("the body ran")


@pytest.mark.parametrize("close", [AsyncGate.close, lambda gate: gate.drain(0)])
async def test_a_begin_that_connects_ends_with_its_gate(
    silent: str, close: Callable[[AsyncGate], Awaitable[None]]
) -> None:
    gate = AsyncGate(silent)
    task = asyncio.create_task(begin(gate))
    await connecting(gate)
    async with asyncio.timeout(30):
        await close(gate)
        with pytest.raises(Closed):
            await task


async def test_a_cancelled_begin_that_connects_leaves_no_call(server: Server) -> None:
    server.mute()
    gate = AsyncGate(server.address)
    task = asyncio.create_task(begin(gate))
    call = (await connecting(gate))._call
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert call.cancelled()
    server.unmute()
    await gate.close()


async def test_a_lease_that_is_confirmed_while_its_gate_closes_is_free_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    renewed, go_on = asyncio.Event(), asyncio.Event()
    renew = LeaseFlow._renew

    async def slow(flow: LeaseFlow, until: float) -> None:
        await renew(flow, until)
        renewed.set()
        await go_on.wait()

    async def hold() -> None:
        async with gate.lease("T1", "late"):
            raise AssertionError("the body ran")

    gate = AsyncGate(server.address)
    with monkeypatch.context() as patch:
        patch.setattr(LeaseFlow, "_renew", slow)
        task = asyncio.create_task(hold())
        await renewed.wait()
        closing = asyncio.create_task(gate.close())
        await asyncio.sleep(0.1)  # close() waits for it
        assert not closing.done()
        go_on.set()
        await closing
        with pytest.raises(Closed):
            await task
    async with AsyncGate(server.address) as other, other.lease("T1", "late", wait=0) as lease:
        assert lease.held


def test_a_scope_that_is_left_while_the_thread_ends_keeps_its_value(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving, left = threading.Event(), threading.Event()
    leave = LoopThread._leave

    async def slow(loop: LoopThread) -> None:
        leaving.set()
        await asyncio.to_thread(left.wait, 30)
        await leave(loop)

    def handler() -> None:
        try:
            with gate.turn(event("late")) as turn:
                turn.result = 5
                entered.set()
                assert leaving.wait(30)
        finally:
            left.set()

    monkeypatch.setattr(LoopThread, "_leave", slow)
    gate = Gate(server.address)
    entered = threading.Event()
    with ThreadPoolExecutor() as threads:
        task = threads.submit(handler)
        assert entered.wait(30)
        gate.close()
        lost = task.exception(30)
    assert isinstance(lost, TurnLost)
    assert (lost.reason, lost.value) == ("CLOSED", 5)


def test_a_hook_that_closes_its_blocking_gate_leaves_it_to_the_next_close(server: Server) -> None:
    class Closes(Hooks):
        def on_begin(self, delivery: Delivery) -> None:
            with pytest.raises(RuntimeError, match="hook"):
                gate.close()
            refused.set()

    refused = threading.Event()
    gate = Gate(server.address, hooks=Closes())
    with pytest.raises(TurnLost), gate.turn(event("hook", "hook")):
        assert refused.is_set()
        gate.close()
    assert not server.turns()
    assert all(thread.name != "oncegate" for thread in threading.enumerate())


class Stop(BaseException):
    """Interrupts the main thread, as Ctrl-C does."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[], None]]:
    """Interrupts the main thread, and returns when it has been interrupted."""

    def stop(*_: object) -> None:
        interrupted.set()
        raise Stop

    def interrupt() -> None:
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGALRM)
        interrupted.wait(30)

    interrupted = threading.Event()
    before = signal.signal(signal.SIGALRM, stop)
    yield interrupt
    signal.signal(signal.SIGALRM, before)


def test_an_interrupted_close_goes_on_with_the_next_one(
    server: Server, interrupt: Callable[[], None]
) -> None:
    class Interrupts(Hooks):
        def on_lost(self, reason: str) -> None:
            interrupt()

    gate = Gate(server.address, hooks=Interrupts())
    with pytest.raises(TurnLost), gate.turn(event("stop", "stop")):
        with pytest.raises(Stop):
            gate.close()
        gate.close()
    assert not server.turns()
    assert all(thread.name != "oncegate" for thread in threading.enumerate())


def test_a_close_that_is_interrupted_at_its_end_goes_on_with_the_next_one(
    server: Server, interrupt: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    leave = LoopThread._leave

    async def interrupted(loop: LoopThread) -> None:
        interrupt()
        await leave(loop)

    monkeypatch.setattr(LoopThread, "_leave", interrupted)
    gate = Gate(server.address)
    gate.mark(event("mark"))
    with pytest.raises(Stop):
        gate.close()
    gate.close()
    assert all(thread.name != "oncegate" for thread in threading.enumerate())


def test_a_process_forks_while_a_gate_is_closed(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaving, forked = threading.Event(), threading.Event()
    leave = LoopThread._leave

    async def slow(loop: LoopThread) -> None:
        leaving.set()
        await asyncio.to_thread(forked.wait, 30)
        await leave(loop)

    monkeypatch.setattr(LoopThread, "_leave", slow)
    gate = Gate(server.address)
    gate.mark(event("mark"))
    with ThreadPoolExecutor() as threads:
        closing = threads.submit(gate.close)
        assert leaving.wait(30)
        gate._runtime._before_fork()
        gate._runtime._after_fork()
        forked.set()
        closing.result(30)
    with pytest.raises(Closed):
        gate.mark(event("mark"))
