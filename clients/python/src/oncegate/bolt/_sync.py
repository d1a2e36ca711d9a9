"""The guard of an `App`."""

# The framework's own types are incomplete.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import contextvars
import copy
import logging
import threading
from concurrent.futures import CancelledError, Executor, Future
from dataclasses import dataclass
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from slack_bolt.kwargs_injection import build_required_kwargs
from slack_bolt.lazy_listener import ThreadLazyListenerRunner
from slack_bolt.listener.listener_error_handler import ListenerErrorHandler
from slack_bolt.util.utils import get_arg_names_of_callable

from oncegate._errors import Busy, OutcomeUnknown, Reject, TurnLost
from oncegate._retry import PATIENCE, Refused, enter, keep_asking_in_thread
from oncegate._turn import current
from oncegate.bolt._policy import (
    PATIENCE_BEFORE_ACK,
    Action,
    Incoming,
    acknowledged,
    read,
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


def guard_sync(app: App, gate: Gate, wait: float, on_busy: Callable[..., object] | None) -> None:
    """See `oncegate.bolt.guard`."""
    app.listener_runner.run = _Guard(app.listener_runner, gate, wait, on_busy).run  # type: ignore[method-assign]


@dataclass
class _Call:
    """A call of Bolt to its runner."""

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
        incoming = read(request)
        if incoming is None:
            return call.run(self._runner)
        try:
            work = self._in_turn(call, incoming, 0, PATIENCE_BEFORE_ACK)
        except Refused as answer:
            match incoming.action(answer.refusal, self._wait):
                case Action.ACKNOWLEDGE:
                    return acknowledged()
                case Action.QUEUE if self._start_queue(call, incoming, answer.refusal):
                    return acknowledged()
                case _:
                    return refused(answer.refusal)
        except Exception as error:
            LOG.exception("a delivery of Slack failed in its turn")
            return refused(error)
        return refused(work.end_error) if work.end_error else work.response

    def _in_turn(self, call: _Call, incoming: Incoming, wait: float, patience: float) -> _Work:
        """Begins the turn and the listener. The turn ends with the last part."""
        scope = self._gate.turn(
            incoming.delivery, wait=wait, patience=patience, on_unavailable=incoming.on_unavailable
        )
        work = _Work(call, scope)
        work.run()
        return work

    def _start_queue(self, call: _Call, incoming: Incoming, refusal: Exception) -> bool:
        """Waits for the turn in a thread: Bolt's own are for listeners that run. False: too many."""
        if not self._places.acquire(blocking=False):
            LOG.error("%d deliveries of Slack wait for a turn; another one was refused", _MOST_QUEUED)
            return False
        queue = threading.Thread(
            target=self._queue,
            args=(call, incoming, refusal),
            name="oncegate-slack-queue",
            daemon=True,
        )
        try:
            queue.start()
        except RuntimeError:
            self._places.release()
            LOG.exception("no thread for a delivery of Slack that waits for a turn; it was refused")
            return False
        return True

    def _queue(self, call: _Call, incoming: Incoming, refusal: Exception) -> None:
        try:
            if isinstance(refusal, Busy) and not incoming.delivery.redelivers and self._on_busy:
                self._report_busy(call.request)
            keep_asking_in_thread(
                lambda wait: self._in_turn(call, incoming, wait, PATIENCE), self._wait, refusal
            )
        except Exception:
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
        self._running = 1  # this thread
        self._error: BaseException | None = None
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
        runner.listener_executor = _Parts(self, runner.listener_executor)
        if isinstance(runner.lazy_listener_runner, ThreadLazyListenerRunner):
            # Others run lazy functions in another process.
            runner.lazy_listener_runner = _Lazy(self, turn, runner.lazy_listener_runner)
        try:
            self.response = self._context.copy().run(call.run, runner)
        except BaseException as error:
            self.failed(error)
            raise
        finally:
            self._ended()

    def submit(self, executor: Executor, part: Callable[[], object]) -> Future[None]:
        """Runs a part in another thread, where the turn is the current one too."""

        begun = threading.Lock()  # an executor may keep a part that it could not start

        def run() -> None:
            if not begun.acquire(blocking=False):
                return
            try:
                self._context.copy().run(part)
            except BaseException as error:
                self.failed(error)
                LOG.exception("a delivery of Slack failed in its turn")  # Bolt drops the future
                raise
            finally:
                self._ended()

        def done(future: Future[None]) -> None:
            if future.cancelled() and begun.acquire(blocking=False):
                self.failed(CancelledError())
                LOG.error("a listener of Slack was dropped by its executor; its turn fails")
                self._ended()

        with self._lock:
            self._running += 1
        try:
            future = executor.submit(run)
        except BaseException:
            if begun.acquire(blocking=False):
                self._ended()
            raise
        future.add_done_callback(done)
        return future

    def failed(self, error: BaseException) -> None:
        """A part raised. What one rejects is not done while another one fails."""
        if self._error is None or isinstance(self._error, Reject):
            self._error = error

    def _ended(self) -> None:
        with self._lock:
            self._running -= 1
            running = self._running
        if running == 0:
            self._leave(self._error)

    def _leave(self, error: BaseException | None) -> None:
        """Ends the turn, in the thread of its last part."""
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
class _Parts(Executor):
    """Bolt starts the listener and the lazy functions in executors."""

    work: _Work
    inner: Executor

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.work.submit(self.inner, partial(fn, *args, **kwargs))


class _Lazy(ThreadLazyListenerRunner):
    def __init__(self, work: _Work, turn: Turn, inner: ThreadLazyListenerRunner) -> None:
        super().__init__(inner.logger, _Parts(work, inner.executor))
        self._work = work
        self._turn = turn

    def start(self, function: Callable[..., None], request: BoltRequest) -> None:
        @wraps(function)
        def noted(*args: Any, **kwargs: Any) -> None:
            try:
                function(*args, **kwargs)
            except Exception as error:  # which Bolt logs, and drops
                self._work.failed(error)
                if not isinstance(error, Reject):
                    raise

        request.context["turn"] = self._turn
        super().start(noted, request)
