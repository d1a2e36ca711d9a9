"""What Slack is answered, and whether this process looks after a delivery itself."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from slack_bolt import BoltResponse

from oncegate import slack
from oncegate._again import retry_after
from oncegate._errors import Busy, Dropped, Duplicate, GaveUp, InProgress

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
    """What to do with a delivery whose turn was not granted."""

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
    is_event: bool
    """An event of the Events API; else an interaction or a command, which Slack delivers once."""
    comes_again: bool

    @property
    def on_unavailable(self) -> OnUnavailable | None:
        """``None``: as the gate is set."""
        return "raise" if self.comes_again else None

    def action(self, refusal: Exception) -> Action:
        """What to do if the turn is not granted at once."""
        match refusal:
            case Duplicate() | GaveUp() | Dropped():
                return Action.ACKNOWLEDGE
            case Busy():
                return Action.QUEUE
            case InProgress() if not self.is_event:
                return Action.ACKNOWLEDGE
            case _ if self.comes_again or not self.is_event:
                return Action.REFUSE
            case _:
                return Action.QUEUE


def incoming(request: BoltRequest | AsyncBoltRequest) -> Incoming | None:
    """Reads a request. ``None``: its listener runs without a turn of its own."""
    body: dict[str, Any] = request.body
    kind = body.get("type")
    # A lazy function that runs elsewhere, or the next listener of a request that has its turn.
    belongs_to_turn = request.lazy_only or "turn" in request.context
    if belongs_to_turn or kind in _WITHOUT_TURN:
        return None
    is_event = kind == "event_callback"
    retry = int(next(iter(request.headers.get("x-slack-retry-num", ())), 0))
    return Incoming(
        # In Socket Mode, Bolt has the parsed payload only.
        slack.delivery(request.raw_body or json.dumps(body)),
        is_event,
        comes_again=is_event and retry < _LAST_RETRY,
    )


def acknowledged() -> BoltResponse:
    """Slack does not deliver again."""
    return BoltResponse(status=200)


def refused(refusal: Exception) -> BoltResponse:
    """Slack delivers an event again. In Socket Mode, a response other than 200 is not sent."""
    after = str(max(1, round(retry_after(refusal))))
    return BoltResponse(status=503, headers={"retry-after": after})
