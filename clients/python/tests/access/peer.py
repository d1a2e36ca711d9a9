"""A server of gRPC's own that records who calls, and answers as a test says."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import grpc

from oncegate._clock import duration
from oncegate.v1 import event_pb2 as events
from oncegate.v1 import idempotency_service_pb2 as idempotency
from oncegate.v1 import turn_service_pb2 as turns

from .certificates import Pair


@dataclass(frozen=True)
class Refusal:
    """How calls end."""

    code: grpc.StatusCode
    message: str
    details: bytes = b""


UNKNOWN = Refusal(grpc.StatusCode.UNAUTHENTICATED, "unknown caller")


@dataclass
class Peer:
    """The server. Without a `pair` it has no TLS; with a `client_ca` it wants client certificates."""

    pair: Pair | None = None
    client_ca: bytes | None = None
    tokens: list[str | None] = field(default_factory=list)
    """What each call had in ``authorization``."""
    certificates: list[bytes] = field(default_factory=list)
    """The client certificate of each call."""
    refusal: Refusal | None = None
    unknown: set[str | bytes] = field(default_factory=set)
    """The callers that it does not know: values of ``authorization``, and certificates."""
    on_call: Callable[[], object] = lambda: None
    """Runs before a call is looked at."""

    def __post_init__(self) -> None:
        self._server = grpc.server(
            ThreadPoolExecutor(4), handlers=[_Handler(self)], options=[("grpc.so_reuseport", 0)]
        )
        self._streams: list[queue.SimpleQueue[Refusal]] = []
        self._called = threading.Condition()
        address = "127.0.0.1:0"
        if self.pair is None:
            self.port = self._server.add_insecure_port(address)
        else:
            chain = [(self.pair.key.read_bytes(), self.pair.cert.read_bytes())]
            credentials = grpc.ssl_server_credentials(chain, self.client_ca, self.client_ca is not None)
            self.port = self._server.add_secure_port(address, credentials)

    @property
    def address(self) -> str:
        """Of the server, with its scheme."""
        return f"{'http' if self.pair is None else 'https'}://127.0.0.1:{self.port}"

    def end_turns(self, refusal: Refusal) -> None:
        """Ends the streams of the turns that run."""
        for stream in self._streams:
            stream.put(refusal)

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end_turns(Refusal(grpc.StatusCode.UNAVAILABLE, "the test is over"))
        self._server.stop(None).wait()

    def wait_for(self, calls: int) -> None:
        """Waits until there have been so many calls."""
        with self._called:
            assert self._called.wait_for(lambda: len(self.tokens) >= calls, 20)

    def record(self, context: grpc.ServicerContext) -> None:
        """Looks at a call, and refuses it if it is to be refused."""
        self.on_call()
        token = _text(dict(context.invocation_metadata()).get("authorization"))
        certificates: Any = context.auth_context().get("x509_pem_cert", [])
        self.certificates += certificates
        with self._called:
            self.tokens.append(token)
            self._called.notify_all()
        if not self.unknown.isdisjoint([token, *certificates]):
            refuse(context, UNKNOWN)
        if self.refusal is not None:
            refuse(context, self.refusal)

    def turn(self, context: grpc.ServicerContext) -> Iterator[turns.RunTurnResponse]:
        """Grants a turn, and keeps its stream open."""
        self.record(context)
        stream: queue.SimpleQueue[Refusal] = queue.SimpleQueue()
        self._streams.append(stream)
        yield turns.RunTurnResponse(granted=turns.TurnGranted(turn=granted()))
        refuse(context, stream.get())


def granted() -> turns.Turn:
    return turns.Turn(turn_id="turn", attempt=1, remaining=duration(30), elapsed=duration(0))


def refuse(context: grpc.ServicerContext, refusal: Refusal) -> None:
    """Raises."""
    if refusal.details:
        context.set_trailing_metadata((("grpc-status-details-bin", refusal.details),))
    context.abort(refusal.code, refusal.message)


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = details.method.rpartition("/")[2]
        if method == "RunTurn":
            return grpc.stream_stream_rpc_method_handler(
                lambda _, context: self._peer.turn(context),
                response_serializer=lambda message: message.SerializeToString(),
            )
        answer = _ANSWERS[method]

        def unary(_: bytes, context: grpc.ServicerContext) -> bytes:
            self._peer.record(context)
            answered: bytes = answer().SerializeToString()
            return answered

        return grpc.unary_unary_rpc_method_handler(unary)


_ANSWERS: dict[str, Callable[[], Any]] = {
    "MarkProcessed": lambda: idempotency.MarkProcessedResponse(
        first=True, event=events.ProcessedEvent(event_id="E1")
    ),
    "RenewTurn": lambda: turns.RenewTurnResponse(turn=granted()),
    "FinishTurn": turns.FinishTurnResponse,
}


def _text(value: str | bytes | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value
