"""One delivery over HTTP: which outcome of its turn has which response."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, cast

from oncegate._again import retry_after
from oncegate._errors import (
    Busy,
    Duplicate,
    InProgress,
    Outcome,
    OutcomeUnknown,
    Overloaded,
    PayloadMismatch,
    Ran,
    Reject,
    TurnLost,
    Unavailable,
)
from oncegate._webhook._frameworks import Framework, find

if TYPE_CHECKING:
    from collections.abc import Callable

    from oncegate._delivery import Delivery

_NOTHING: Any = object()


class ResponseError(Exception):
    """The handler returned a status of 500 or more: the turn fails, and that is the response."""


ANSWERED = (ResponseError, Unavailable, Overloaded, TurnLost, OutcomeUnknown, PayloadMismatch)
"""Errors of a turn that have a response. The handler's own are the framework's to answer."""


class Exchange:
    """A request, and what its handler returned."""

    def __init__(self, framework: Framework) -> None:
        self._framework = framework
        self._value = _NOTHING
        self._error: Exception | None = None
        """What the handler raised."""

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
        """The handler returned. Returns what a duplicate replays."""
        self._value = value
        status = self._framework.status(value)
        if status >= 500:
            raise ResponseError(f"the handler answered {status}")
        return self._framework.record(value)

    def raised(self, error: Exception) -> dict[str, Any]:
        """The handler raised. Returns what a duplicate replays, or raises: then the turn fails."""
        self._error = error
        record = self._framework.record_error(error)
        if record is None:
            raise error
        return record

    def answer(self, outcome: Outcome[Any]) -> Any:
        """The response of an outcome. Raises an error that the framework answers."""
        if isinstance(outcome, Ran) and self._error and not isinstance(self._error, Reject):
            raise self._error
        if self._value is not _NOTHING:
            return self._value
        match outcome:
            case Duplicate(result) if isinstance(result, dict) and result:
                return self._framework.replay(cast("dict[str, Any]", result))
            case Busy() | InProgress():
                return self._again(outcome.retry_after)
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
            case _:
                return self._again(retry_after(error))

    def _again(self, seconds: float) -> Any:
        return self._framework.respond(503, {"retry-after": str(max(1, round(seconds)))}, b"")


def _takes_headers(make: Callable[..., Delivery]) -> bool:
    positional = [
        parameter
        for parameter in inspect.signature(make).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        and parameter.default is parameter.empty
    ]
    return len(positional) > 1
