"""What differs between the frameworks: a request's headers and body, and how a response is made.

A response is recorded as JSON, for duplicates: status, selected headers and body. An exception that the
framework answers is recorded instead, and raised again: the framework makes the same answer of it.
"""

# The framework's own types are incomplete.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# Headers that belong to a response and not to the exchange that it was made in.
_RECORDED_HEADERS = frozenset(
    {"content-language", "content-location", "content-type", "etag", "last-modified", "location"}
)
# A turn's result has at most 64 KiB. Base64 makes 4 bytes of 3.
_LONGEST_BODY = 45 * 1024

_REQUEST = "oncegate_request"


class Framework(ABC):
    """One request of a framework."""

    module: ClassVar[str]

    def __init__(self, request: Any) -> None:
        self._request = request

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
    def status(self, value: Any) -> int:
        """The status of what a handler returned."""

    @abstractmethod
    def record(self, value: Any) -> dict[str, Any]:
        """What a handler returned, for `replay`."""

    @abstractmethod
    def respond(self, status: int, headers: dict[str, str], body: bytes) -> Any:
        """Makes a response."""

    @abstractmethod
    def read_error(self, error: Exception) -> tuple[int, Any, Mapping[str, str] | None] | None:
        """Status, detail and headers of an exception that the framework answers; else ``None``."""

    @abstractmethod
    def make_error(self, status: int, detail: Any, headers: dict[str, str] | None) -> Exception:
        """Makes an exception that the framework answers."""

    def record_error(self, error: Exception) -> dict[str, Any] | None:
        """What a handler raised, for `replay`; ``None`` if that is a failure."""
        answered = self.read_error(error)
        if answered is None or answered[0] >= 500:
            return None
        status, detail, headers = answered
        return {"raises": [status, detail, headers and dict(headers)]}

    def replay(self, record: dict[str, Any]) -> Any:
        """Makes the same response again, or raises the same exception."""
        if "raises" in record:
            raise self.make_error(*record["raises"])
        return self.respond(record["status"], record["headers"], b64decode(record["body"]))


def _record(status: int, headers: Iterable[tuple[str, str]], body: bytes | None) -> dict[str, Any]:
    kept = {name: value for name, value in headers if name.lower() in _RECORDED_HEADERS}
    if body is None or len(body) > _LONGEST_BODY:
        body, kept = b"", {}  # a duplicate gets the status alone
    return {"status": status, "headers": kept, "body": b64encode(body).decode()}


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

    def status(self, value: Any) -> int:
        from starlette.responses import Response

        return value.status_code if isinstance(value, Response) else 200

    def record(self, value: Any) -> dict[str, Any]:
        from starlette.responses import Response

        if isinstance(value, Response):
            body = getattr(value, "body", None)  # a stream has none
            return _record(value.status_code, value.headers.items(), body and bytes(body))
        from fastapi.encoders import jsonable_encoder

        return {"value": jsonable_encoder(value)}

    def respond(self, status: int, headers: dict[str, str], body: bytes) -> Any:
        from starlette.responses import Response

        return Response(body, status, headers)

    def read_error(self, error: Exception) -> tuple[int, Any, Mapping[str, str] | None] | None:
        from starlette.exceptions import HTTPException

        if isinstance(error, HTTPException):
            return error.status_code, error.detail, error.headers
        return None

    def make_error(self, status: int, detail: Any, headers: dict[str, str] | None) -> Exception:
        if "fastapi" in sys.modules:  # its exception is one of Starlette's too
            import fastapi

            return fastapi.HTTPException(status, detail, headers)
        from starlette.exceptions import HTTPException

        return HTTPException(status, detail, headers)

    def replay(self, record: dict[str, Any]) -> Any:
        return record["value"] if "value" in record else super().replay(record)


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

    def status(self, value: Any) -> int:
        from flask import make_response

        return make_response(value).status_code

    def record(self, value: Any) -> dict[str, Any]:
        from flask import make_response

        response = make_response(value)
        body = None if response.is_streamed else response.get_data()
        return _record(response.status_code, response.headers.items(), body)

    def respond(self, status: int, headers: dict[str, str], body: bytes) -> Any:
        from flask import Response

        return Response(body, status, headers)

    def read_error(self, error: Exception) -> tuple[int, Any, Mapping[str, str] | None] | None:
        from werkzeug.exceptions import HTTPException

        if isinstance(error, HTTPException):
            return error.get_response().status_code, error.description, None
        return None

    def make_error(self, status: int, detail: Any, headers: dict[str, str] | None) -> Exception:
        from werkzeug.exceptions import HTTPException, default_exceptions

        error = default_exceptions.get(status, HTTPException)(detail)
        error.code = status
        return error

    def record_error(self, error: Exception) -> dict[str, Any] | None:
        response = getattr(error, "response", None)  # of abort(response)
        record = super().record_error(error)
        return self.record(response) if record and response else record


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

    def status(self, value: Any) -> int:
        status: int = value.status_code
        return status

    def record(self, value: Any) -> dict[str, Any]:
        body = None if value.streaming else value.content
        return _record(value.status_code, value.items(), body)

    def respond(self, status: int, headers: dict[str, str], body: bytes) -> Any:
        from django.http import HttpResponse

        return HttpResponse(body, status=status, headers=headers)

    def read_error(self, error: Exception) -> tuple[int, Any, Mapping[str, str] | None] | None:
        for kind, status in self._answered():
            if isinstance(error, kind):
                return status, str(error), None
        return None

    def make_error(self, status: int, detail: Any, headers: dict[str, str] | None) -> Exception:
        return next(kind for kind, of in self._answered() if of == status)(detail)

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
                return framework(request)
    raise TypeError("a webhook is a handler of FastAPI, Starlette, Flask or Django")


def with_request(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Makes FastAPI pass the request, which it gives only to handlers that declare it."""
    if "fastapi" in sys.modules:
        from starlette.requests import Request

        signature = inspect.signature(endpoint)
        parameter = inspect.Parameter(_REQUEST, inspect.Parameter.KEYWORD_ONLY, annotation=Request)
        parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        endpoint.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*parameters, parameter]
        )
    return endpoint
