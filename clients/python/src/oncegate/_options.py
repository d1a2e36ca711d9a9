"""Options of a gate, and the requests that they make. Shared by `AsyncGate` and `Gate`."""

from __future__ import annotations

import logging
import os
import socket
import sys
import uuid
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict, TypeVar

from oncegate._access import Access, AccessOptions
from oncegate._clock import Time, duration, seconds
from oncegate._codec import Codec, JsonCodec
from oncegate._errors import Invalid
from oncegate._hold import Terms
from oncegate._wire import Failure
from oncegate.v1 import idempotency_service_pb2 as idempotency
from oncegate.v1 import turn_service_pb2 as turns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from oncegate._delivery import Delivery, Session

T = TypeVar("T")
LOG = logging.getLogger("oncegate")

OnUnavailable: TypeAlias = Literal["raise", "run", "drop"]


class Hooks:
    """What a program may observe, such as for metrics. Override what you need; must not block."""

    def on_begin(self, delivery: Delivery) -> None:
        """A turn was granted."""

    def on_queued(self, position: int) -> None:
        """A turn or lease waits in the queue; 1 is next."""

    def on_lost(self, reason: str) -> None:
        """A turn or lease was lost."""

    def on_end(self, outcome: str) -> None:
        """A turn ended: SUCCEEDED, FAILED, REJECTED, LOST or UNKNOWN."""


class Guarded(Hooks):
    """The author's hooks. What they raise is logged: turns and leases do not depend on it."""

    def __init__(self, hooks: Hooks) -> None:
        self._hooks = hooks

    def on_begin(self, delivery: Delivery) -> None:
        """See `Hooks`."""
        self._call(self._hooks.on_begin, delivery)

    def on_queued(self, position: int) -> None:
        """See `Hooks`."""
        self._call(self._hooks.on_queued, position)

    def on_lost(self, reason: str) -> None:
        """See `Hooks`."""
        self._call(self._hooks.on_lost, reason)

    def on_end(self, outcome: str) -> None:
        """See `Hooks`."""
        self._call(self._hooks.on_end, outcome)

    def _call(self, hook: Callable[[T], None], what: T) -> None:
        try:
            hook(what)
        except Exception:
            LOG.exception("the hook %r failed", hook)


class TurnOptions(TypedDict, total=False):
    """Options of one turn. Times are seconds or timedeltas."""

    wait: Time | None
    """How long to queue while the conversation is busy. 0 to 10 min; default 0."""
    ttl: Time | None
    """How long the turn runs unless it is renewed. Default: the gate's."""
    max_attempts: int | None
    """Failed attempts after which the event is given up. Default: the gate's."""
    epic: str
    """The work to bind the session to, such as an issue key."""
    labels: Mapping[str, str] | None
    """Shown with the lease. At most 8."""
    on_unavailable: OnUnavailable | None
    """Default: the gate's."""
    patience: Time | None
    """How long to try while the server is unavailable or overloaded. Default: the gate's."""
    codec: Codec | None
    """How the result is stored. Default: the gate's."""


class LeaseOptions(TypedDict, total=False):
    """Options of one lease, as in `TurnOptions`."""

    wait: Time | None
    ttl: Time | None
    epic: str
    labels: Mapping[str, str] | None
    patience: Time | None


class GateOptions(AccessOptions, total=False):
    """Options of a gate. Times are seconds or timedeltas."""

    consumer: str
    """The application that handles the events, such as a bot's name. Each consumer handles an event
    once. Default: one that all share."""
    share_sessions: bool
    """Whether all consumers take turns in a conversation. Default: each has its own."""
    holder: str | None
    """The name that others see while this process holds something."""
    ttl: Time | None
    """How long a turn or lease runs unless it is renewed: how long a conversation stays with a process
    that vanished. 1 s to 15 min; default 45 s."""
    grace: Time | None
    """How long a turn stays with a process whose stream broke. Default: half the TTL, at least 5 s."""
    patience: Time | None
    """How long to try while the server is unavailable or overloaded. Default 10 s."""
    on_unavailable: OnUnavailable | None
    """What happens then: ``"raise"`` (default) raises `Unavailable`, ``"run"`` runs the body without a
    turn, ``"drop"`` raises `Dropped`."""
    max_attempts: int | None
    """Failed attempts after which an event is given up. 1 to 100; default 5."""
    codec: Codec | None
    """How results are stored. Default: `JsonCodec`."""
    hooks: Hooks | None
    """What to observe."""


def known(options: Mapping[str, object], kind: type) -> None:
    """Raises TypeError for an option that does not exist."""
    for name in options.keys() - kind.__annotations__.keys():
        raise TypeError(f"{kind.__name__} has no option {name!r}")


def _or(value: Time | None, default: Time) -> Time:
    return default if value is None else value


def _check_grace(terms: Terms) -> None:
    """The margin is taken off the grace: something must be left of it."""
    if terms.grace <= terms.margin:
        raise Invalid(
            "grace", f"a grace of {terms.grace:g} s is too short; use more than {terms.margin:g} s"
        )


class Options:
    """The options of a gate, and the requests that they make. Times in seconds."""

    def __init__(
        self, server: str | None, options: GateOptions, environment: Mapping[str, str] = os.environ
    ) -> None:
        known(options, GateOptions)
        try:
            self.access = Access(server, options, environment)
        except Failure as failure:
            raise failure.error() from None
        self.consumer = options.get("consumer", "")
        self.share_sessions = options.get("share_sessions", False)
        self.holder = options.get("holder")
        self.ttl = seconds(_or(options.get("ttl"), 45.0))
        self.grace = options.get("grace")
        self.patience = seconds(_or(options.get("patience"), 10.0))
        self.on_unavailable: OnUnavailable = options.get("on_unavailable") or "raise"
        self.max_attempts = options.get("max_attempts") or 5
        self.codec = options.get("codec") or JsonCodec()
        self.hooks: Hooks = Guarded(options.get("hooks") or Hooks())
        self._warned = set[str]()
        _check_grace(self.terms({}))

    def holder_name(self) -> str:
        """The holder that others see."""
        if self.holder is not None:
            return self.holder
        program = os.path.basename(sys.argv[0] if sys.argv else "") or "python"
        return f"{self.consumer or program}:{socket.gethostname()}:{os.getpid()}"

    def terms(self, options: TurnOptions | LeaseOptions) -> Terms:
        """The times of one turn or lease."""
        ttl = seconds(_or(options.get("ttl"), self.ttl))
        return Terms(
            wait=seconds(_or(options.get("wait"), 0.0)),
            ttl=ttl,
            grace=min(ttl, max(5.0, ttl / 2) if self.grace is None else seconds(self.grace)),
            patience=seconds(_or(options.get("patience"), self.patience)),
        )

    def begin(
        self, delivery: Delivery, options: TurnOptions, terms: Terms, *, session: bool
    ) -> turns.BeginTurnRequest:
        """The request of a turn; `session`: with the delivery's conversation."""
        _check_grace(terms)
        consumer = self._consumer(delivery)
        ttl = duration(terms.ttl)
        return turns.BeginTurnRequest(
            event=delivery.event_key(consumer),
            session=delivery.session_key(self._session_consumer(consumer)) if session else None,
            holder=self.holder_name(),
            request_id=str(uuid.uuid4()),
            claim_ttl=ttl,
            lease_ttl=ttl,
            grace=duration(terms.grace),
            epic_id=options.get("epic"),
            max_attempts=options.get("max_attempts") or self.max_attempts,
            labels=options.get("labels"),
            payload_digest=delivery.digest,
        )

    def hold(
        self, session: Session, terms: Terms, options: LeaseOptions
    ) -> idempotency.HoldSessionLeaseRequest:
        """The request of a lease."""
        return idempotency.HoldSessionLeaseRequest(
            session=session.key(self._session_consumer(self.consumer)),
            holder=self.holder_name(),
            request_id=str(uuid.uuid4()),
            ttl=duration(terms.ttl),
            epic_id=options.get("epic"),
            labels=options.get("labels"),
        )

    def mark(self, delivery: Delivery, ttl: Time | None = None) -> idempotency.MarkProcessedRequest:
        """The request of a mark."""
        lifetime = delivery.lifetime() if ttl is None else seconds(ttl)
        return idempotency.MarkProcessedRequest(
            event=delivery.event_key(self._consumer(delivery)),
            ttl=None if lifetime is None else duration(lifetime),
            request_id=str(uuid.uuid4()),
            payload_digest=delivery.digest,
        )

    def is_processed(self, delivery: Delivery, include_result: bool) -> idempotency.IsProcessedRequest:
        """The request of a read."""
        return idempotency.IsProcessedRequest(
            event=delivery.event_key(self._consumer(delivery)), include_result=include_result
        )

    def _consumer(self, delivery: Delivery) -> str:
        return self.consumer if delivery.consumer is None else delivery.consumer

    def _session_consumer(self, consumer: str) -> str:
        return "" if self.share_sessions else consumer

    def warn_unguarded(self, delivery: Delivery) -> None:
        """Once for each kind of delivery."""
        if delivery.kind not in self._warned:
            self._warned.add(delivery.kind)
            LOG.warning(
                "a %s payload names no event; its handler runs without a turn (reported once)",
                delivery.kind,
            )
