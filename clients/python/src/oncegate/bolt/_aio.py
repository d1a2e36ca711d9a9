"""The guard of an `AsyncApp`."""

# The framework's own types are incomplete.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import asyncio
import copy
import logging
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from slack_bolt.kwargs_injection.async_utils import build_async_required_kwargs
from slack_bolt.lazy_listener.async_runner import AsyncLazyListenerRunner
from slack_bolt.lazy_listener.asyncio_runner import AsyncioLazyListenerRunner
from slack_bolt.listener.async_listener_error_handler import AsyncListenerErrorHandler
from slack_bolt.listener.async_listener_start_handler import AsyncListenerStartHandler
from slack_bolt.util.utils import get_arg_names_of_callable

from oncegate._errors import Busy, OutcomeUnknown, Reject, TurnLost
from oncegate._retry import PATIENCE, Refused, granted, keep_asking
from oncegate.bolt._policy import (
    PATIENCE_BEFORE_ACK,
    Action,
    Incoming,
    acknowledged,
    read,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from slack_bolt import BoltResponse
    from slack_bolt.async_app import AsyncApp
    from slack_bolt.listener.async_listener import AsyncListener
    from slack_bolt.listener.asyncio_runner import AsyncioListenerRunner
    from slack_bolt.request.async_request import AsyncBoltRequest

    from oncegate._aio import AsyncGate
    from oncegate._aio_scopes import AsyncTurn


LOG = logging.getLogger("oncegate")


def guard_async(
    app: AsyncApp,
    gate: AsyncGate,
    wait: float,
    on_busy: Callable[..., Awaitable[object]] | None,
) -> None:
    """See `oncegate.bolt.guard`."""
    app.listener_runner.run = _Guard(app.listener_runner, gate, wait, on_busy).run  # type: ignore[method-assign]


@dataclass
class _Call:
    """A call of Bolt to its runner."""

    runner: AsyncioListenerRunner
    request: AsyncBoltRequest
    response: BoltResponse
    listener_name: str
    listener: AsyncListener
    starting_time: float | None

    async def run(self, runner: AsyncioListenerRunner) -> BoltResponse | None:
        return await type(runner).run(
            runner,
            self.request,
            self.response,
            self.listener_name,
            self.listener,
            self.starting_time,
        )


class _Guard:
    """Runs listeners in turns, in place of Bolt's runner."""

    def __init__(
        self,
        runner: AsyncioListenerRunner,
        gate: AsyncGate,
        wait: float,
        on_busy: Callable[..., Awaitable[object]] | None,
    ) -> None:
        self._runner = runner
        self._gate = gate
        self._wait = wait
        self._on_busy = on_busy
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps no reference

    async def run(
        self,
        request: AsyncBoltRequest,
        response: BoltResponse,
        listener_name: str,
        listener: AsyncListener,
        starting_time: float | None = None,
    ) -> BoltResponse | None:
        call = _Call(self._runner, request, response, listener_name, listener, starting_time)
        incoming = read(request)
        if incoming is None:
            return await call.run(self._runner)
        # The turn belongs to a task of its own, because Bolt's ends with the acknowledgement.
        work = _Work(call)
        turn = self._start(self._in_turn(work, incoming, 0, PATIENCE_BEFORE_ACK))
        either: list[asyncio.Future[Any]] = [turn, work.responded]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if work.responded.done():
            return work.responded.result()
        try:
            await turn
        except Refused as answer:
            match incoming.action(answer.refusal, self._wait):
                case Action.ACKNOWLEDGE:
                    return acknowledged()
                case Action.REFUSE:
                    return refused(answer.refusal)
                case Action.QUEUE:
                    self._start(self._queue(call, incoming, answer.refusal))
                    return acknowledged()
        except Exception as error:  # noqa: BLE001 - the task's end is logged
            return refused(error)
        return work.response

    async def _in_turn(self, work: _Work, incoming: Incoming, wait: float, patience: float) -> None:
        try:
            scope = self._gate.turn(
                incoming.delivery, wait=wait, patience=patience, on_unavailable=incoming.on_unavailable
            )
            async with granted(scope) as turn:  # the current one for the tasks that Bolt starts too
                await work.run(turn)
        except Exception as error:
            if error is not work.error:  # which Bolt's own error handler has had
                raise

    async def _queue(self, call: _Call, incoming: Incoming, refusal: Exception) -> None:
        if isinstance(refusal, Busy) and not incoming.delivery.redelivers and self._on_busy:
            await self._report_busy(call.request)
        await keep_asking(
            lambda wait: self._in_turn(_Work(call), incoming, wait, PATIENCE), self._wait, refusal
        )

    async def _report_busy(self, request: AsyncBoltRequest) -> None:
        assert self._on_busy
        try:
            arguments = build_async_required_kwargs(
                logger=self._runner.logger,
                required_arg_names=get_arg_names_of_callable(self._on_busy),
                request=request,
                response=None,
                next_keys_required=False,
            )
            await self._on_busy(**arguments)
        except Exception:
            LOG.exception("on_busy failed; the delivery stays in the queue")

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(_log_failure)
        return task


def _log_failure(task: asyncio.Task[None]) -> None:
    """Logs errors of tasks that nothing awaits. The turn itself has logged its loss."""
    error = None if task.cancelled() else task.exception()
    if error and not isinstance(error, Refused | TurnLost | OutcomeUnknown):
        LOG.error("a delivery of Slack failed in its turn", exc_info=error)


class _Work:
    """One listener with its lazy functions, which share a turn."""

    def __init__(self, call: _Call) -> None:
        self._call = call
        self._running = 0
        self._finished = asyncio.Event()
        self._is_over = False
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ended_by: BaseException | None = None
        """The end of a part that is no error to Bolt, such as a cancellation."""
        self.error: Exception | None = None
        """The error of a part. Bolt has reported it."""
        self.response: BoltResponse | None = None
        self.responded: asyncio.Future[BoltResponse | None] = asyncio.Future()
        """Resolves once Bolt has a response, if there is work after it."""

    async def run(self, turn: AsyncTurn) -> None:
        """Runs everything. Raises an error of a part."""
        call = self._call
        call.request.context["turn"] = turn
        runner = copy.copy(call.runner)
        runner.listener_error_handler = _Error(self, runner.listener_error_handler)
        parts = 0
        if not runner.process_before_response:  # else the listener runs in this task
            runner.listener_start_handler = _Start(self, runner.listener_start_handler)
            parts += 1
        if isinstance(runner.lazy_listener_runner, AsyncioLazyListenerRunner):
            # Others run lazy functions in another process.
            runner.lazy_listener_runner = _Lazy(self, turn, runner.lazy_listener_runner)
            parts += len(call.listener.lazy_functions)
        self._running = parts
        try:
            self.response = await call.run(runner)
            if parts:
                self.responded.set_result(self.response)
                await self._finished.wait()
        finally:
            self._is_over = True
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._ended_by:
            raise RuntimeError("a listener was ended") from self._ended_by
        if self.error:
            raise self.error

    def began(self) -> None:
        """A part runs in the current task, which ends if the turn does."""
        if self._is_over:  # before the task's first step
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def failed(self, error: Exception) -> None:
        """A part raised. What one rejects is not done while another one fails."""
        if self.error is None or isinstance(self.error, Reject):
            self.error = error

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        error = asyncio.CancelledError() if task.cancelled() else task.exception()
        self._ended_by = self._ended_by or error
        self._running -= 1
        if not self._running:
            self._finished.set()


@dataclass
class _Start(AsyncListenerStartHandler):
    work: _Work
    inner: AsyncListenerStartHandler

    async def handle(self, request: AsyncBoltRequest, response: BoltResponse | None) -> None:
        self.work.began()
        await self.inner.handle(request, response)


@dataclass
class _Error(AsyncListenerErrorHandler):
    work: _Work
    inner: AsyncListenerErrorHandler

    async def handle(
        self, error: Exception, request: AsyncBoltRequest, response: BoltResponse | None
    ) -> None:
        self.work.failed(error)
        if not isinstance(error, Reject):
            await self.inner.handle(error, request, response)
        elif response:
            response.status = 200  # an order of the listener, and not a fault


class _Lazy(AsyncLazyListenerRunner):
    def __init__(self, work: _Work, turn: AsyncTurn, inner: AsyncLazyListenerRunner) -> None:
        self.logger = inner.logger
        self._work = work
        self._turn = turn
        self._inner = inner

    def start(self, function: Callable[..., Awaitable[None]], request: AsyncBoltRequest) -> None:
        @wraps(function)
        async def noted(*args: Any, **kwargs: Any) -> None:
            self._work.began()
            try:
                await function(*args, **kwargs)
            except Exception as error:  # which Bolt logs, and drops
                self._work.failed(error)
                if not isinstance(error, Reject):
                    raise

        request.context["turn"] = self._turn
        self._inner.start(noted, request)
