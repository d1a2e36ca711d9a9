"""A client of the asynchronous gate."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from oncegate import AsyncGate, AsyncTurn, Delivery

from . import mapping
from .client import Client, OnceBody, Scope
from .scenario import Json, Step

_loops: dict[int, asyncio.AbstractEventLoop] = {}


def loop() -> asyncio.AbstractEventLoop:
    """The event loop of this process, in a thread of its own. A forked child has another."""
    if os.getpid() not in _loops:
        made = _loops[os.getpid()] = asyncio.new_event_loop()
        threading.Thread(target=made.run_forever, daemon=True).start()
    return _loops[os.getpid()]


class AsyncClient(Client):
    gate_type = AsyncGate
    can_be_interrupted = True

    def __init__(self, name: str, address: str, options: dict[str, Json]) -> None:
        super().__init__(name, address, options)
        self._bodies: dict[Scope, asyncio.Task[None]] = {}

    def invoke(self, call: Callable[[], Any]) -> Any:
        async def answer() -> Any:
            result = call()
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(answer(), loop()).result()

    def hold(self, scope: Scope, manager: Any) -> None:
        async def start() -> None:
            self._bodies[scope] = asyncio.create_task(self._body(scope, manager))

        self.invoke(start)

    async def _body(self, scope: Scope, manager: Any) -> None:
        result = {"ran": None}  # of a body that raises Reject
        try:
            async with asyncio.timeout(scope.timeout), manager as held:
                scope.enter(held)
                result = scope.finish(await self._ending(scope))
        except BaseException as error:  # noqa: BLE001 - it is the result
            scope.leave_with(error)
        else:
            scope.leave(result)

    async def _ending(self, scope: Scope) -> Step:
        ending = asyncio.wrap_future(scope.ending)
        while True:
            try:
                return await asyncio.shield(ending)
            except asyncio.CancelledError:
                scope.was_interrupted = True
                if not scope.ignores_loss:
                    raise

    def cancel(self, scope: Scope) -> None:
        loop().call_soon_threadsafe(self._bodies[scope].cancel)

    def run(self, step: Step) -> Any:
        async def handler(turn: AsyncTurn) -> Any:
            await asyncio.sleep(step.get("body_ms", 0) / 1000)
            return mapping.body_of(step)

        async def call() -> Any:
            async with asyncio.timeout(mapping.seconds(step.get("timeout_ms"))):
                delivery = mapping.delivery(step["run"])
                return await self.gate.run(handler, delivery, **mapping.options(step))

        return self.invoke(call)

    def once(self, body: OnceBody, **options: Any) -> Any:
        @self.gate.once(options.pop("make_delivery"), **options)  # type: ignore[untyped-decorator]
        async def function() -> Any:
            return body()

        return self.invoke(function)

    def mark_all(self, marks: mapping.Marks) -> None:
        async def collect() -> None:
            async for item in self.gate.mark_all(marks.given):
                marks.items.append(item)

        self.invoke(collect)

    def many(self, deliveries: list[Delivery]) -> int:
        entered = 0

        async def turn(delivery: Delivery, all_entered: asyncio.Event) -> None:
            nonlocal entered
            async with self.gate.turn(delivery):
                entered += 1
                if entered == len(deliveries):
                    all_entered.set()
                await all_entered.wait()

        async def all_turns() -> None:
            all_entered = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                for delivery in deliveries:
                    group.create_task(turn(delivery, all_entered))

        self.invoke(all_turns)
        return entered

    def block(self, seconds: float, then: Callable[[], Json]) -> Json:
        def blocked() -> Json:
            time.sleep(seconds)
            return then()

        return self.invoke(blocked)
