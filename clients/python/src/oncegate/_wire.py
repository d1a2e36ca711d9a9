"""The contract on the wire: methods, settings of a channel, and the meaning of a status."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from google.protobuf.message import Message

from oncegate import _errors as errors
from oncegate._clock import span
from oncegate.v1 import idempotency_service_pb2 as idempotency
from oncegate.v1 import turn_service_pb2 as turns

if TYPE_CHECKING:
    from collections.abc import Iterable

Req = TypeVar("Req", bound=Message)
Res = TypeVar("Res", bound=Message)

DEFAULT_SERVER = "127.0.0.1:7411"
STREAMS_PER_CHANNEL = 900
"""The server allows 1,024 calls on a connection."""


@dataclass(frozen=True, slots=True)
class Method(Generic[Req, Res]):
    """One method of the contract."""

    path: str
    request: type[Req]
    response: type[Res]


_IDEMPOTENCY = "/oncegate.v1.IdempotencyService/"
_TURNS = "/oncegate.v1.TurnService/"

RUN_TURN = Method(_TURNS + "RunTurn", turns.RunTurnRequest, turns.RunTurnResponse)
RENEW_TURN = Method(_TURNS + "RenewTurn", turns.RenewTurnRequest, turns.RenewTurnResponse)
FINISH_TURN = Method(_TURNS + "FinishTurn", turns.FinishTurnRequest, turns.FinishTurnResponse)
HOLD_LEASE = Method(
    _IDEMPOTENCY + "HoldSessionLease",
    idempotency.HoldSessionLeaseRequest,
    idempotency.HoldSessionLeaseResponse,
)
RENEW_LEASE = Method(
    _IDEMPOTENCY + "RenewSessionLease",
    idempotency.RenewSessionLeaseRequest,
    idempotency.RenewSessionLeaseResponse,
)
RELEASE_LEASE = Method(
    _IDEMPOTENCY + "ReleaseSessionLease",
    idempotency.ReleaseSessionLeaseRequest,
    idempotency.ReleaseSessionLeaseResponse,
)
MARK = Method(
    _IDEMPOTENCY + "MarkProcessed",
    idempotency.MarkProcessedRequest,
    idempotency.MarkProcessedResponse,
)
MARK_BATCH = Method(
    _IDEMPOTENCY + "BatchMarkProcessed",
    idempotency.BatchMarkProcessedRequest,
    idempotency.BatchMarkProcessedResponse,
)
SEEN = Method(
    _IDEMPOTENCY + "IsProcessed",
    idempotency.IsProcessedRequest,
    idempotency.IsProcessedResponse,
)

_SERVICE_CONFIG: dict[str, Any] = {
    "methodConfig": [
        {
            "name": [
                {"service": "oncegate.v1.IdempotencyService"},
                {"service": "oncegate.v1.TurnService"},
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        },
        # A stream that was granted must not be repeated by gRPC: the library carries it on.
        {
            "name": [
                {"service": "oncegate.v1.TurnService", "method": "RunTurn"},
                {"service": "oncegate.v1.IdempotencyService", "method": "HoldSessionLease"},
            ]
        },
    ],
    "loadBalancingConfig": [{"round_robin": {}}],
}

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # The core ignores keepalive_timeout_ms without this: a silent server was noticed after 68 s.
    ("grpc.http2.ping_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # Two channels are two connections, and a forked child never finds its parent's connection.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
]


_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
    "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


def read_code(code: int) -> str:
    """The name of a google.rpc.Code."""
    return _CODES[code] if 0 <= code < len(_CODES) else "UNKNOWN"


_LOST = frozenset({"CLAIM_LOST", "LEASE_LOST", "MAX_HOLD"})
_DENIED = frozenset({"UNAUTHENTICATED", "PERMISSION_DENIED"})
_EXPLANATIONS = (
    (
        re.compile("CERTIFICATE_VERIFY_FAILED|Hostname Verification Check failed"),
        "its certificate is not from a CA of tls_ca, not valid for its name, or expired",
    ),
    # An alert. With TLS 1.3 it comes after the handshake, and gRPC says no more than that it came.
    (
        re.compile(
            "ALERT_(?:BAD_|UNSUPPORTED_|NO_)?CERTIFICATE|ALERT_(?:UNKNOWN_CA|ACCESS_DENIED)"
            "|TSI_DATA_CORRUPTED"
        ),
        "it does not accept the client certificate of tls_cert, or needs one",
    ),
)
"""What gRPC says of certificates; otherwise its messages are those of an outage."""
_RETRYABLE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"})


class Failure(Exception):
    """A call that ended with an error, in terms of the contract."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        reason: str = "",
        field: str = "",
        metadata: dict[str, str] | None = None,
        retry_after: float | None = None,
        outdated: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = reason
        self.field = field
        self.metadata = metadata or {}
        self.retry_after = retry_after
        self.outdated = outdated
        """There is a newer token or client certificate: it is worth a try at once."""

    @property
    def lost(self) -> bool:
        """The turn or lease has ended."""
        return self.reason in _LOST

    @property
    def denied(self) -> bool:
        """The server does not accept the caller."""
        return self.code in _DENIED

    @property
    def loss(self) -> str:
        """Why something that is held is lost by this; empty if it is not."""
        return self.reason if self.lost else "DENIED" if self.denied else ""

    @property
    def retryable(self) -> bool:
        """The same request may succeed later. An error without a reason is the transport's."""
        if self.code == "RESOURCE_EXHAUSTED":
            return self.retry_after is not None
        return (
            self.code in _RETRYABLE
            or self.reason == "STREAM_REPLACED"
            or (not self.reason and self.code in ("INTERNAL", "UNKNOWN", "ABORTED"))
        )

    def error(self) -> errors.OncegateError:
        """What the author of a bot sees, with the gRPC error as its cause."""
        error = self._error()
        error.__cause__ = self.__cause__
        return error

    def _error(self) -> errors.OncegateError:
        match self.code:
            case "RESOURCE_EXHAUSTED" if self.retry_after is not None:
                return errors.Overloaded(self.message, self.retry_after)
            case "FAILED_PRECONDITION" if self.reason == "EPIC_MISMATCH":
                return errors.EpicMismatch(self.metadata.get("epic_id", ""))
            case "FAILED_PRECONDITION" if self.reason == "PAYLOAD_MISMATCH":
                return errors.PayloadMismatch()
            case "INVALID_ARGUMENT" | "OUT_OF_RANGE" | "RESOURCE_EXHAUSTED" | "NOT_FOUND":
                return errors.Invalid(self.field, self.message)
            case "MISCONFIGURED":
                return errors.Misconfigured(self.field, self.message)
            case _ if self.denied:
                return errors.Denied(self.reason or self.code, self.message)
            case _ if self.retryable:
                return errors.Unavailable(self.message, self.retry_after or 1.0)
            case _:
                return errors.Internal(f"{self.code}: {self.message}")


def read_failure(code: str, message: str | None, trailers: Iterable[tuple[str, Any]]) -> Failure:
    """Reads a gRPC status and its details."""
    # They have no type stubs.
    from google.rpc import error_details_pb2 as details  # pyright: ignore[reportMissingTypeStubs]
    from google.rpc import status_pb2  # pyright: ignore[reportMissingTypeStubs]

    message = message or code.lower()
    failure = Failure(code, _explained(message) if code == "UNAVAILABLE" else message)
    for name, value in trailers:
        if name != "grpc-status-details-bin":
            continue
        for item in status_pb2.Status.FromString(value).details:
            info, bad, retry = details.ErrorInfo(), details.BadRequest(), details.RetryInfo()
            if item.Unpack(info) and info.domain == "oncegate":
                failure.reason = info.reason
                failure.metadata = dict(info.metadata)
            elif item.Unpack(bad) and bad.field_violations:
                failure.field = bad.field_violations[0].field
            elif item.Unpack(retry):
                failure.retry_after = span(retry.retry_delay)
    return failure


def _explained(message: str) -> str:
    for sign, meaning in _EXPLANATIONS:
        if sign.search(message):
            return f"{meaning} ({message})"
    return message
