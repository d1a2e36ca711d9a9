"""A client of the synchronous gate."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from oncegate import Delivery, Gate, OncegateError, Turn

from . import mapping
from .client import Client, OnceBody, Scope
from .scenario import Json, Step

MANY_TIMEOUT = 120.0


class SyncClient(Client):
    gate_type = Gate

    def invoke(self, call: Callable[[], Any]) -> Any:
        return call()

    def hold(self, scope: Scope, manager: Any) -> None:
        threading.Thread(target=self._body, args=(scope, manager), daemon=True).start()

    def _body(self, scope: Scope, manager: Any) -> None:
        result = {"ran": None}  # of a body that raises Reject
        try:
            with manager as held:
                scope.enter(held)
                result = scope.finish(scope.ending.result())
        except BaseException as error:  # noqa: BLE001 - it is the result
            scope.leave_with(error)
        else:
            scope.leave(result)

    def cancel(self, scope: Scope) -> None:
        scope.ending.set_result({"cancel": True})

    def run(self, step: Step) -> Any:
        def handler(turn: Turn) -> Any:
            time.sleep(step.get("body_ms", 0) / 1000)
            return mapping.body_of(step)

        return self.gate.run(handler, mapping.delivery(step["run"]), **mapping.options(step))

    def once(self, body: OnceBody, **options: Any) -> Any:
        @self.gate.once(options.pop("make_delivery"), **options)  # type: ignore[untyped-decorator]
        def function() -> Any:
            return body()

        return function()

    def mark_all(self, marks: mapping.Marks) -> None:
        marks.items.extend(self.gate.mark_all(marks.given))

    def many(self, deliveries: list[Delivery]) -> int:
        all_entered = threading.Barrier(len(deliveries))

        def turn(delivery: Delivery) -> None:
            try:
                with self.gate.turn(delivery):
                    all_entered.wait(MANY_TIMEOUT)
            except OncegateError:
                all_entered.abort()  # the others must not wait for this one
                raise

        with ThreadPoolExecutor(len(deliveries)) as threads:
            turns = [threads.submit(turn, delivery) for delivery in deliveries]
        errors = [error for ended in turns if (error := ended.exception()) is not None]
        if errors:  # a broken barrier follows from the error of another turn
            raise next((error for error in errors if isinstance(error, OncegateError)), errors[0])
        return len(turns)

    def block(self, seconds: float, then: Callable[[], Json]) -> Json:
        raise NotImplementedError("a synchronous client has no event loop")
