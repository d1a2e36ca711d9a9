"""CPU of this process per turn: the library beside the same exchange over a bare stub.

    python bench/overhead.py [TURNS]

Needs the server's binary; see oncegate.testing.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
import uuid
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from oncegate import AsyncGate, Delivery, Gate
from oncegate._clock import duration
from oncegate._wire import CHANNEL_OPTIONS, RUN_TURN
from oncegate.testing import Server
from oncegate.v1 import event_pb2 as events
from oncegate.v1 import session_pb2 as sessions
from oncegate.v1 import turn_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROUNDS = 7
CODECS: dict[str, Any] = {
    "request_serializer": pb.RunTurnRequest.SerializeToString,
    "response_deserializer": pb.RunTurnResponse.FromString,
}


def name() -> str:
    return uuid.uuid4().hex


def begin() -> pb.RunTurnRequest:
    ttl = duration(45)
    key = name()
    return pb.RunTurnRequest(
        begin=pb.BeginTurnRequest(
            event=events.EventKey(team_id="T1", event_id=key),
            session=sessions.SessionKey(team_id="T1", session_id=key),
            holder="bench",
            request_id=str(uuid.uuid4()),
            claim_ttl=ttl,
            lease_ttl=ttl,
            grace=duration(22.5),
        )
    )


def end() -> pb.RunTurnRequest:
    return pb.RunTurnRequest(
        end=pb.TurnEnd(
            outcome=events.TURN_OUTCOME_SUCCEEDED, result=b"{}", result_type="application/json"
        )
    )


def delivery() -> Delivery:
    key = name()
    return Delivery("T1", key, session=key)


def is_last(message: pb.RunTurnResponse) -> bool:
    return message.WhichOneof("news") == "finished"


async def bare_async(address: str, turns: int) -> float:
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        run = channel.stream_stream(RUN_TURN.path, **CODECS)

        async def turn() -> None:
            call = run()
            await call.write(begin())
            await call.read()
            await call.write(end())
            assert is_last(await call.read())

        return await timed_async(turn, turns)


async def library_async(address: str, turns: int) -> float:
    async with AsyncGate(address) as gate:

        async def turn() -> None:
            async with gate.turn(delivery()) as held:
                held.result = {}

        return await timed_async(turn, turns)


def bare_sync(address: str, turns: int) -> float:
    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        run = channel.stream_stream(RUN_TURN.path, **CODECS)

        def turn() -> None:
            sent: SimpleQueue[Any] = SimpleQueue()
            sent.put(begin())
            call = run(iter(sent.get, None))
            next(call)
            sent.put(end())
            assert is_last(next(call))
            sent.put(None)

        return timed(turn, turns)


def library_sync(address: str, turns: int) -> float:
    with Gate(address) as gate:

        def turn() -> None:
            with gate.turn(delivery()) as held:
                held.result = {}

        return timed(turn, turns)


async def timed_async(turn: Callable[[], Awaitable[None]], turns: int) -> float:
    await turn()
    started = time.process_time()
    for _ in range(turns):
        await turn()
    return (time.process_time() - started) / turns


def timed(turn: Callable[[], None], turns: int) -> float:
    turn()
    started = time.process_time()
    for _ in range(turns):
        turn()
    return (time.process_time() - started) / turns


def main() -> None:
    turns = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    measures: dict[str, Callable[[str], float]] = {
        "asyncio": lambda address: asyncio.run(bare_async(address, turns)),
        "asyncio, library": lambda address: asyncio.run(library_async(address, turns)),
        "threads": lambda address: bare_sync(address, turns),
        "threads, library": lambda address: library_sync(address, turns),
    }
    times: dict[str, list[float]] = {key: [] for key in measures}
    with Server() as server:
        for _ in range(ROUNDS):
            for key, measure in measures.items():
                times[key].append(measure(server.address))
    for kind in ("asyncio", "threads"):
        bare = statistics.median(times[kind])
        library = statistics.median(times[f"{kind}, library"])
        print(
            f"{kind}: stub {bare * 1e6:.0f} us, library {library * 1e6:.0f} us a turn, "
            f"ratio {library / bare:.2f}"
        )


if __name__ == "__main__":
    main()
