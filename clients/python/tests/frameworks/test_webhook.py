"""``@gate.webhook`` in each framework: the same requests have the same answers."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from fastapi import Response as InjectedResponse
from pydantic import BaseModel

from oncegate import (
    AsyncGate,
    Busy,
    Delivery,
    Gate,
    Invalid,
    Overloaded,
    PayloadMismatch,
    Reject,
    Session,
    TurnLost,
    Unavailable,
    github,
)

from .conftest import until, vector
from .programs import PROGRAMS, Answer, Post, Script, asgi

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from oncegate import AsyncTurn
    from oncegate.testing import Server


@pytest_asyncio.fixture
async def gates(server: Server) -> AsyncIterator[tuple[AsyncGate, Gate]]:
    with Gate(server.address, ttl=30) as sync_gate:
        async with AsyncGate(server.address, ttl=30) as gate:
            yield gate, sync_gate


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture(params=PROGRAMS, ids=lambda program: program.__name__)
def post(request: pytest.FixtureRequest, gates: tuple[AsyncGate, Gate], script: Script) -> Post:
    program: Post = request.param(*gates, script)
    return program


def issue(delivery: str = "72d3162e-cc78-11e3-81ab-4c9367dc0958") -> tuple[dict[str, str], bytes]:
    """Headers and body of a webhook about an issue."""
    found = vector("github", "issue")
    headers = found["headers"] | {
        "X-GitHub-Delivery": delivery,
        "Content-Type": "application/json",
    }
    return headers, json.dumps(found["body"]).encode()


def runs(answer: Answer) -> int:
    count: int = json.loads(answer.body)["runs"]
    return count


async def test_a_duplicate_gets_the_same_answer(post: Post, script: Script) -> None:
    headers, body = issue()
    first = await post(headers, body)
    again = await post(headers, body)
    assert script.bodies == [json.loads(body)]
    assert (first.status, runs(first)) == (201, 1)
    assert (again.status, again.body) == (first.status, first.body)
    for name in ("location", "content-type"):
        assert again.headers[name] == first.headers[name]


async def test_a_client_error_settles_the_event(post: Post, script: Script) -> None:
    script.status = 404
    assert [(await post(*issue())).status for _ in range(2)] == [404, 404]
    assert len(script.bodies) == 1


async def test_a_server_error_fails_the_turn(post: Post, script: Script) -> None:
    script.status = 502
    failed = await post(*issue())
    assert (failed.status, runs(failed)) == (502, 1)
    script.status = 200
    retried = await post(*issue())
    assert (retried.status, runs(retried)) == (200, 2)


async def test_an_exception_fails_the_turn(post: Post, script: Script) -> None:
    script.error = RuntimeError("boom")
    assert (await post(*issue())).status == 500
    script.error = None
    assert (await post(*issue())).status == 201
    assert len(script.bodies) == 2


@pytest.mark.parametrize(
    "error",
    [
        PayloadMismatch(),
        Unavailable("nested"),
        Overloaded("nested", 1),
        Busy("nested", 1, 1),
        Invalid("nested", "nested"),
        TurnLost("nested"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_refusal_that_the_handler_raises_fails_the_turn(
    post: Post, script: Script, error: Exception
) -> None:
    script.error = error
    assert (await post(*issue())).status == 500
    script.error = None
    assert (await post(*issue())).status == 201
    assert len(script.bodies) == 2


async def test_an_http_error_of_the_framework_settles_the_event(
    post: Post, script: Script, gates: tuple[AsyncGate, Gate]
) -> None:
    script.error = script.not_found
    first = await post(*issue())
    script.error = None
    again = await post(*issue())
    assert (first.status, again.status) == (404, 404)
    assert (again.body, len(script.bodies)) == (b"", 1)
    seen = await gates[0].seen(github.delivery(*issue()), include_result=True)
    assert seen.result == {"status": 404, "headers": {}, "body": ""}


async def test_a_duplicate_of_another_turn_is_acknowledged(
    post: Post, script: Script, gates: tuple[AsyncGate, Gate]
) -> None:
    async def handle(_: AsyncTurn) -> dict[str, Any]:
        return {"status": "a result that is no response"}

    await gates[0].run(handle, github.delivery(*issue()))
    answer = await post(*issue())
    assert (answer.status, answer.body, script.bodies) == (200, b"", [])


async def test_a_rejected_delivery_is_done(post: Post, script: Script) -> None:
    script.error = Reject("not for us")
    assert [(await post(*issue())).status for _ in range(2)] == [200, 200]
    assert len(script.bodies) == 1


async def test_in_progress_and_busy(
    post: Post, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncegate._webhook._exchange._WAIT_WITHOUT_REDELIVERY", 0)
    script.go.clear()
    first = asyncio.ensure_future(post(*issue()))
    await until(lambda: script.bodies)
    for delivery in ("72d3162e-cc78-11e3-81ab-4c9367dc0958", "another of the same issue"):
        refused = await post(*issue(delivery))
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
    script.go.set()
    assert (await first).status == 201
    assert (await post(*issue("another of the same issue"))).status == 201
    assert len(script.bodies) == 2


async def test_what_its_sender_does_not_redeliver_waits(
    post: Post, script: Script, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncegate._webhook._exchange._WAIT_WITHOUT_REDELIVERY", 30)
    script.go.clear()
    first = asyncio.ensure_future(post(*issue()))
    await until(lambda: script.bodies)
    second = asyncio.ensure_future(post(*issue("another of the same issue")))
    await until(lambda: server.waiting() == 1)
    script.go.set()
    assert [answer.status for answer in await asyncio.gather(first, second)] == [201, 201]


async def test_the_server_is_away(post: Post, script: Script, server: Server) -> None:
    server.kill()
    refused = await post(*issue())
    assert (refused.status, script.bodies) == (503, [])
    server.start()
    assert (await post(*issue())).status == 201


async def test_a_lost_turn_is_refused(
    post: Post, script: Script, server: Server, gates: tuple[AsyncGate, Gate]
) -> None:
    script.go.clear()
    first = asyncio.ensure_future(post(*issue()))
    await until(lambda: script.bodies)
    server.lose(Session("21", "21:octo/repo:5"))
    script.go.set()
    assert (await first).status == 503
    seen = await gates[0].seen(github.delivery(*issue()))
    assert seen.state == "IN_PROGRESS"  # until its claim lapses; nothing is stored


async def test_a_loss_that_the_handler_notices_is_refused(
    post: Post, script: Script, server: Server
) -> None:
    script.go.clear()
    answer = asyncio.ensure_future(post(*issue()))
    await until(lambda: script.bodies)
    server.lose(Session("21", "21:octo/repo:5"))
    refused = await answer
    assert refused.status == 503
    assert int(refused.headers["retry-after"]) >= 1


async def test_a_body_of_about_47_kib_is_replayed(post: Post, script: Script) -> None:
    script.pad = 47_500
    first = await post(*issue())
    assert len(first.body) > script.pad
    again = await post(*issue())
    assert (again.status, again.body) == (201, first.body)


async def test_a_long_body_is_not_replayed(post: Post, script: Script) -> None:
    script.pad = 60_000
    assert len((await post(*issue())).body) > script.pad
    again = await post(*issue())
    assert (again.status, again.body) == (201, b"")


async def test_a_long_detail_of_an_error_is_not_stored(post: Post, script: Script) -> None:
    script.error = script.not_found
    script.error.detail = script.error.description = "x" * 70_000  # type: ignore[attr-defined]
    assert [(await post(*issue())).status for _ in range(2)] == [404, 404]
    assert len(script.bodies) == 1


async def test_another_payload_under_the_same_key(server: Server) -> None:
    app = FastAPI()
    async with AsyncGate(server.address) as gate:

        def delivery(headers: Any, body: bytes) -> Delivery:
            return Delivery("T1", headers["idempotency-key"], digest=body[:32])

        @app.post("/pay")
        @gate.webhook(delivery)
        async def pay() -> str:
            return "paid"

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            key = {"idempotency-key": "k1"}
            statuses = [
                (await client.post("/pay", headers=key, content=body)).status_code
                for body in (b"1", b"1", b"2")
            ]
    assert statuses == [200, 200, 422]


class Order(BaseModel):
    id: str


async def test_fastapi_values_pass_through_its_own_serialization(server: Server) -> None:
    app = FastAPI()
    paid: list[str] = []

    def delivery(body: bytes) -> Delivery:
        return Delivery("T1", json.loads(body)["id"])

    async with AsyncGate(server.address) as gate:

        @app.post("/pay/{shop}", status_code=202)
        @gate.webhook(delivery)
        async def pay(shop: str, order: Order) -> dict[str, Any]:
            paid.append(shop)
            return {"paid": order, "count": len(paid)}

        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for _ in range(2):
                response = await client.post("/pay/s1", json={"id": "o1"})
                assert response.status_code == 202
                assert response.json() == {"paid": {"id": "o1"}, "count": 1}
            assert (await client.post("/pay/s1", json={})).status_code == 422
    schema = json.dumps(app.openapi())
    assert "oncegate" not in schema


async def test_annotations_that_are_texts_reach_fastapi() -> None:
    async with AsyncGate() as gate:

        @gate.webhook(github.delivery)
        async def hook(order: Order) -> None: ...

        assert inspect.signature(hook).parameters["order"].annotation is Order


async def test_a_long_fastapi_value_is_not_replayed(gates: tuple[AsyncGate, Gate]) -> None:
    app = FastAPI()
    runs: list[Any] = []

    @app.post("/hook", status_code=202)
    @gates[0].webhook(github.delivery)
    async def hook(payload: dict[str, Any]) -> dict[str, str]:
        runs.append(payload)
        return {"pad": "x" * 70_000}

    post = asgi(app)
    first, again = [await post(*issue()) for _ in range(2)]
    assert (first.status, again.status, again.body, len(runs)) == (202, 202, b"", 1)


async def test_the_response_that_fastapi_injects_has_the_status(gates: tuple[AsyncGate, Gate]) -> None:
    app = FastAPI()
    statuses = [503, 202]

    @app.post("/hook")
    @gates[0].webhook(github.delivery)
    async def hook(payload: dict[str, Any], response: InjectedResponse) -> dict[str, int]:
        response.status_code = statuses.pop(0)
        response.headers["location"] = "/1"
        return {"runs": 2 - len(statuses)}

    post = asgi(app)
    failed, retried, again = [await post(*issue()) for _ in range(3)]
    assert (failed.status, runs(failed)) == (503, 1)
    for answer in retried, again:
        assert (answer.status, runs(answer), answer.headers["location"]) == (202, 2, "/1")
