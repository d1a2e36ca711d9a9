"""What is granted to a scope that cannot be entered goes back at once; against a real server."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Iterator

import pytest

from oncegate import AsyncGate, Delivery, Gate, Hooks
from oncegate.testing import Server

EVENT = Delivery("T1", "event", session="session")


class Stop(BaseException):
    pass


class Stops(Hooks):
    def on_begin(self, delivery: Delivery) -> None:
        raise Stop


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        yield running


@pytest.fixture
def alarm() -> Iterator[threading.Event]:
    """SIGALRM raises `Stop` in the main thread, and sets this."""
    raised = threading.Event()

    def stop(*_: object) -> None:
        raised.set()
        raise Stop

    before = signal.signal(signal.SIGALRM, stop)
    yield raised
    signal.signal(signal.SIGALRM, before)


def expect_free(server: Server) -> None:
    with Gate(server.address) as gate, gate.turn(EVENT) as turn:
        assert turn.attempt == 2


def test_a_thread_that_is_interrupted_at_the_grant_gives_it_back(
    server: Server, alarm: threading.Event
) -> None:
    class Interrupts(Hooks):
        def on_begin(self, delivery: Delivery) -> None:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGALRM)
            alarm.wait(30)

    with Gate(server.address, hooks=Interrupts()) as gate:
        with pytest.raises(Stop):
            with gate.turn(EVENT):
                raise AssertionError("the body ran")
        expect_free(server)


async def test_a_turn_whose_begin_raises_is_given_back(server: Server) -> None:
    async with AsyncGate(server.address, hooks=Stops()) as gate:
        with pytest.raises(Stop):
            async with gate.turn(EVENT):
                raise AssertionError("the body ran")
        expect_free(server)


def test_a_blocking_turn_whose_begin_raises_is_given_back(server: Server) -> None:
    with Gate(server.address, hooks=Stops()) as gate:
        with pytest.raises(Stop):
            with gate.turn(EVENT):
                raise AssertionError("the body ran")
        expect_free(server)


def test_a_hook_without_a_name_may_raise(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def fail(text: str, _: Delivery) -> None:
        raise RuntimeError(text)

    hooks = Hooks()
    hooks.on_begin = functools.partial(fail, "planned")  # type: ignore[method-assign]
    with Gate(server.address, hooks=hooks) as gate, gate.turn(EVENT) as turn:
        assert turn.held
    assert "planned" in caplog.text


def test_a_lease_that_is_not_granted_releases_nothing(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with Gate(server.address) as gate, gate.lease("T1", "session") as lease:
        with pytest.raises(Exception, match="has the conversation"):
            with gate.lease("T1", "session"):
                raise AssertionError("the body ran")
        lease.check()
    assert not caplog.records
