"""One delivery over HTTP: the response of each outcome of its turn.

A response is stored as the turn's result, for duplicates: JSON with its status, selected headers and
body in base64, the same in every language. FastAPI's plain values are added as ``value``.
"""

from __future__ import annotations

import inspect
from math import ceil
from typing import TYPE_CHECKING, Any, cast

from oncegate._codec import JsonCodec
from oncegate._errors import (
    Busy,
    Duplicate,
    EpicMismatch,
    InProgress,
    Invalid,
    Outcome,
    OutcomeUnknown,
    Overloaded,
    PayloadMismatch,
    Ran,
    Reject,
    TurnLost,
    Unavailable,
)
from oncegate._retry import retry_after
from oncegate._webhook._frameworks import Framework, find, status_alone

if TYPE_CHECKING:
    from collections.abc import Callable

    from oncegate._delivery import Delivery
    from oncegate._options import TurnOptions
    from oncegate._turn import TurnView

# Of a turn, in bytes.
_LONGEST_RESULT = 64 * 1024

# Senders wait 10 s and longer for a response.
_PATIENCE = 5.0
_WAIT_WITHOUT_REDELIVERY = 5.0

_NOTHING: Any = object()


class ResponseError(Exception):
    """The handler returned a status of 500 or more: the turn fails, and that is the response."""


ANSWERED = (
    ResponseError,
    Unavailable,
    Overloaded,
    TurnLost,
    OutcomeUnknown,
    PayloadMismatch,
    EpicMismatch,
    Invalid,
)
"""Errors of a turn that have a response. The handler's own are the framework's to answer."""


class Exchange:
    """A request, and what its handler returned."""

    def __init__(self, framework: Framework) -> None:
        self._framework = framework
        self._value = _NOTHING
        self._error: Exception | None = None
        """The error that the handler raised."""

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Exchange:
        """The exchange that a handler is called for."""
        return cls(find(args, kwargs))

    def body(self) -> bytes:
        """The request's body, for a handler in a thread."""
        return self._framework.body()

    async def body_async(self) -> bytes:
        """The request's body, for a coroutine."""
        return await self._framework.body_async()

    def delivery(self, make: Callable[..., Delivery], body: bytes) -> Delivery:
        """Makes the delivery of headers and body, or of the body alone."""
        if _takes_headers(make):
            return make(self._framework.headers, body)
        return make(body)

    def handled(self, value: Any) -> dict[str, Any]:
        """Returns the record of the handler's value, for duplicates. Raises if it fails the turn."""
        self._value = value
        record = self._framework.record(value)
        status = record["status"]
        if status >= 500:
            raise ResponseError(f"the handler answered {status}")
        return record if _can_be_stored(record) else status_alone(status)

    def raised(self, error: Exception, turn: TurnView) -> dict[str, Any]:
        """Returns the record of the handler's error, for duplicates. Raises if it fails the turn."""
        if isinstance(error, TurnLost):
            turn.check()  # raises one that is not the handler's own
        self._error = error
        status = self._framework.error_status(error)
        if status is None or status >= 500:
            raise error
        return status_alone(status)

    def answer(self, outcome: Outcome[Any]) -> Any:
        """The response of an outcome. Raises an error that the framework answers."""
        if isinstance(outcome, Ran) and self._error and not isinstance(self._error, Reject):
            raise self._error
        if self._value is not _NOTHING:
            return self._value
        match outcome:
            case Duplicate({"status": int(), "headers": dict(), "body": str()} as record):
                return self._framework.replay(cast("dict[str, Any]", record))
            case Busy() | InProgress():
                return self._retry_later(outcome.retry_after)
            case _:
                return self._framework.respond(200, {}, b"")

    def answer_error(self, error: Exception) -> Any:
        """The response of one of `ANSWERED`."""
        if error is self._error:
            raise error
        match error:
            case ResponseError():
                return self._value
            case PayloadMismatch():
                return self._framework.respond(422, {}, b"")
            case EpicMismatch():
                return self._framework.respond(409, {}, b"")
            case Invalid():
                return self._framework.respond(400, {}, b"")
            case _:
                return self._retry_later(retry_after(error))

    def _retry_later(self, seconds: float) -> Any:
        return self._framework.respond(503, {"retry-after": str(max(1, ceil(seconds)))}, b"")


def with_defaults(options: TurnOptions, delivery: Delivery) -> TurnOptions:
    """The options of a delivery's turn."""
    wait = 0.0 if delivery.redelivers else _WAIT_WITHOUT_REDELIVERY
    return {"patience": _PATIENCE, "wait": wait, **options, "codec": JsonCodec()}


def _can_be_stored(record: dict[str, Any]) -> bool:
    try:
        stored, _ = JsonCodec().encode(record)
    except (TypeError, ValueError, RecursionError):
        return False
    return len(stored) <= _LONGEST_RESULT


def _takes_headers(make: Callable[..., Delivery]) -> bool:
    positional = [
        parameter
        for parameter in inspect.signature(make).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    return len(positional) > 1
