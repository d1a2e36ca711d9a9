"""Executes the steps of a scenario: one interpreter for all forms of a client."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from threading import Thread
from typing import Any, Protocol, TypeVar

from .lines import ProcessError
from .matching import Expectations, MismatchError
from .scenario import Json, Scenario, Step
from .testbed import Testbed

WITHIN_MS = 15_000
POLL_SECONDS = 0.03
# What describes a step and is not an argument of its verb.
FRAME = ("expect", "within_ms", "at_least_ms", "background")


class Client(Protocol):
    """A gate with its open turns and leases. `do` blocks, and several threads call it."""

    def do(self, step: Step) -> Json: ...

    def close(self) -> None: ...


T = TypeVar("T")
MakeClient = Callable[[str, str, dict[str, Json]], Client]


class ScenarioError(AssertionError):
    """A step, counted from 1, did not go as the scenario says."""

    def __init__(self, step: int, problem: str) -> None:
        super().__init__(problem)
        self.step = step


@dataclass
class Running:
    """A step that has been started."""

    step: Step
    started: float
    result: Future[tuple[Json, float]]
    """With the seconds that it took."""


class Interpreter:
    """Runs one scenario on one testbed."""

    def __init__(self, scenario: Scenario, testbed: Testbed, make_client: MakeClient) -> None:
        self._scenario, self._testbed, self._make = scenario, testbed, make_client
        self._clients: dict[str, Client] = {}
        self._background: dict[str, Running] = {}
        self._detached: dict[str, str] = {}
        self._expectations = Expectations()

    def run(self) -> None:
        try:
            for number, step in enumerate(self._scenario.steps, 1):
                try:
                    self._step(step)
                except (MismatchError, TimeoutError, ProcessError) as error:
                    shown = f"step {number}: {json.dumps(step, ensure_ascii=False):.600}\n{error}"
                    shown = "\n".join([shown, *getattr(error, "__notes__", ())])
                    raise ScenarioError(number, shown) from error
            if self._background:
                raise ValueError(f"no step awaits {', '.join(self._background)}")
        finally:
            for client in self._clients.values():
                client.close()

    def _step(self, step: Step) -> None:
        match step:
            case {"sleep_ms": duration}:
                time.sleep(duration / 1000)
            case {"await": name}:
                self._finish(self._background.pop(name), step)
            case {"background": True, "as": name}:
                self._background[name] = self._start(step)
            case {"within_ms": _, "expect": _} if is_look(step):
                self._poll(step)
            case _:
                self._finish(self._start(step), step)

    def _poll(self, step: Step) -> None:
        """Repeats a look until it matches. A server that is down may not answer."""
        deadline = time.monotonic() + step["within_ms"] / 1000
        while True:
            try:
                return self._finish(self._start(step), step)
            except (MismatchError, ProcessError):
                if time.monotonic() > deadline:
                    raise
            time.sleep(POLL_SECONDS)

    def _start(self, step: Step) -> Running:
        running = Running(step, time.monotonic(), Future())

        def work() -> tuple[Json, float]:
            return self._do(step), time.monotonic() - running.started

        Thread(target=settle, args=(running.result, work), daemon=True).start()
        return running

    def _finish(self, running: Running, step: Step) -> None:
        within = step.get("within_ms", WITHIN_MS) / 1000
        at_least = step.get("at_least_ms", 0) / 1000
        # A time that the scenario gives is a part of what it expects.
        late = MismatchError if "within_ms" in step else TimeoutError
        wait([running.result], max(0.0, running.started + within - time.monotonic()))
        if not running.result.done():
            raise late(f"not finished after {within} s")
        result, took = running.result.result()
        if took > within:
            raise late(f"finished after {took:.3f} s with {result!r}, expected within {within} s")
        if took < at_least:
            raise MismatchError(f"finished after {took:.3f} s with {result!r}, expected {at_least} s")
        if "expect" in step:
            self._expectations.match(step["expect"], result)
        elif not is_success(running.step, result):
            raise MismatchError(f"the result is {result!r}")

    def _do(self, step: Step) -> Json:
        arguments = {key: value for key, value in step.items() if key not in FRAME}
        match arguments:
            case {"testbed": command, **rest}:
                return self._testbed.do(command, **rest)
            case {"detach": name, "client": client}:
                result = self._client(client).do({"detach": name})
                self._detached[name] = result.pop("id", None)
                return result
            case {"adopt": name, "client": client, **rest}:
                return self._client(client).do({"adopt": self._detached[name], **rest})
            case {"client": client, **rest}:
                return self._client(client).do(self._with_deliveries(rest))
        raise ValueError(f"no verb in {step}")

    def _client(self, name: str) -> Client:
        if name not in self._clients:
            options = {"ttl_ms": 3000, **self._scenario.clients.get(name, {})}
            address = self._testbed.replicas[options.pop("replica", 0)]
            self._clients[name] = self._make(name, address, options)
        return self._clients[name]

    def _with_deliveries(self, verb: Json) -> Json:
        """Puts deliveries in the place of their names."""
        if not isinstance(verb, dict):
            return verb
        named = {"delivery", "run", "once", "mark", "seen"}
        return {
            key: self._scenario.deliveries[item]
            if key in named and isinstance(item, str)
            else self._with_deliveries(item)
            for key, item in verb.items()
        }


def settle(result: Future[T], work: Callable[[], T]) -> None:
    """Runs the work, and settles the result with what came of it."""
    try:
        result.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is the result
        result.set_exception(error)


def is_look(step: Step) -> bool:
    reads = not step.keys().isdisjoint({"state", "hooks", "seen"})
    return reads or step.get("testbed") in ("look", "calls")


def is_success(step: Step, result: Any) -> bool:
    """Whether a step without `expect` went well. What a look reports is data."""
    if is_look(step) or not isinstance(result, dict):
        return True
    return not result.keys() & {"error", "duplicate", "gave_up", "in_progress", "busy", "dropped"}
