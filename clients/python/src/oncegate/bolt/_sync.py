"""The guard of an `App`."""

# The framework's own types are incomplete.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import contextvars
import copy
import logging
import threading
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from slack_bolt.kwargs_injection import build_required_kwargs
from slack_bolt.lazy_listener import LazyListenerRunner, ThreadLazyListenerRunner
from slack_bolt.listener.listener_completion_handler import ListenerCompletionHandler
from slack_bolt.listener.listener_error_handler import ListenerErrorHandler
from slack_bolt.util.utils import get_arg_names_of_callable

from oncegate._again import PATIENCE, Refused, enter, keep_asking_in_thread
from oncegate._errors import Busy, OncegateError, OutcomeUnknown, Reject, TurnLost
from oncegate._turn import current
from oncegate.bolt._policy import (
    PATIENCE_BEFORE_ACK,
    Action,
    Incoming,
    acknowledged,
    incoming,
    refused,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from slack_bolt import App, BoltRequest, BoltResponse
    from slack_bolt.listener import Listener
    from slack_bolt.listener.thread_runner import ThreadListenerRunner

    from oncegate._sync import Gate
    from oncegate._sync_scopes import Turn

LOG = logging.getLogger("oncegate")

# Each is a thread.
_MOST_QUEUED = 256

P = ParamSpec("P")
R = TypeVar("R")


def guard_sync(app: App, gate: Gate, wait: float, on_busy: Callable[..., object] | None) -> None:
    """See `oncegate.bolt.guard`."""
    app.listener_runner.run = _Guard(app.listener_runner, gate, wait, on_busy).run  # type: ignore[method-assign]


@dataclass
class _Call:
    """What Bolt asks its runner for."""

    runner: ThreadListenerRunner
    request: BoltRequest
    response: BoltResponse
    listener_name: str
    listener: Listener
    starting_time: float | None

    def run(self, runner: ThreadListenerRunner) -> BoltResponse | None:
        return type(runner).run(
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
        runner: ThreadListenerRunner,
        gate: Gate,
        wait: float,
        on_busy: Callable[..., object] | None,
    ) -> None:
        self._runner = runner
        self._gate = gate
        self._wait = wait
        self._on_busy = on_busy
        self._places = threading.BoundedSemaphore(_MOST_QUEUED)

    def run(
        self,
        request: BoltRequest,
        response: BoltResponse,
        listener_name: str,
        listener: Listener,
        starting_time: float | None = None,
    ) -> BoltResponse | None:
        call = _Call(self._runner, request, response, listener_name, listener, starting_time)
        came = incoming(request)
        if came is None:
            return call.run(self._runner)
        try:
            work = self._in_turn(call, came, 0, PATIENCE_BEFORE_ACK)
        except Refused as answer:
            match came.action(answer.refusal):
                case Action.ACKNOWLEDGE:
                    return acknowledged()
                case Action.QUEUE if self._start_queue(call, came, answer.refusal):
                    return acknowledged()
                case _:
                    return refused(answer.refusal)
        return refused(work.end_error) if work.end_error else work.response

    def _in_turn(self, call: _Call, came: Incoming, wait: float, patience: float) -> _Work:
        """Begins the turn and the listener. The turn ends with the last part, in its thread."""
        scope = self._gate.turn(
            came.delivery, wait=wait, patience=patience, on_unavailable=came.on_unavailable
        )
        work = _Work(call, scope)
        work.run()
        return work

    def _start_queue(self, call: _Call, came: Incoming, refusal: Exception) -> bool:
        """Waits for the turn in a thread: Bolt's own are for listeners that run. False: too many."""
        if not self._places.acquire(blocking=False):
            LOG.error("%d deliveries of Slack wait for a turn; another one was refused", _MOST_QUEUED)
            return False
        threading.Thread(target=self._queue, args=(call, came, refusal), daemon=True).start()
        return True

    def _queue(self, call: _Call, came: Incoming, refusal: Exception) -> None:
        try:
            if isinstance(refusal, Busy) and not came.is_event and self._on_busy:
                self._report_busy(call.request)
            keep_asking_in_thread(
                lambda wait: self._in_turn(call, came, wait, PATIENCE), self._wait, refusal
            )
        except OncegateError:
            LOG.exception("a delivery of Slack was acknowledged, but not handled")
        finally:
            self._places.release()

    def _report_busy(self, request: BoltRequest) -> None:
        assert self._on_busy
        try:
            arguments = build_required_kwargs(
                logger=self._runner.logger,
                required_arg_names=get_arg_names_of_callable(self._on_busy),
                request=request,
                response=None,
                next_keys_required=False,
            )
            self._on_busy(**arguments)
        except Exception:
            LOG.exception("on_busy failed; the delivery stays in the queue")


class _Work:
    """One listener with its lazy functions, which share a turn."""

    def __init__(self, call: _Call, scope: AbstractContextManager[Turn]) -> None:
        self._call = call
        self._scope = scope
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        self._running = 0
        self._error: Exception | None = None
        self.end_error: Exception | None = None
        """Why the turn did not end as it should."""
        self.response: BoltResponse | None = None

    def run(self) -> None:
        """Begins the turn, and runs everything up to the acknowledgement."""
        turn = enter(self._scope)
        self._context.run(current.set, turn)
        call = self._call
        call.request.context["turn"] = turn
        runner = copy.copy(call.runner)
        runner.listener_error_handler = _Error(self, runner.listener_error_handler)
        runner.listener_completion_handler = _Completion(self, runner.listener_completion_handler)
        runner.listener_executor = _InTurn(self, runner.listener_executor)
        self._running = 2  # the listener, and this method
        if isinstance(runner.lazy_listener_runner, ThreadLazyListenerRunner):
            # Others run lazy functions in another process.
            runner.lazy_listener_runner = _Lazy(self, turn, runner.lazy_listener_runner)
            self._running += len(call.listener.lazy_functions)
        try:
            self.response = self.in_turn(call.run, runner)
        except BaseException as error:
            self._leave(error)
            raise
        self.ended()

    def in_turn(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Calls a function that sees the turn as the current one, in any thread."""
        return self._context.copy().run(function, *args, **kwargs)

    def failed(self, error: Exception) -> None:
        """A part raised."""
        self._error = self._error or error

    def ended(self) -> None:
        """A part ended."""
        with self._lock:
            self._running -= 1
            running = self._running
        if running == 0:
            self._leave(self._error)

    def _leave(self, error: BaseException | None) -> None:
        at = error.__traceback__ if error else None
        try:
            self._scope.__exit__(type(error) if error else None, error, at)
        except (TurnLost, OutcomeUnknown) as ended:
            self.end_error = ended  # which the turn itself has logged
        except Exception as ended:
            self.end_error = ended
            LOG.exception("a turn of Slack did not end as it should")


@dataclass
class _Error(ListenerErrorHandler):
    work: _Work
    inner: ListenerErrorHandler

    def handle(self, error: Exception, request: BoltRequest, response: BoltResponse | None) -> None:
        self.work.failed(error)
        if not isinstance(error, Reject):
            self.inner.handle(error, request, response)
        elif response:
            response.status = 200  # an order of the listener, and not a fault


@dataclass
class _Completion(ListenerCompletionHandler):
    work: _Work
    inner: ListenerCompletionHandler

    def handle(self, request: BoltRequest, response: BoltResponse | None) -> None:
        try:
            self.inner.handle(request, response)
        finally:
            self.work.ended()


@dataclass
class _InTurn(Executor):
    work: _Work
    inner: Executor

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.inner.submit(self.work.in_turn, fn, *args, **kwargs)


class _Lazy(LazyListenerRunner):
    def __init__(self, work: _Work, turn: Turn, inner: LazyListenerRunner) -> None:
        self.logger = inner.logger
        self._work = work
        self._turn = turn
        self._inner = inner

    def start(self, function: Callable[..., None], request: BoltRequest) -> None:
        @wraps(function)
        def in_turn(*args: Any, **kwargs: Any) -> None:
            try:
                self._work.in_turn(function, *args, **kwargs)
            except Exception as error:
                self._work.failed(error)
                if not isinstance(error, Reject):
                    raise
            finally:
                self._work.ended()

        request.context["turn"] = self._turn
        self._inner.start(in_turn, request)
