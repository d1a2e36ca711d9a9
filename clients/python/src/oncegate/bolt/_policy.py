"""The response to Slack, and whether this process keeps a delivery until it has its turn."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from slack_bolt import BoltResponse

from oncegate import slack
from oncegate._errors import Busy, Dropped, Duplicate, GaveUp, InProgress
from oncegate._retry import retry_after

if TYPE_CHECKING:
    from slack_bolt import BoltRequest
    from slack_bolt.request.async_request import AsyncBoltRequest

    from oncegate._delivery import Delivery
    from oncegate._options import OnUnavailable

# Slack wants its answer within 3 s.
PATIENCE_BEFORE_ACK = 2.5

_LAST_RETRY = 3
_WITHOUT_TURN = frozenset(
    {"app_rate_limited", "block_suggestion", "dialog_suggestion", "url_verification"}
)


class Action(enum.Enum):
    """The handling of a delivery whose turn was not granted."""

    ACKNOWLEDGE = enum.auto()
    """Answer 200: there is nothing left to do."""
    REFUSE = enum.auto()
    """Answer 503: Slack delivers again, or shows the user that it failed."""
    QUEUE = enum.auto()
    """Answer 200: this process has the only copy now, and waits for the turn."""


@dataclass(frozen=True)
class Incoming:
    """A delivery that needs a turn."""

    delivery: Delivery
    can_refuse: bool
    """Whether Slack delivers it again after a refusal. The last delivery of an event is the only copy,
    and so is an interaction or a command."""

    @property
    def on_unavailable(self) -> OnUnavailable | None:
        """``None``: as the gate is set."""
        return "raise" if self.can_refuse else None

    def action(self, refusal: Exception, wait: float) -> Action:
        """The action after a refusal of the first request for the turn. `wait`: how long the delivery
        may wait in this process."""
        match refusal:
            case Duplicate() | GaveUp() | Dropped():
                return Action.ACKNOWLEDGE
            case Busy() if wait > 0 or not self.can_refuse:
                return Action.QUEUE
            case _ if self.can_refuse:
                return Action.REFUSE
            case _ if self.delivery.redelivers:
                return Action.QUEUE
            case InProgress():
                return Action.ACKNOWLEDGE
            case _:
                return Action.REFUSE  # which shows the user that it failed


def read(request: BoltRequest | AsyncBoltRequest) -> Incoming | None:
    """Reads a request. ``None``: its listener runs without a turn of its own."""
    body: dict[str, Any] = request.body
    # A lazy function that another process runs for the one that has the turn.
    if request.lazy_only or body.get("type") in _WITHOUT_TURN:
        return None
    # Bolt has parsed the body. A form that is too large for the server could not be cut.
    delivery = slack.delivery(body)
    retry = int(next(iter(request.headers.get("x-slack-retry-num", ())), 0))
    return Incoming(delivery, can_refuse=delivery.redelivers and retry < _LAST_RETRY)


def acknowledged() -> BoltResponse:
    """Slack does not deliver again."""
    return BoltResponse(status=200)


def refused(refusal: Exception) -> BoltResponse:
    """Slack delivers an event again. In Socket Mode, a response other than 200 is not sent."""
    after = str(max(1, ceil(retry_after(refusal))))
    return BoltResponse(status=503, headers={"retry-after": after})
