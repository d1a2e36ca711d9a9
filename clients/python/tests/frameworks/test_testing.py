"""The test kit itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from oncegate import Delivery, Duplicate, Gate, Ran, Session, TurnLost, Unavailable
from oncegate._access import ENVIRONMENT
from oncegate.testing import (
    AsyncServedGate,
    RunningTurn,
    ServedGate,
    Server,
    _server,
    gate,
    sync_gate,
)

from .conftest import until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from oncegate import AsyncTurn, Turn

__all__ = ["gate", "sync_gate"]

DELIVERY = Delivery("T1", "Ev1", session="C1")


async def test_the_fixture_is_a_gate_with_its_server(gate: AsyncServedGate) -> None:
    async with gate.turn(DELIVERY) as turn:
        [running] = gate.server.turns("T1")
        assert (running.event, running.attempt) == ("Ev1", turn.attempt)
        assert gate.server.turns("T2") == []
    assert gate.server.turns() == []


def test_the_fixture_for_threads(sync_gate: ServedGate) -> None:
    assert sync_gate.run(lambda turn: turn.attempt, DELIVERY) == Ran(1)
    assert isinstance(sync_gate.run(lambda _: 2, DELIVERY), Duplicate)


@pytest.fixture
def foreign_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a pod, for another server."""
    for name in (*ENVIRONMENT.values(), "ONCEGATE_TLS_CERT", "ONCEGATE_LISTEN"):
        monkeypatch.setenv(name, "/no/such/file")


@pytest.mark.usefixtures("foreign_environment")
class TestAnEnvironmentForAnotherServer:
    async def test_is_not_for_the_fixture(self, gate: AsyncServedGate) -> None:
        assert (await gate.mark(DELIVERY)).first

    def test_is_not_for_the_fixture_for_threads(self, sync_gate: ServedGate) -> None:
        assert sync_gate.mark(DELIVERY).first


def test_each_server_has_a_database_of_its_own() -> None:
    for _ in range(2):
        with Server() as server, Gate(server.address) as gate:
            assert gate.mark(DELIVERY).first


def test_a_database_outlives_restarts() -> None:
    with Server() as server, Gate(server.address) as gate:
        assert gate.mark(DELIVERY).first
        address = server.address
        server.restart()
        assert not gate.mark(DELIVERY).first
        server.drain()
        server.start()
        assert not gate.mark(DELIVERY).first
        assert server.address == address


def test_a_killed_server_is_away() -> None:
    with Server() as server, Gate(server.address, patience=0.2) as gate:
        server.kill()
        with pytest.raises(Unavailable):
            gate.mark(DELIVERY)


def test_a_muted_server_answers_later() -> None:
    with Server() as server, Gate(server.address, patience=0.5) as gate:
        gate.mark(Delivery("T1", "Ev0"))
        server.mute()
        with pytest.raises(Unavailable), gate.turn(DELIVERY):
            pass
        server.unmute()
        with Gate(server.address, patience=30) as patient:
            assert isinstance(patient.run(lambda _: None, DELIVERY), Ran)


async def test_a_session_can_be_lost(gate: AsyncServedGate) -> None:
    async def lose(_: AsyncTurn) -> None:
        gate.server.lose(session)
        await asyncio.Event().wait()

    for session in (Session("T1", "C1"), Session.thread("T1", "C1", "17.5")):
        with pytest.raises(TurnLost):
            await gate.run(lose, Delivery("T1", session.id or "thread", session=session))
    with pytest.raises(LookupError, match="C1"):
        gate.server.lose(Session("T1", "C1"))


def test_a_consumers_session_can_be_lost() -> None:
    def lose(turn: Turn) -> None:
        server.lose(Session("T1", "C1"))
        assert turn.lost.wait(30)

    with (
        Server() as server,
        Gate(server.address, consumer="bot") as gate,
        pytest.raises(TurnLost),
    ):
        gate.run(lose, DELIVERY)


def test_turns_are_listed_over_pages() -> None:
    with Server() as server, Gate(server.address) as gate:
        many = [gate.turn(Delivery("T1", f"Ev{n:03}")) for n in range(101)]
        for scope in many:
            scope.__enter__()
        turns = server.turns()
        assert [turn.event for turn in turns] == [f"Ev{n:03}" for n in range(101)]
        assert isinstance(turns[0], RunningTurn)
        for scope in many:
            scope.__exit__(None, None, None)


@pytest.mark.parametrize(
    ("server", "error", "why"),
    [
        (lambda: Server("--no-such-option"), RuntimeError, "no-such-option"),
        (lambda: Server(binary="/no/such/binary"), FileNotFoundError, "/no/such/binary"),
    ],
    ids=["option", "binary"],
)
def test_a_server_that_cannot_start_reports_why_and_leaves_nothing(
    server: Callable[[], Server],
    error: type[Exception],
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(error, match=why), server():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_runs_is_not_started_again() -> None:
    with Server() as server:
        with pytest.raises(RuntimeError, match="restart"):
            server.start()
        with Gate(server.address) as gate:
            assert gate.mark(DELIVERY).first


def test_it_starts_in_a_moment() -> None:
    times: list[float] = []
    for _ in range(5):
        with Server() as server:
            began = time.monotonic()
            server.restart()
            times.append(time.monotonic() - began)
    assert min(times) < 0.2  # the fastest, because the machine may be busy


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_the_tests_however_they_end(number: signal.Signals) -> None:
    # A signal that was ignored where the tests were started stays ignored in their children.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from oncegate.testing import Server; server = Server().start();"
        "print(server.address, server._process.pid, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert child.stdin
    assert child.stdout
    address, pid = child.stdout.readline().split()
    if number is signal.SIGINT:  # Ctrl-C reaches all processes of a terminal
        os.killpg(child.pid, number)
    else:
        child.send_signal(number)
    try:
        child.wait(timeout=60)
    finally:
        child.kill()
    child.stdin.close()
    child.stdout.close()
    folder = os.path.dirname(address.removeprefix("unix:"))
    asyncio.run(until(lambda: not any(map(os.path.exists, (f"/proc/{pid}", folder)))))


def test_the_binary_is_looked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ONCEGATE_BINARY", "/named")
    assert _server.find_binary() == "/named"
    monkeypatch.delenv("ONCEGATE_BINARY")

    def scripts(name: str) -> str:
        assert name == "scripts"
        return str(tmp_path)

    monkeypatch.setattr("sysconfig.get_path", scripts)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(FileNotFoundError, match="pip install"):
        _server.find_binary()
    packaged = tmp_path / "oncegate"
    packaged.touch(0o755)
    assert _server.find_binary() == str(packaged)


@pytest.mark.parametrize(
    "module",
    ["", ".testing", ".bolt", ".telegram", ".discord", ".github", ".slack", "._webhook"],
)
def test_no_framework_is_imported_before_it_is_used(module: str) -> None:
    program = (
        f"import sys, oncegate{module};"
        "print(*sorted({'slack_bolt', 'telegram', 'discord', 'fastapi', 'starlette', 'flask',"
        "'django'} & sys.modules.keys()))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == ""
