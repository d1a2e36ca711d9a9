"""Marks and reads: requests in batches, and answers as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from oncegate import _errors as errors
from oncegate._codec import Codec, decode_or_error
from oncegate._io import Io, call_until
from oncegate._turn_flow import outcome_name
from oncegate._wire import MARK, MARK_BATCH, SEEN, Failure, Method, Req, Res, read_code
from oncegate.v1 import event_pb2 as events
from oncegate.v1 import idempotency_service_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from oncegate._delivery import Delivery

MAX_ITEMS = 1000
MAX_BYTES = 1024 * 1024
ITEM_OVERHEAD = 8
"""The most that a batch adds to an item's own bytes."""


@dataclass(frozen=True, slots=True)
class MarkItem:
    """The answer for one delivery."""

    delivery: Delivery
    first: bool
    """Whether this mark is the first: then handle the event."""
    event_id: str = ""
    """The event's id as stored."""
    error: errors.OncegateError | None = None
    """Why this delivery alone could not be marked. Only from ``mark_all``."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the server knows of an event."""

    state: Literal["NOT_SEEN", "IN_PROGRESS", "PROCESSED"]
    event_id: str
    """The event's id as stored."""
    outcome: str | None
    """``"SUCCEEDED"``, ``"REJECTED"`` or ``"GAVE_UP"``; None for a mark, and unless PROCESSED."""
    result: Any
    """The decoded result, if it was asked for. None if it cannot be decoded."""
    detail: str
    holder: str
    """The run that handles it; empty unless IN_PROGRESS."""
    attempt: int
    error: Exception | None = None
    """Why the codec cannot decode the result."""


async def call(io: Io, method: Method[Req, Res], request: Req, patience: float) -> Res:
    """One call, repeated within `patience`. Raises an error of the library."""
    try:
        response, _ = await call_until(io, method, request, io.now() + max(patience, 0.5))
    except Failure as failure:
        raise failure.error() from failure.__cause__
    return response


async def mark(
    io: Io, delivery: Delivery, request: pb.MarkProcessedRequest, patience: float
) -> MarkItem:
    """Marks one delivery."""
    response = await call(io, MARK, request, patience)
    return MarkItem(delivery, response.first, response.event.event_id)


async def mark_batch(
    io: Io, batch: list[tuple[Delivery, pb.MarkProcessedRequest]], patience: float
) -> list[MarkItem]:
    """Marks what fits into one request, without what fits into none."""
    requests = [item for _, item in batch if _size(item) <= MAX_BYTES]
    results: Iterable[pb.BatchMarkProcessedResult] = ()
    if requests:
        request = pb.BatchMarkProcessedRequest(requests=requests)
        results = (await call(io, MARK_BATCH, request, patience)).results
    answers = iter(results)
    return [
        _item(delivery, next(answers) if _size(item) <= MAX_BYTES else None) for delivery, item in batch
    ]


def _size(item: pb.MarkProcessedRequest) -> int:
    return item.ByteSize() + ITEM_OVERHEAD


def _item(delivery: Delivery, result: pb.BatchMarkProcessedResult | None) -> MarkItem:
    if result is None:
        too_large = errors.Invalid("", f"the delivery has more than {MAX_BYTES} bytes")
        return MarkItem(delivery, first=False, error=too_large)
    if result.HasField("error"):
        error = result.error
        field = error.field.partition("].")[2] or error.field
        failure = Failure(read_code(error.code), error.message, reason=error.reason, field=field)
        return MarkItem(delivery, first=False, error=failure.error())
    return MarkItem(delivery, result.response.first, result.response.event.event_id)


def batches(
    items: Iterable[tuple[Delivery, pb.MarkProcessedRequest]],
) -> Iterator[list[tuple[Delivery, pb.MarkProcessedRequest]]]:
    """Cuts marks into requests that the server takes."""
    batch: list[tuple[Delivery, pb.MarkProcessedRequest]] = []
    size = 0
    for item in items:
        bytes_ = _size(item[1])
        if batch and (len(batch) == MAX_ITEMS or size + bytes_ > MAX_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += bytes_
    if batch:
        yield batch


async def seen(io: Io, request: pb.IsProcessedRequest, codec: Codec, patience: float) -> Seen:
    """Reads the state of an event."""
    response = await call(io, SEEN, request, patience)
    event = response.event
    result, error = decode_or_error(codec, response.result, response.result_type)
    state: Any = events.EventState.Name(response.state)[len("EVENT_STATE_") :]
    return Seen(
        state,
        event.event_id,
        outcome_name(event.outcome),
        result,
        event.detail,
        event.holder,
        event.attempt,
        error,
    )
