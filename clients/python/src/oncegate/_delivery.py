"""What came in: the names of an event and of its conversation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, TypeAlias, TypedDict, cast

from oncegate._clock import Time, seconds
from oncegate._codec import to_json
from oncegate.v1 import delivery_pb2, event_pb2, session_pb2

Scope: TypeAlias = Literal["thread", "channel", "user"]
"""How much of a delivery's conversation is one session."""

_SCOPES: dict[Scope, session_pb2.SessionScope] = {
    "thread": session_pb2.SESSION_SCOPE_THREAD,
    "channel": session_pb2.SESSION_SCOPE_CHANNEL,
    "user": session_pb2.SESSION_SCOPE_USER,
}


LARGE = 200 * 1024
"""A body of more bytes is cut: no longer texts, no longer lists than the following."""

LONG = 1024
MANY = 16


@dataclass(frozen=True, slots=True)
class Payload:
    """A delivery as its platform sent it. The server reads the names from it."""

    platform: delivery_pb2.Platform
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    scope: Scope | None = "thread"
    """``None``: the event alone is claimed."""

    def name(self, key: event_pb2.EventKey) -> None:
        """Names an event by this payload."""
        if self.platform == delivery_pb2.PLATFORM_SLACK:
            key.slack_payload = self.body
        else:
            key.delivery.platform = self.platform
            key.delivery.headers.update(self.headers)
            key.delivery.body = self.body

    def session_key(self, consumer: str) -> session_pb2.SessionKey | None:
        """The conversation of the event that the same request has: its payload is sent once."""
        if self.scope is None:
            return None
        key = session_pb2.SessionKey(consumer=consumer, scope=_SCOPES[self.scope])
        if self.platform == delivery_pb2.PLATFORM_SLACK:
            key.slack_payload = b""
        else:
            key.delivery.SetInParent()
        return key


@dataclass(frozen=True, slots=True)
class Session:
    """A conversation of a tenant, by an id of the caller's."""

    team: str
    id: str
    channel: str = ""
    thread_ts: str = ""

    @classmethod
    def thread(cls, team: str, channel: str, ts: str) -> Session:
        """A channel's thread, by the timestamp or id of its first message."""
        return cls(team, "", channel, ts)

    def key(self, consumer: str) -> session_pb2.SessionKey:
        """The session in a request."""
        if self.channel:
            thread = session_pb2.ThreadKey(channel_id=self.channel, thread_ts=self.thread_ts)
            return session_pb2.SessionKey(team_id=self.team, thread=thread, consumer=consumer)
        return session_pb2.SessionKey(team_id=self.team, session_id=self.id, consumer=consumer)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery: what names its event, its conversation, and whether its sender redelivers.

    ``slack.delivery(body)``, ``github.delivery(headers, body)`` and so on make one of a platform's
    payload. By hand: ``Delivery("T1", "Ev1", session="C1:17.5")``.
    """

    team: str
    """The tenant. May be empty if a payload names it."""
    event: str
    """The event's id. Empty if there is a payload."""
    session: Session | str | None = None
    """The conversation; a text is a session id of the same tenant. Without one, only the event is
    claimed."""
    _: KW_ONLY
    aliases: Sequence[str] = ()
    """Other names of the same event, at most 8."""
    digest: bytes = b""
    """A digest of the payload, at most 32 bytes: another payload under the same name raises
    `PayloadMismatch`."""
    ttl: Time | None = None
    """How long the event stays processed: seconds, 1 s to 30 days; ``None``: 24 h."""
    redelivers: bool = True
    """Whether the sender delivers again what was refused."""
    each_use: bool = False
    """Slack interactions: every click is an event of its own."""
    consumer: str | None = None
    """The application that handles the event; ``None``: the gate's."""
    payload: Payload | None = None
    """The delivery as its platform sent it."""

    @property
    def kind(self) -> str:
        """The platform, for logs."""
        if self.payload is None:
            return "delivery"
        return delivery_pb2.Platform.Name(self.payload.platform)[len("PLATFORM_") :].lower()

    def event_key(self, consumer: str) -> event_pb2.EventKey:
        """The event in a request."""
        key = event_pb2.EventKey(
            team_id=self.team,
            aliases=self.aliases,
            consumer=consumer,
            each_use=self.each_use,
        )
        if self.payload is None:
            key.event_id = self.event
        else:
            self.payload.name(key)
        return key

    def session_key(self, consumer: str) -> session_pb2.SessionKey | None:
        """The conversation in a request that also has the event."""
        if isinstance(self.session, Session):
            return self.session.key(consumer)
        if self.session is not None:
            return Session(self.team, self.session).key(consumer)
        return None if self.payload is None else self.payload.session_key(consumer)

    def lifetime(self) -> float | None:
        """`ttl` in seconds."""
        return None if self.ttl is None else seconds(self.ttl)


class DeliveryOptions(TypedDict, total=False):
    """What the author may say of a platform's delivery."""

    team: str
    """The tenant, if the payload names none, or another one than the payload does."""
    scope: Scope | None
    """How much of the conversation is one session. ``None``: the event alone is claimed."""
    consumer: str | None
    """As in `Delivery`."""
    ttl: Time | None
    """As in `Delivery`. Default: what fits the platform's redeliveries."""


def read_by_server(
    platform: delivery_pb2.Platform,
    body: Any,
    options: DeliveryOptions,
    *,
    headers: Mapping[str, str] | None = None,
    ttl: Time | None = None,
    redelivers: bool = True,
    each_use: bool = False,
) -> Delivery:
    """A platform's delivery, of which the server reads the names."""
    payload = Payload(platform, _cut(to_bytes(body)), headers or {}, options.get("scope", "thread"))
    return Delivery(
        options.get("team", ""),
        "",
        payload=payload,
        consumer=options.get("consumer"),
        ttl=options.get("ttl", ttl),
        redelivers=redelivers,
        each_use=each_use,
    )


def to_bytes(body: Any) -> bytes:
    """A body as it came, or JSON of the object that a framework parsed."""
    if isinstance(body, bytes | bytearray):
        return bytes(body)
    if isinstance(body, str):
        return body.encode()
    if not isinstance(body, Mapping) and hasattr(body, "to_dict"):
        body = body.to_dict()
    return to_json(body, default=str)


def _cut(body: bytes) -> bytes:
    """The server takes 256 KiB, and GitHub sends up to 25 MB: what names nothing is left out."""
    if len(body) <= LARGE:
        return body
    try:
        return to_json(_shortened(json.loads(body)))
    except (ValueError, RecursionError):
        return body  # not JSON


def _shortened(value: Any) -> Any:
    match value:
        case str():
            return value if len(value) <= LONG else ""
        case list():
            return [_shortened(item) for item in cast("Sequence[Any]", value)[:MANY]]
        case dict():
            return {key: _shortened(item) for key, item in cast("dict[str, Any]", value).items()}
        case _:
            return value


def pick(headers: Mapping[str, str], *names: str) -> dict[str, str]:
    """Only the headers with these names; case does not matter."""
    wanted = {name.lower() for name in names}
    return {name: value for name, value in headers.items() if name.lower() in wanted}
