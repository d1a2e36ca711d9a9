"""python-telegram-bot: updates in the turn of their chat."""

# The framework's own types are incomplete.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import inspect
import logging
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from telegram import Update
from telegram.ext import Application, ApplicationHandlerStop, BaseUpdateProcessor, CallbackContext

from oncegate import telegram as names
from oncegate._clock import seconds
from oncegate._errors import Reject
from oncegate._retry import PATIENCE, granted, keep_asking

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from oncegate._aio import AsyncGate
    from oncegate._clock import Time

LOG = logging.getLogger("oncegate")

_errors: ContextVar[list[Exception]] = ContextVar("oncegate_telegram_errors")


class Turns(BaseUpdateProcessor):
    """Handles each update once, and the updates of a chat one after another.

    ``ApplicationBuilder().concurrent_updates(Turns(gate, 64))``. Handlers read
    `oncegate.current_turn`. A handler that raises fails the turn, after the application's own error
    handlers. A handler with ``block=False`` outlives the turn.

    An update of a busy chat waits for at most `wait`, and meanwhile counts as one of the
    `max_concurrent_updates`.
    """

    def __init__(
        self, gate: AsyncGate, max_concurrent_updates: int = 64, *, wait: Time = 600.0
    ) -> None:
        super().__init__(max_concurrent_updates)
        self._gate = gate
        self._wait = seconds(wait)

    async def initialize(self) -> None:
        """Does nothing: the gate connects on first use."""

    async def shutdown(self) -> None:
        """Does nothing: the gate is the program's."""

    async def do_process_update(self, update: object, coroutine: Awaitable[Any]) -> None:
        """Runs the update's handlers in its turn."""
        if not isinstance(update, Update):
            await coroutine
            return
        _watch(coroutine)
        errors: list[Exception] = []
        delivery = names.delivery(update, team=str(update.get_bot().id))

        async def attempt(wait: float) -> None:
            async with granted(self._gate.turn(delivery, wait=wait, patience=PATIENCE)):
                token = _errors.set(errors)
                try:
                    await coroutine
                finally:
                    _errors.reset(token)
                if errors:
                    raise errors[0]

        try:
            await keep_asking(attempt, self._wait)
        except Exception as error:
            if error not in errors:  # which the application's error handlers have had
                raise
        finally:
            if inspect.iscoroutine(coroutine):
                coroutine.close()  # if there was no turn


def _watch(coroutine: Awaitable[Any]) -> None:
    """Has the errors of handlers reported here: the application's update never raises them."""
    if not inspect.iscoroutine(coroutine):
        return
    owner = inspect.getcoroutinelocals(coroutine).get("self")
    if isinstance(owner, Application) and _record not in owner.error_handlers:
        others = dict(owner.error_handlers)
        owner.error_handlers.clear()
        # First, because any of them may stop the rest. Not as a task, which could outlast the turn.
        owner.add_error_handler(_record, block=True)
        owner.error_handlers.update(others)


async def _record(_: object, context: CallbackContext[Any, Any, Any, Any]) -> None:
    """An error handler."""
    error = context.error
    errors = _errors.get(None)  # None outside of an update's turn, as in a job
    if errors is not None and error is not None:
        errors.append(error)
        if isinstance(error, Reject):
            raise ApplicationHandlerStop  # an order of the handler, and not a fault
    if len(context.application.error_handlers) == 1:
        # The application itself logs errors only if it has no error handler at all.
        LOG.error("the application has no error handler; its error is logged", exc_info=error)
