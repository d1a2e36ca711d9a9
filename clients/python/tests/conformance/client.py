"""The verbs of a client: one table for all forms of the library."""

from __future__ import annotations

import datetime
import json
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from oncegate import AsyncGate, Delivery, Gate, Hooks

from . import mapping
from .scenario import Json, Step, written

FORK_SECONDS = 10


class Scope:
    """One open turn or lease. Its body waits, in a task or a thread, for the step that ends
    it."""

    def __init__(self, step: Step, can_be_interrupted: bool) -> None:
        self.ignores_loss: bool = step.get("ignores_loss", False)
        self.timeout = mapping.seconds(step.get("timeout_ms"))
        self.was_interrupted = False if can_be_interrupted else None
        self.held: Any = None
        self.entered: Future[Json] = Future()
        self.ending: Future[Step] = Future()
        self.left: Future[Json] = Future()

    def enter(self, held: Any) -> None:
        self.held = held
        self.entered.set_result(mapping.granted(held))

    def leave(self, result: Json) -> None:
        if not self.entered.done():
            self.entered.set_result(result)
        self.left.set_result(result)

    def leave_with(self, error: BaseException) -> None:
        self.leave(mapping.failure(error))

    def finish(self, step: Step) -> Json:
        """The last thing that the body does. Returns the result of the scope."""
        if step.get("cancel"):
            raise KeyboardInterrupt
        value = mapping.body_of(step)
        if "result" in step:
            self.held.result = value
        return {"ran": written(value)}


class OnceBody:
    """The body of a function that `once` decorates."""

    def __init__(self, step: Step) -> None:
        self._step, self.ran = step, False

    def __call__(self) -> Any:
        self.ran = True
        value = mapping.body_of(self._step)
        return datetime.date.fromisoformat(value) if self._step.get("typed") else value

    def result(self, returned: Any) -> Json:
        is_date = isinstance(returned, datetime.date)
        value = returned.isoformat() if is_date else written(returned)
        is_typed = self._step.get("typed", False)
        return {"returned": value, "body_ran": self.ran, "type_ok": is_date == is_typed}


class Called(Hooks):
    """What the hooks of a gate were called with."""

    def __init__(self) -> None:
        self._begun: list[Delivery] = []
        self._queued: list[int] = []
        self._lost: list[str] = []
        self._ended: list[str] = []

    def on_begin(self, delivery: Delivery) -> None:
        self._begun.append(delivery)

    def on_queued(self, position: int) -> None:
        self._queued.append(position)

    def on_lost(self, reason: str) -> None:
        self._lost.append(reason)

    def on_end(self, outcome: str) -> None:
        self._ended.append(outcome)

    def report(self) -> Json:
        lists = {"queued": self._queued, "lost": self._lost, "ended": self._ended}
        return {"begun": len(self._begun), **lists}


class Client(ABC):
    """Executes the verbs of one gate. A form of the library adds how it waits."""

    gate_type: type[Gate | AsyncGate]
    can_be_interrupted = False

    def __init__(self, name: str, address: str, options: dict[str, Json]) -> None:
        self._called = Called()
        options = mapping.gate_options(name, options)
        self.gate: Any = self.gate_type(address, hooks=self._called, **options)
        self._scopes: dict[str, Scope] = {}

    @abstractmethod
    def invoke(self, call: Callable[[], Any]) -> Any:
        """Calls the library, and waits for its answer."""

    @abstractmethod
    def hold(self, scope: Scope, manager: Any) -> None:
        """Starts the body of a scope."""

    @abstractmethod
    def cancel(self, scope: Scope) -> None:
        """Cancels the body as its caller."""

    @abstractmethod
    def run(self, step: Step) -> Any:
        """Runs a handler as the step says."""

    @abstractmethod
    def once(self, body: OnceBody, **options: Any) -> Any:
        """Calls a function that `once` decorates."""

    @abstractmethod
    def mark_all(self, marks: mapping.Marks) -> None:
        """Collects what `mark_all` yields."""

    @abstractmethod
    def many(self, deliveries: list[Delivery]) -> int:
        """Begins all these turns, and then ends them. Returns how many there were at once."""

    @abstractmethod
    def block(self, seconds: float, then: Callable[[], Json]) -> Json:
        """Blocks the event loop, and does something more before it runs again."""

    def do(self, step: Step) -> Json:
        try:
            return self._do(step)
        except BaseException as error:  # noqa: BLE001 - it is the result
            return mapping.failure(error)

    def close(self) -> None:
        for scope in self._scopes.values():
            if not scope.ending.done():
                scope.ending.set_result({})
        self.invoke(lambda: self.gate.close())

    def _do(self, step: Step) -> Json:
        gate, options = self.gate, mapping.options
        match step:
            case {"open": "turn", "as": name, "delivery": given}:
                return self._open(name, step, gate.turn(mapping.delivery(given), **options(step)))
            case {"open": "lease", "as": name, "session": given}:
                chosen = options(step, "wait", "ttl", "labels", "epic")
                return self._open(name, step, gate.lease(mapping.session(given), **chosen))
            case {"adopt": turn_id, "as": name}:
                return self._open(name, step, gate.adopt(turn_id))
            case {"end": name}:
                scope = self._scopes[name]
                if step.get("cancel"):
                    self.cancel(scope)
                else:
                    scope.ending.set_result(step)
                return scope.left.result()
            case {"detach": name}:
                scope = self._scopes[name]
                turn_id = self.invoke(lambda: scope.held.detach())
                scope.ending.set_result({})
                return {**scope.left.result(), "id": turn_id}
            case {"state": name}:
                scope = self._scopes[name]
                return mapping.state(scope.held, scope.was_interrupted)
            case {"run": _}:
                return mapping.outcome(self.run(step))
            case {"once": given}:
                body = OnceBody(step)
                codec = {"codec": mapping.DateCodec()} if step.get("typed") else {}
                make = {"make_delivery": lambda: mapping.delivery(given)}
                return body.result(self.once(body, **make, **codec))
            case {"mark": given}:
                return mapping.mark(self.invoke(lambda: gate.mark(mapping.delivery(given))))
            case {"seen": given}:
                whole = step.get("include_result", False)
                look = self.invoke(lambda: gate.seen(mapping.delivery(given), include_result=whole))
                return mapping.seen(look)
            case {"mark_all": True}:
                marks = mapping.Marks(mapping.many_deliveries(step))
                self.mark_all(marks)
                return marks.result()
            case {"many": True, "count": count, "team": team}:
                names = (f"many-{number}" for number in range(count))
                return {"ran": self.many([Delivery(team, name, session=name) for name in names])}
            case {"block_ms": duration}:
                name = step.get("check")
                return self.block(duration / 1000, lambda: name and self._check(name))
            case {"check": name}:
                return self._check(name)
            case {"hooks": True}:
                return self._called.report()
            case {"close": True}:
                return self.invoke(lambda: gate.close())
            case {"drain_ms": duration}:
                return self.invoke(lambda: gate.drain(duration / 1000))
            case {"fork": verb}:
                return self._fork(verb)
        raise ValueError(f"no verb in {step}")

    def _check(self, name: str) -> Json:
        self._scopes[name].held.check()
        return {"ok": True}

    def _open(self, name: str, step: Step, manager: Any) -> Json:
        scope = self._scopes[name] = Scope(step, self.can_be_interrupted)
        self.hold(scope, manager)
        return scope.entered.result()

    def _fork(self, verb: Step) -> Json:
        """Executes a verb in a forked child, which has this thread alone."""
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            signal.alarm(FORK_SECONDS)
            try:
                os.write(writer, json.dumps(self.do(verb)).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as answer:
            result = answer.read()
        _, status = os.waitpid(child, 0)
        return json.loads(result) if result else {"error": {"kind": "died", "status": status}}
