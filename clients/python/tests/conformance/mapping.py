"""Between the words of a scenario and those of the library's public API."""

from __future__ import annotations

import asyncio
import concurrent.futures
import datetime
import json
import traceback
from dataclasses import dataclass, field
from typing import Any

import oncegate
from oncegate import (
    Busy,
    Delivery,
    Dropped,
    Duplicate,
    GaveUp,
    InProgress,
    MarkItem,
    Ran,
    Reject,
    Seen,
    Session,
)

from .scenario import Json, Step, value, written


class OwnError(Exception):
    """An error of the handler's own."""


class DateCodec:
    """Keeps dates, which JSON does not know."""

    def encode(self, value: Any) -> tuple[bytes, str]:
        return value.isoformat().encode(), "text/x-date"

    def decode(self, data: bytes, result_type: str) -> Any:
        assert result_type == "text/x-date", result_type
        return datetime.date.fromisoformat(data.decode())


ERRORS: dict[type[Exception], tuple[str, tuple[str, ...]]] = {
    oncegate.TurnLost: ("turn_lost", ("reason", "value")),
    oncegate.LeaseLost: ("lease_lost", ("reason", "value")),
    oncegate.OutcomeUnknown: ("outcome_unknown", ("value",)),
    oncegate.Unavailable: ("unavailable", ("retry_after",)),
    oncegate.Overloaded: ("overloaded", ("retry_after",)),
    oncegate.EpicMismatch: ("epic_mismatch", ("bound",)),
    oncegate.PayloadMismatch: ("payload_mismatch", ()),
    oncegate.Invalid: ("invalid", ("field",)),
    oncegate.WrongProcess: ("wrong_process", ()),
    oncegate.Internal: ("internal", ()),
}
OUTCOMES: dict[type[Any], tuple[str, tuple[str, ...]]] = {
    Duplicate: ("duplicate", ("result", "outcome", "detail")),
    GaveUp: ("gave_up", ("attempts", "detail")),
    InProgress: ("in_progress", ("holder", "attempt", "retry_after")),
    Busy: ("busy", ("holder", "queue_length", "retry_after")),
    Dropped: ("dropped", ()),
}
CANCELLATIONS = (
    asyncio.CancelledError,
    concurrent.futures.CancelledError,
    KeyboardInterrupt,
    TimeoutError,
)


def delivery(step: Json) -> Delivery:
    ttl = seconds(step.get("ttl_ms"))
    match step:
        case {"team": team, "event": event}:
            session = value(step.get("session"))
            if "thread" in step:
                session = Session.thread(team, *step["thread"])
            return Delivery(
                team,
                value(event),
                session=session,
                aliases=[value(alias) for alias in step.get("aliases", ())],
                digest=bytes.fromhex(step.get("digest", "")),
                ttl=ttl,
            )
        case {"slack": body}:
            return oncegate.slack.delivery(json.dumps(body).encode())
    (platform,) = step.keys() - {"team"}
    body = step[platform]["body"]
    raw = body if isinstance(body, str) else json.dumps(body)
    team = {"team": step["team"]} if "team" in step else {}
    module = getattr(oncegate, platform)
    made: Delivery = module.delivery(step[platform].get("headers", {}), raw.encode(), **team)
    return made


def session(step: Json) -> Session:
    if "thread" in step:
        return Session.thread(step["team"], *step["thread"])
    return Session(step["team"], value(step["id"]))


def options(step: Step, *names: str) -> dict[str, Any]:
    """The options of a call, those that the step has."""
    known: dict[str, Any] = {
        "wait": seconds(step.get("wait_ms")),
        "ttl": seconds(step.get("ttl_ms")),
        "patience": seconds(step.get("patience_ms")),
        "max_attempts": step.get("max_attempts"),
        "on_unavailable": step.get("on_unavailable"),
        "epic": value(step.get("epic")),
        "labels": step.get("labels"),
    }
    return {name: known[name] for name in names or known if known[name] is not None}


def gate_options(name: str, given: dict[str, Json]) -> dict[str, Any]:
    return {
        "holder": name,
        "consumer": given.get("consumer", ""),
        "share_sessions": given.get("share_sessions", False),
        "max_attempts": given.get("max_attempts", 5),
        "on_unavailable": given.get("on_unavailable", "raise"),
        "ttl": given["ttl_ms"] / 1000,
        "patience": given.get("patience_ms", 10_000) / 1000,
        "grace": seconds(given.get("grace_ms")),
    }


def seconds(milliseconds: int | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000


def body_of(step: Step) -> Any:
    """What the body of a handler returns, or raises, as its step says."""
    match step:
        case {"error": message}:
            raise OwnError(message)
        case {"reject": detail}:
            raise Reject(detail)
    return value(step.get("result"))


def outcome(outcome: Any) -> Json:
    """What `run` returned."""
    if isinstance(outcome, Ran):
        return {"ran": written(outcome.value)}
    return failure(outcome)


def failure(error: BaseException) -> Json:
    """An expected answer or an error, whether it was raised or returned."""
    if isinstance(error, ExceptionGroup):  # of many turns at once: the first one that was not granted
        return failure(error.exceptions[0])
    for kind, (name, names) in OUTCOMES.items():
        if isinstance(error, kind):
            return {name: fields(error, names)}
    for kind, (name, names) in ERRORS.items():
        if isinstance(error, kind):
            return {"error": {"kind": name, **fields(error, names)}}
    if isinstance(error, OwnError):
        return {"error": {"kind": "own", "message": str(error)}}
    if isinstance(error, CANCELLATIONS):
        return {"error": {"kind": "cancelled"}}
    shown = "".join(traceback.format_exception(error)[-6:])
    return {"error": {"kind": "unexpected", "message": repr(error), "trace": shown}}


def fields(source: object, names: tuple[str, ...]) -> dict[str, Json]:
    result = {}
    for name in names:
        item = getattr(source, name)
        if name == "retry_after":
            result["retry_after_ms"] = None if item is None else item * 1000
        else:
            result[name] = written(item)
    return result


def granted(held: Any) -> Json:
    """A turn or a lease as its scope was entered."""
    attempt = getattr(held, "attempt", None)
    return {"granted": {"attempt": attempt, "fence": held.fence, "held": held.held}}


def state(held: Any, was_interrupted: bool | None) -> Json:
    """A turn or a lease as it reports itself. `was_interrupted`: None if it cannot be."""
    lost = held.lost.is_set()
    return {
        "held": held.held,
        "lost": held.lost.reason if lost else None,
        "kept_by": held.kept_by,
        "attempt": getattr(held, "attempt", None),
        "fence": held.fence,
        "waiters": held.waiters,
        "left_ms": held.left * 1000,
        "interrupted": lost if was_interrupted is None else was_interrupted,
    }


def mark(item: MarkItem) -> Json:
    return {"first": item.first, "event_id": item.event_id}


def seen(found: Seen) -> Json:
    return {"state": found.state, **fields(found, ("event_id", "outcome", "result"))}


def many_deliveries(step: Step) -> list[Delivery]:
    """The deliveries of `mark_all`."""
    prefix, repeated, bad = step["prefix"], step.get("repeat", ()), step.get("bad", ())

    def one(index: int) -> Delivery:
        event = "" if index in bad else f"{prefix}{0 if index in repeated else index}"
        aliases = [f"{event}:{n}:".ljust(512, "x") for n in range(step.get("aliases", 0))]
        return Delivery(step["team"], event, aliases=aliases)

    return [one(index) for index in range(step["count"])]


@dataclass
class Marks:
    """What `mark_all` yielded."""

    given: list[Delivery]
    items: list[MarkItem] = field(default_factory=list)

    def result(self) -> Json:
        failed = [
            {"index": index, **failure(item.error)["error"]}
            for index, item in enumerate(self.items)
            if item.error is not None
        ]
        yielded = [item.delivery for item in self.items]
        first = sum(item.first for item in self.items)
        return {
            "count": len(self.items),
            "first": first,
            "duplicates": len(self.items) - first - len(failed),
            "errors": failed,
            "in_order": all(a is b for a, b in zip(yielded, self.given, strict=False)),
        }
