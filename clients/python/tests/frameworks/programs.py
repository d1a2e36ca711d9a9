"""A program of each web framework with one webhook, and how a request reaches it here."""

# Django and the test clients have incomplete types.
# mypy: disable-error-code="import-untyped, untyped-decorator"
# pyright: basic, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import django
import httpx
from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.test import AsyncClient, Client, override_settings
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from fastapi import FastAPI, HTTPException
from fastapi.responses import JSONResponse
from flask import Flask, jsonify
from flask import request as flask_request
from starlette.applications import Starlette
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response
from starlette.routing import Route
from werkzeug.exceptions import NotFound

from oncegate import AsyncGate, Gate, current_turn, github

if TYPE_CHECKING:
    from starlette.requests import Request

settings.configure(SECRET_KEY="x", ALLOWED_HOSTS=["*"], LOGGING_CONFIG=None)
django.setup()


class Script:
    """What the handler does, and what it did."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.status = 201
        self.pad = 0
        self.error: Exception | None = None
        self.not_found: Exception = Exception()
        """What the framework answers 404."""
        self.go = threading.Event()
        self.go.set()

    def begin(self, body: Any) -> None:
        assert current_turn().held
        self.bodies.append(body)

    def end(self) -> tuple[dict[str, Any], int, dict[str, str]]:
        if self.error:
            raise self.error
        runs = len(self.bodies)
        return {"runs": runs, "pad": "x" * self.pad}, self.status, {"Location": f"/{runs}"}

    def handle(self, body: Any) -> tuple[dict[str, Any], int, dict[str, str]]:
        self.begin(body)
        while not self.go.wait(0.01):
            current_turn().check()
        return self.end()

    async def handle_async(self, body: Any) -> tuple[dict[str, Any], int, dict[str, str]]:
        self.begin(body)
        while not self.go.is_set():  # noqa: ASYNC110 - threads wait for it too
            await asyncio.sleep(0.01)
        return self.end()


@dataclass
class Answer:
    """A response."""

    status: int
    headers: Any
    body: bytes


Post: TypeAlias = Callable[[Mapping[str, str], bytes], Awaitable[Answer]]
Program: TypeAlias = Callable[[AsyncGate, Gate, Script], Post]


def asgi(app: Any) -> Post:
    async def post(headers: Mapping[str, str], body: bytes) -> Answer:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            response = await client.post("/hook", headers=headers, content=body)
        return Answer(response.status_code, response.headers, response.content)

    return post


def fastapi(gate: AsyncGate, _: Gate, script: Script) -> Post:
    script.not_found = HTTPException(404, {"no": "such issue"}, {"x-why": "test"})
    app = FastAPI()

    @app.post("/hook")
    @gate.webhook(github.delivery)
    async def hook(payload: dict[str, Any]) -> JSONResponse:
        content, status, headers = await script.handle_async(payload)
        return JSONResponse(content, status, headers)

    return asgi(app)


def fastapi_in_threads(_: AsyncGate, gate: Gate, script: Script) -> Post:
    script.not_found = HTTPException(404, "no such issue")
    app = FastAPI()

    @app.post("/hook")
    @gate.webhook(github.delivery)
    def hook(payload: dict[str, Any]) -> JSONResponse:
        content, status, headers = script.handle(payload)
        return JSONResponse(content, status, headers)

    return asgi(app)


def starlette(gate: AsyncGate, _: Gate, script: Script) -> Post:
    script.not_found = StarletteHTTPException(404, "no such issue")

    @gate.webhook(github.delivery)
    async def hook(request: Request) -> Response:
        content, status, headers = await script.handle_async(await request.json())
        return Response(json.dumps(content), status, headers, "application/json")

    return asgi(Starlette(routes=[Route("/hook", hook, methods=["POST"])]))


def flask(_: AsyncGate, gate: Gate, script: Script) -> Post:
    script.not_found = NotFound("no such issue")
    app = Flask("test")

    @app.post("/hook")
    @gate.webhook(github.delivery)
    def hook() -> Any:
        content, status, headers = script.handle(flask_request.get_json())
        return jsonify(content), status, headers

    def send(headers: Mapping[str, str], body: bytes) -> Answer:
        response = app.test_client().post("/hook", headers=dict(headers), data=body)
        return Answer(response.status_code, response.headers, response.data)

    async def post(headers: Mapping[str, str], body: bytes) -> Answer:
        return await asyncio.to_thread(send, headers, body)

    return post


class _Urls:
    """A URL configuration without a module."""

    def __init__(self, view: Callable[..., Any]) -> None:
        self.urlpatterns = [path("hook", view)]


def django_in_threads(_: AsyncGate, gate: Gate, script: Script) -> Post:
    script.not_found = Http404("no such issue")

    @csrf_exempt
    @gate.webhook(github.delivery)
    def hook(request: HttpRequest) -> HttpResponse:
        content, status, headers = script.handle(json.loads(request.body))
        return JsonResponse(content, status=status, headers=headers)

    urls = _Urls(hook)

    def send(headers: Mapping[str, str], body: bytes) -> Answer:
        client = Client(raise_request_exception=False)
        response = client.post("/hook", body, "application/json", headers=dict(headers))
        return Answer(response.status_code, response.headers, response.content)

    async def post(headers: Mapping[str, str], body: bytes) -> Answer:
        with override_settings(ROOT_URLCONF=urls):
            return await asyncio.to_thread(send, headers, body)

    return post


def django_async(gate: AsyncGate, _: Gate, script: Script) -> Post:
    script.not_found = Http404("no such issue")

    @csrf_exempt
    @gate.webhook(github.delivery)
    async def hook(request: HttpRequest) -> HttpResponse:
        content, status, headers = await script.handle_async(json.loads(request.body))
        return JsonResponse(content, status=status, headers=headers)

    urls = _Urls(hook)

    async def post(headers: Mapping[str, str], body: bytes) -> Answer:
        with override_settings(ROOT_URLCONF=urls):
            client = AsyncClient(raise_request_exception=False)
            response = await client.post("/hook", body, "application/json", headers=dict(headers))
            return Answer(response.status_code, response.headers, response.content)

    return post


PROGRAMS: list[Program] = [
    fastapi,
    fastapi_in_threads,
    starlette,
    flask,
    django_in_threads,
    django_async,
]
