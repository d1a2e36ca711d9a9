"""Scopes against a real server: cancellation, loss, blocked loops, forks, many turns at once."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from oncegate import (
    AsyncGate,
    Delivery,
    Dropped,
    Duplicate,
    Gate,
    Hooks,
    Ran,
    Reject,
    Session,
    TurnLost,
    Unavailable,
    WrongProcess,
    current_turn,
)
from oncegate._delivery import Payload
from oncegate.testing import Server
from oncegate.v1.delivery_pb2 import PLATFORM_SLACK


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


def event(name: str, session: str | None = None) -> Delivery:
    return Delivery("T1", name, session=session)


async def test_a_loss_cancels_the_body(server: Server) -> None:
    async with AsyncGate(server.address) as gate:
        with pytest.raises(TurnLost) as lost:
            async with gate.turn(event("lost", "lost")) as turn:
                await asyncio.to_thread(server.lose, Session("T1", "lost"))
                await asyncio.sleep(30)
        assert lost.value.reason == "LEASE_LOST"
        assert turn.lost.is_set()
        assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_loss_cancels_a_task_group_in_the_body(server: Server) -> None:
    async with AsyncGate(server.address) as gate:
        with pytest.raises(TurnLost):
            async with gate.turn(event("group", "group")), asyncio.TaskGroup() as group:
                group.create_task(asyncio.sleep(30))
                await asyncio.to_thread(server.lose, Session("T1", "group"))
                await asyncio.sleep(30)


async def test_a_timeout_around_the_turn_stays_a_timeout(server: Server) -> None:
    async with AsyncGate(server.address) as gate:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), gate.turn(event("around", "around")):
                await asyncio.sleep(30)
        async with gate.turn(event("around", "around")) as turn:
            assert turn.attempt == 2


async def test_a_timeout_inside_the_turn_stays_inside(server: Server) -> None:
    async with AsyncGate(server.address) as gate:
        async with gate.turn(event("inside")) as turn:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await asyncio.sleep(30)
            turn.result = "after"
        assert (await gate.seen(event("inside"), include_result=True)).result == "after"


async def test_the_loss_of_an_outer_turn_leaves_the_inner_one_cancelled(server: Server) -> None:
    async with AsyncGate(server.address) as gate:
        with pytest.raises(TurnLost):
            async with gate.turn(event("outer", "outer")):
                async with gate.turn(event("inner", "inner")):
                    await asyncio.to_thread(server.lose, Session("T1", "outer"))
                    await asyncio.sleep(30)
        async with gate.turn(event("inner", "inner")) as turn:
            assert turn.attempt == 2


class Broken(Hooks):
    def on_begin(self, delivery: Delivery) -> None:
        raise RuntimeError("on_begin")

    def on_lost(self, reason: str) -> None:
        raise RuntimeError("on_lost")

    def on_end(self, outcome: str) -> None:
        raise RuntimeError("on_end")


async def test_a_hook_that_raises_changes_nothing(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with AsyncGate(server.address, hooks=Broken()) as gate:
        async with gate.turn(event("hooks")):
            pass
        assert (await gate.seen(event("hooks"))).outcome == "SUCCEEDED"
        with pytest.raises(TurnLost):
            async with gate.turn(event("hook", "hook")):
                await asyncio.to_thread(server.lose, Session("T1", "hook"))
                await asyncio.sleep(30)
    assert {"on_begin", "on_lost", "on_end"} <= {
        str(record.exc_info[1]) for record in caplog.records if record.exc_info
    }


async def test_every_end_is_reported(server: Server) -> None:
    class Ends(Hooks):
        def on_end(self, outcome: str) -> None:
            ends.append(outcome)

    ends: list[str] = []
    async with AsyncGate(server.address, hooks=Ends()) as gate:
        with pytest.raises(TypeError):
            async with gate.turn(event("unencodable")) as turn:
                turn.result = object()
        with pytest.raises(TurnLost):
            async with gate.turn(event("end", "end")):
                await asyncio.to_thread(server.lose, Session("T1", "end"))
                await asyncio.sleep(30)
    assert ends == ["FAILED", "LOST"]


async def test_a_scope_is_entered_once(server: Server) -> None:
    async with AsyncGate(server.address) as gate:
        turn = gate.turn(event("twice"))
        lease = gate.lease("T1", "twice")
        async with turn, lease:
            with pytest.raises(RuntimeError, match="once"):
                await turn.__aenter__()
            with pytest.raises(RuntimeError, match="once"):
                await lease.__aenter__()
        assert (await gate.seen(event("twice"))).outcome == "SUCCEEDED"


async def test_patience_bounds_the_sending_of_a_large_request() -> None:
    with Server() as own:
        async with AsyncGate(own.address, patience=1) as gate:
            async with gate.turn(event("first")):
                pass
            own.mute()
            body = b'{"type":"event_callback","x":"' + b"x" * 250_000 + b'"}'
            large = Delivery("T1", "", payload=Payload(PLATFORM_SLACK, body))
            async with asyncio.timeout(20):
                with pytest.raises(Unavailable):
                    async with gate.turn(large):
                        raise AssertionError("the body ran")


def test_a_gate_forgets_closed_event_loops(server: Server) -> None:
    gate = AsyncGate(server.address)
    for number in range(5):
        asyncio.run(gate.mark(event(f"loop-{number}")))
    assert len(gate._runtime._ios) == 1


async def test_a_blocked_event_loop_keeps_its_turn(server: Server) -> None:
    async with AsyncGate(server.address, ttl=1) as gate:
        async with gate.turn(event("blocked", "blocked")) as turn:
            time.sleep(3)  # noqa: ASYNC251 - that is the point
            await asyncio.sleep(0.2)
            turn.check()
        assert (await gate.seen(event("blocked"))).outcome == "SUCCEEDED"


async def test_a_handler_reads_its_turn(server: Server) -> None:
    async with AsyncGate(server.address) as gate:

        @gate.turn(lambda name: event(name, "decorated"))
        async def handle(name: str) -> int | None:
            return current_turn().fence

        assert await handle("decorated") is not None
        with pytest.raises(Duplicate):
            await handle("decorated")
    with pytest.raises(LookupError):
        current_turn()


async def test_a_rejected_event_ran(server: Server) -> None:
    async def refuse(_: object) -> None:
        raise Reject("unreadable")

    async with AsyncGate(server.address) as gate:
        assert await gate.run(refuse, event("rejected")) == Ran(None)
        again = await gate.run(refuse, event("rejected"))
        assert isinstance(again, Duplicate)
        assert (again.outcome, again.detail) == ("REJECTED", "unreadable")


async def test_a_server_that_is_away() -> None:
    gate = AsyncGate("127.0.0.1:1", patience=0.2)
    with pytest.raises(Unavailable) as away:
        async with gate.turn(event("away")):
            raise AssertionError("the body ran")
    assert away.value.__cause__ is not None
    with pytest.raises(Dropped):
        async with gate.turn(event("away"), on_unavailable="drop"):
            raise AssertionError("the body ran")
    async with gate.turn(event("away"), on_unavailable="run") as turn:
        assert (turn.held, turn.fence, turn.left) == (False, None, math.inf)
        turn.check()
    await gate.close()


async def test_1200_turns_at_once(server: Server) -> None:
    async with AsyncGate(server.address) as gate:
        inside = 0
        everyone = asyncio.Event()

        async def one(number: int) -> None:
            nonlocal inside
            async with gate.turn(event(f"many-{number}", f"many-{number}"), patience=60):
                inside += 1
                if inside == 1200:
                    everyone.set()
                await everyone.wait()

        async with asyncio.timeout(120), asyncio.TaskGroup() as group:
            for number in range(1200):
                group.create_task(one(number))


def test_a_blocking_gate_has_one_thread_and_a_loss_sets_an_event(server: Server) -> None:
    before = threading.active_count()
    with Gate(server.address) as gate:
        with pytest.raises(TurnLost), gate.turn(event("sync", "sync")) as turn:
            assert threading.active_count() <= before + 2  # ours, and gRPC's
            server.lose(Session("T1", "sync"))
            assert turn.lost.wait(10)
            assert turn.lost.reason == "LEASE_LOST"
    assert all(thread.name != "oncegate" for thread in threading.enumerate())


def test_a_closed_gate_fails_its_turns(server: Server) -> None:
    gate = Gate(server.address)
    with pytest.raises(TurnLost) as lost, gate.turn(event("closed", "closed")):
        gate.close()
    assert lost.value.reason == "CLOSED"
    with pytest.raises(Unavailable), gate.turn(event("closed")):
        pass
    with Gate(server.address) as other, other.turn(event("closed", "closed")) as turn:
        assert turn.attempt == 2


FORK = """
import os, sys
from oncegate import Delivery, Gate, WrongProcess
gate = Gate(sys.argv[1], ttl=10)
with gate.turn(Delivery("T1", "fork", session="fork")) as turn:
    for number in range(5):
        child = os.fork()
        if child == 0:
            try:
                turn.check()
            except WrongProcess:
                with gate.turn(Delivery("T1", f"child-{number}", session=f"child-{number}")):
                    os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    turn.check()
print(gate.seen(Delivery("T1", "fork")).outcome)
"""


def test_a_forked_child_has_its_own_connections(server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORK, server.address],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "SUCCEEDED\n", "")


def test_an_interpreter_exits_without_noise(server: Server) -> None:
    program = """
import sys
from oncegate import Delivery, Gate
gate = Gate(sys.argv[1])
scope = gate.turn(Delivery("T1", "exit"))
scope.__enter__()
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, server.address],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "")
    assert "Traceback" not in done.stderr
    with Gate(server.address) as gate, gate.turn(event("exit")) as turn:
        assert turn.attempt == 2


async def test_an_asyncio_gate_refuses_to_work_in_a_forked_child(server: Server) -> None:
    async with AsyncGate(server.address) as gate:
        await gate.mark(event("parent"))
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            try:
                gate.mark(event("child")).send(None)
            except WrongProcess:
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
