"""The small parts: codecs, batches, connections, errors, options, late timers."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

import oncegate
from oncegate import (
    Delivery,
    EpicMismatch,
    Gate,
    Invalid,
    JsonCodec,
    Overloaded,
    PydanticCodec,
    Session,
    Unavailable,
)
from oncegate import _marks as marks
from oncegate._codec import decode, encode
from oncegate._connections import Connections
from oncegate._io import CATCH_UP, call_until, postponed_until
from oncegate._options import Options
from oncegate._retry import Retry
from oncegate._wire import RENEW_TURN, STREAMS_PER_CHANNEL, Failure, read_failure
from oncegate.v1 import event_pb2, idempotency_service_pb2, session_pb2
from oncegate.v1 import turn_service_pb2 as turns

from .fake import FakeIo


def test_json_round_trip() -> None:
    codec = JsonCodec()
    for value in (None, 0, "é", "\ud83d", [1, {"a": None}], b"\x00raw"):
        assert decode(codec, *encode(codec, value)) == value
    with pytest.raises(TypeError):
        codec.encode(object())


def test_pydantic_restores_a_dataclass() -> None:
    @dataclasses.dataclass
    class Receipt:
        number: int

    codec = PydanticCodec(Receipt)
    assert decode(codec, *encode(codec, Receipt(4))) == Receipt(4)


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        (
            "SSL routines:OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired",
            "its certificate",
        ),
        ("UNAUTHENTICATED: Hostname Verification Check failed.", "its certificate"),
        ("SSL routines:OPENSSL_internal:SSLV3_ALERT_CERTIFICATE_EXPIRED: OK", "it does not accept"),
        ("SSL routines:OPENSSL_internal:SSLV3_ALERT_BAD_CERTIFICATE: OK", "it does not accept"),
        ("SSL routines:OPENSSL_internal:TLSV1_ALERT_UNKNOWN_CA: OK", "it does not accept"),
        ("Unwrap failed (TSI_DATA_CORRUPTED)", "it does not accept"),
        ("SSL routines:OPENSSL_internal:TLSV1_ALERT_PROTOCOL_VERSION: Invalid certificate", "SSL"),
        ("Failed to connect to remote host: Connection refused", "Failed"),
    ],
)
def test_what_grpc_says_of_certificates(message: str, meaning: str) -> None:
    failure = read_failure("UNAVAILABLE", message, ())
    assert failure.message.startswith(meaning)
    assert message in failure.message
    assert read_failure("INTERNAL", message, ()).message == message


def test_a_late_timer_does_not_count() -> None:
    assert postponed_until(100.0, 100.1) is None
    assert postponed_until(100.0, 101.0) == 101.0 + CATCH_UP


async def test_a_call_with_an_old_token_is_repeated_at_once_and_once() -> None:
    io = FakeIo()
    outdated = Failure("UNAVAILABLE", "replaced", outdated=True)
    request, response = turns.RenewTurnRequest(), turns.RenewTurnResponse()
    answers: list[Any] = [outdated, response]
    io.answer = lambda _: answers.pop(0)
    assert await call_until(io, RENEW_TURN, request, io.now()) == (response, 1000.0)
    io.answer = lambda _: outdated
    io.calls.clear()
    with pytest.raises(Failure, match="replaced"):
        await call_until(io, RENEW_TURN, request, io.now())
    assert len(io.calls) == 2


def test_batches_are_cut_by_count_and_bytes() -> None:
    options = Options(None, {})
    many = [Delivery("T1", f"E{number}") for number in range(2500)]
    cut = list(marks.batches((delivery, options.mark(delivery)) for delivery in many))
    assert [len(batch) for batch in cut] == [1000, 1000, 500]
    assert [delivery for batch in cut for delivery, _ in batch] == many
    large = [Delivery("T1", "E", aliases=["x" * 500] * 8)] * 600
    for batch in marks.batches((delivery, options.mark(delivery)) for delivery in large):
        request = idempotency_service_pb2.BatchMarkProcessedRequest(
            requests=[item for _, item in batch]
        )
        assert request.ByteSize() <= marks.MAX_BYTES


async def test_a_mark_that_no_request_takes_is_an_item_of_its_own() -> None:
    options = Options(None, {})
    names = ["first", "x" * marks.MAX_BYTES, "last"]
    deliveries = [Delivery("T1", name) for name in names]
    io = FakeIo()

    def answer(request: idempotency_service_pb2.BatchMarkProcessedRequest) -> Any:
        marked = [
            idempotency_service_pb2.BatchMarkProcessedResult(
                response={"first": True, "event": {"event_id": item.event.event_id}}
            )
            for item in request.requests
        ]
        return idempotency_service_pb2.BatchMarkProcessedResponse(results=marked)

    io.answer = answer
    pairs = ((delivery, options.mark(delivery)) for delivery in deliveries)
    items = [item for batch in marks.batches(pairs) for item in await marks.mark_batch(io, batch, 1)]
    assert [item.delivery for item in items] == deliveries
    assert [item.event_id for item in items] == ["first", "", "last"]
    assert [type(item.error) for item in items] == [type(None), Invalid, type(None)]
    assert len(io.calls) == 2


async def test_a_result_that_cannot_be_decoded_does_not_hide_the_state() -> None:
    io = FakeIo()
    io.answer = lambda request: idempotency_service_pb2.IsProcessedResponse(
        state=event_pb2.EVENT_STATE_PROCESSED, result=b"{", result_type="application/json"
    )
    request = idempotency_service_pb2.IsProcessedRequest()
    seen = await marks.seen(io, request, JsonCodec(), 1)
    assert (seen.state, seen.result) == ("PROCESSED", None)
    assert isinstance(seen.error, ValueError)


def test_the_last_request_is_at_the_end_of_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("oncegate._retry.time.monotonic", lambda: now)
    retry = Retry(10)
    now += 9.5
    assert retry.after(Unavailable("away"))
    assert retry.pause == 0.5
    assert not retry.after(Overloaded("full", 0.6))
    now += 0.5
    assert not retry.after(Unavailable("away"))


class Channels:
    def __init__(self) -> None:
        self.opened = 0
        self.closed: list[int] = []
        self.connections = Connections(self.open, self.closed.append)

    def open(self) -> int:
        self.opened += 1
        return self.opened


def test_streams_spread_over_connections() -> None:
    channels = Channels()
    streams = [channels.connections.for_stream() for _ in range(STREAMS_PER_CHANNEL + 1)]
    assert channels.opened == 2
    assert channels.connections.for_call().channel == 3
    channels.connections.done(streams[0])
    assert channels.connections.for_stream() is streams[0]
    assert channels.closed == []


def test_a_suspect_connection_is_closed_after_its_last_call() -> None:
    channels = Channels()
    silent = channels.connections.for_stream()
    channels.connections.for_stream()
    channels.connections.suspect(silent)
    assert channels.connections.for_stream() is not silent
    channels.connections.done(silent)
    assert channels.closed == []
    channels.connections.done(silent)
    assert channels.closed == [silent.channel]


def status(*details: Any) -> bytes:
    packed = []
    for detail in details:
        packed.append(AnyMessage())
        packed[-1].Pack(detail)
    encoded: bytes = status_pb2.Status(details=packed).SerializeToString()
    return encoded


def test_a_status_becomes_an_error() -> None:
    info = error_details_pb2.ErrorInfo(
        domain="oncegate", reason="EPIC_MISMATCH", metadata={"epic_id": "E-1"}
    )
    failure = read_failure(
        "FAILED_PRECONDITION", "other epic", [("grpc-status-details-bin", status(info))]
    )
    error = failure.error()
    assert isinstance(error, EpicMismatch)
    assert error.bound == "E-1"
    retry = error_details_pb2.RetryInfo()
    retry.retry_delay.FromMilliseconds(1500)
    failure = read_failure("RESOURCE_EXHAUSTED", "full", [("grpc-status-details-bin", status(retry))])
    error = failure.error()
    assert isinstance(error, Overloaded)
    assert error.retry_after == 1.5


def test_a_limit_that_no_retry_passes_is_the_callers() -> None:
    failure = Failure("RESOURCE_EXHAUSTED", "metadata too large", reason="METADATA_TOO_LARGE")
    assert not failure.retryable
    assert isinstance(failure.error(), Invalid)


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError, match="patients"):
        Gate(patients=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    with pytest.raises(TypeError, match="waits"):
        Gate().turn(Delivery("T1", "E1"), waits=3)  # type: ignore[call-overload]  # pyright: ignore


def test_consumers_have_sessions_of_their_own_unless_they_share() -> None:
    delivery = Delivery("T1", "E1", session="S1")
    for share, consumer in ((False, "a"), (True, "")):
        options = Options(None, {"consumer": "a", "share_sessions": share})
        request = options.begin(delivery, {}, options.terms({}), session=True)
        assert request.event.consumer == "a"
        assert request.session.consumer == consumer
    assert not options.begin(delivery, {}, options.terms({}), session=False).HasField("session")


def test_sessions_are_named_by_id_or_thread() -> None:
    thread = Session.thread("T1", "C1", "17.5").key("")
    assert thread.thread == session_pb2.ThreadKey(channel_id="C1", thread_ts="17.5")
    assert Session("T1", "S1").key("c").session_id == "S1"


def test_the_server_reads_payloads() -> None:
    key = oncegate.slack.delivery({"type": "event_callback"}).event_key("")
    assert key.slack_payload == b'{"type":"event_callback"}'
    headers = {"x-github-delivery": "d", "X-Hub-Signature-256": "secret"}
    key = oncegate.github.delivery(headers, b"{}").event_key("")
    assert dict(key.delivery.headers) == {"x-github-delivery": "d"}
    assert isinstance(key, event_pb2.EventKey)


def test_slack_redelivers_events_only() -> None:
    assert oncegate.slack.delivery(b'{"type":"event_callback"}').redelivers
    frame = {"type": "events_api", "payload": {"type": "event_callback"}}
    assert oncegate.slack.delivery(frame).redelivers
    click = {"type": "block_actions", "actions": [{"value": "event_callback"}]}
    assert not oncegate.slack.delivery(click).redelivers
    assert not oncegate.slack.delivery(b"payload=%7B%22type%22").redelivers


def test_slack_redelivers_an_event_that_a_framework_parsed() -> None:
    class Parsed:
        def to_dict(self) -> dict[str, str]:
            return {"type": "event_callback"}

    assert oncegate.slack.delivery(Parsed()).redelivers


@pytest.mark.parametrize(
    "body",
    [
        {"payload": '{"type":"event_callback"}'},
        b'{"payload":"x"}',
        b'{"payload":null}',
        b"[1]",
        b'"event_callback"',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_a_body_that_is_no_event_of_slack_is_left_to_the_server(body: Any) -> None:
    assert not oncegate.slack.delivery(body).redelivers
