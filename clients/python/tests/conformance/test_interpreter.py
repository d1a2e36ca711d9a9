"""The interpreter counts the time of a step from its start to its own end."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from .interpreter import Interpreter, ScenarioError
from .matching import MismatchError
from .scenario import Json, Scenario, Step

SLOW_SECONDS = 0.05


class FakeClient:
    """Has a slow verb, and one that waits until the slow one is done."""

    def __init__(self) -> None:
        self._slow_is_done = threading.Event()

    def do(self, step: Step) -> Json:
        if step.get("open") == "slow":
            time.sleep(SLOW_SECONDS)
            self._slow_is_done.set()
        elif "wait" in step:
            self._slow_is_done.wait()
        return {"granted": {"attempt": 1}}

    def close(self) -> None:
        pass


class FakeTestbed:
    replicas = ("nowhere",)


def run(*steps: Step) -> None:
    scenario = Scenario("file", "name", "why", list(steps))
    testbed: Any = FakeTestbed()
    Interpreter(scenario, testbed, lambda *_: FakeClient()).run()


SLOW = {"client": "a", "open": "slow", "as": "t", "background": True}
WAIT = {"client": "a", "wait": True}
QUICK = {"client": "a", "open": "quick", "as": "t", "background": True}
SLEEP = {"sleep_ms": 500}
GRANTED = {"expect": {"granted": {"attempt": 1}}}


def test_steps_in_their_time() -> None:
    run(SLOW, WAIT, {"await": "t", "at_least_ms": 50, "within_ms": 15000, **GRANTED})
    run(QUICK, SLEEP, {"await": "t", "within_ms": 15000, **GRANTED})


@pytest.mark.parametrize(
    "steps",
    [
        (QUICK, SLEEP, {"await": "t", "at_least_ms": 500, **GRANTED}),
        (SLOW, WAIT, {"await": "t", "within_ms": 10, **GRANTED}),
        (SLOW, {"await": "t", "within_ms": 10, **GRANTED}),
        ({**SLOW, "background": False, "within_ms": 10},),
    ],
)
def test_steps_out_of_their_time(steps: tuple[Step, ...]) -> None:
    with pytest.raises(ScenarioError, match="finished after") as found:
        run(*steps)
    assert isinstance(found.value.__cause__, MismatchError)
