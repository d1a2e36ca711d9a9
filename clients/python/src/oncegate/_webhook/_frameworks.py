"""The differences between the frameworks: reading a request, and making a response."""

# The framework's own types are incomplete.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# Headers that belong to a response and not to the exchange that it was made in.
_RECORDED_HEADERS = frozenset(
    {"content-language", "content-location", "content-type", "etag", "last-modified", "location"}
)

_REQUEST = "oncegate_request"


class Framework(ABC):
    """One request of a framework."""

    module: ClassVar[str]

    def __init__(self, request: Any, arguments: list[Any]) -> None:
        self._request = request
        self._arguments = arguments

    @classmethod
    @abstractmethod
    def find(cls, arguments: list[Any]) -> Any:
        """The request that is handled now, or ``None``."""

    @property
    def headers(self) -> Mapping[str, str]:
        """The request's headers."""
        headers: Mapping[str, str] = self._request.headers
        return headers

    @abstractmethod
    def body(self) -> bytes:
        """The request's body, for a handler in a thread."""

    async def body_async(self) -> bytes:
        """The request's body, for a coroutine."""
        return self.body()

    @abstractmethod
    def record(self, value: Any) -> dict[str, Any]:
        """The record of a handler's value: status, selected headers, and body in base64."""

    @abstractmethod
    def error_status(self, error: Exception) -> int | None:
        """The status of an exception that the framework answers."""

    @abstractmethod
    def respond(self, status: int, headers: dict[str, str], body: bytes) -> Any:
        """Makes a response."""

    def replay(self, record: dict[str, Any]) -> Any:
        """Makes the same response again."""
        return self.respond(record["status"], record["headers"], b64decode(record["body"]))


def _record(status: int, headers: Iterable[tuple[str, str]], body: bytes | None) -> dict[str, Any]:
    if body is None:
        return status_alone(status)
    kept = {name: value for name, value in headers if name.lower() in _RECORDED_HEADERS}
    return {"status": status, "headers": kept, "body": b64encode(body).decode()}


def status_alone(status: int) -> dict[str, Any]:
    """The record of a response whose body is not stored."""
    return {"status": status, "headers": {}, "body": ""}


class Starlette(Framework):
    """Starlette, and FastAPI, whose handlers also return plain values."""

    module = "starlette"

    @classmethod
    def find(cls, arguments: list[Any]) -> Any:
        from starlette.requests import Request

        return next((item for item in arguments if isinstance(item, Request)), None)

    def body(self) -> bytes:
        from anyio.from_thread import run

        return run(self.body_async)

    async def body_async(self) -> bytes:
        body: bytes = await self._request.body()
        return body

    def record(self, value: Any) -> dict[str, Any]:
        from starlette.responses import Response

        if isinstance(value, Response):
            body = getattr(value, "body", None)  # a stream has none
            return _record(value.status_code, value.headers.items(), body and bytes(body))
        return self._record_value(value)

    def _record_value(self, value: Any) -> dict[str, Any]:
        """FastAPI makes the response of a plain value by its route, also for a duplicate."""
        from fastapi.encoders import jsonable_encoder

        route, injected = self._request.scope.get("route"), self._injected()
        status = injected is not None and injected.status_code
        record = _record(
            status or getattr(route, "status_code", None) or 200,
            () if injected is None else injected.headers.items(),
            b"",
        )
        with suppress(TypeError, ValueError, RecursionError):  # else its status alone is replayed
            record["value"] = jsonable_encoder(value)
        return record

    def _injected(self) -> Any:
        """The response whose status and headers a handler of FastAPI may set."""
        from starlette.responses import Response

        return next((item for item in self._arguments if isinstance(item, Response)), None)

    def error_status(self, error: Exception) -> int | None:
        from starlette.exceptions import HTTPException

        return error.status_code if isinstance(error, HTTPException) else None

    def respond(self, status: int, headers: dict[str, str], body: bytes) -> Any:
        from starlette.responses import Response

        return Response(body, status, headers)

    def replay(self, record: dict[str, Any]) -> Any:
        if "value" not in record:
            return super().replay(record)
        injected = self._injected()
        if injected is not None:
            injected.status_code = record["status"]
            injected.headers.update(record["headers"])
        return record["value"]


class Flask(Framework):
    """Flask: the request is not an argument."""

    module = "flask"

    @classmethod
    def find(cls, arguments: list[Any]) -> Any:
        from flask import has_request_context, request

        return request if has_request_context() else None

    def body(self) -> bytes:
        body: bytes = self._request.get_data()
        return body

    def record(self, value: Any) -> dict[str, Any]:
        from flask import make_response

        response = make_response(value)
        body = None if response.is_streamed else response.get_data()
        return _record(response.status_code, response.headers.items(), body)

    def respond(self, status: int, headers: dict[str, str], body: bytes) -> Any:
        from flask import Response

        return Response(body, status, headers)

    def error_status(self, error: Exception) -> int | None:
        from werkzeug.exceptions import HTTPException

        return error.get_response().status_code if isinstance(error, HTTPException) else None


class Django(Framework):
    """Django: functions, and methods of class-based views."""

    module = "django"

    @classmethod
    def find(cls, arguments: list[Any]) -> Any:
        from django.http import HttpRequest  # type: ignore[import-untyped]

        return next((item for item in arguments if isinstance(item, HttpRequest)), None)

    def body(self) -> bytes:
        body: bytes = self._request.body
        return body

    def record(self, value: Any) -> dict[str, Any]:
        body = None if value.streaming else value.content
        return _record(value.status_code, value.items(), body)

    def respond(self, status: int, headers: dict[str, str], body: bytes) -> Any:
        from django.http import HttpResponse

        return HttpResponse(body, status=status, headers=headers)

    def error_status(self, error: Exception) -> int | None:
        for kind, status in self._answered():
            if isinstance(error, kind):
                return status
        return None

    @staticmethod
    def _answered() -> tuple[tuple[type[Exception], int], ...]:
        from django.core.exceptions import (  # type: ignore[import-untyped]
            BadRequest,
            PermissionDenied,
            SuspiciousOperation,
        )
        from django.http import Http404
        from django.http.multipartparser import MultiPartParserError  # type: ignore[import-untyped]

        return (
            (Http404, 404),
            (PermissionDenied, 403),
            (BadRequest, 400),
            (SuspiciousOperation, 400),
            (MultiPartParserError, 400),
        )


_FRAMEWORKS: tuple[type[Framework], ...] = (Starlette, Django, Flask)


def find(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Framework:
    """The request that a handler was called for. Takes the argument of `with_request` away."""
    arguments = [*args, *kwargs.values()]
    kwargs.pop(_REQUEST, None)
    for framework in _FRAMEWORKS:
        if framework.module in sys.modules:
            request = framework.find(arguments)
            if request is not None:
                return framework(request, arguments)
    raise TypeError("a webhook is a handler of FastAPI, Starlette, Flask or Django")


def with_request(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Makes FastAPI pass the request, which it gives only to handlers that declare it."""
    if "fastapi" in sys.modules:
        from starlette.requests import Request

        try:  # older versions of FastAPI evaluate annotations in the module of the wrapper
            signature = inspect.signature(endpoint, eval_str=True)
        except NameError:
            signature = inspect.signature(endpoint)
        parameter = inspect.Parameter(_REQUEST, inspect.Parameter.KEYWORD_ONLY, annotation=Request)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        endpoint.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*parameters, parameter]
        )
    return endpoint
