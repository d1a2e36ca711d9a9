"""Events as Slack sends them, and what became of their delivery."""

import itertools
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

TEAM = "T0FAKE"
APP = "A0FAKE"
CHANNEL = "C0FAKE"
PERSON = "U0PERSON"
BOT_USER = "U0BOT"
BOT = "B0BOT"

Payload = dict[str, Any]

_numbers = itertools.count(1)


def timestamp() -> str:
    """A message's `ts`, which is its id in a channel: no two are equal."""
    return f"{int(time.time())}.{next(_numbers):06}"


def mention(text: str, thread: str | None = None) -> Payload:
    """The body of an `app_mention`, at the top of the channel or in a thread."""
    event = {
        "type": "app_mention",
        "user": PERSON,
        "text": f"<@{BOT_USER}> {text}",
        "ts": timestamp(),
        "client_msg_id": str(uuid.uuid4()),
        "team": TEAM,
        "channel": CHANNEL,
    }
    event["event_ts"] = event["ts"]
    if thread:
        event |= {"thread_ts": thread, "parent_user_id": PERSON}
    return {
        "token": "fake-verification-token",
        "team_id": TEAM,
        "context_team_id": TEAM,
        "context_enterprise_id": None,
        "api_app_id": APP,
        "type": "event_callback",
        "event_id": f"Ev{uuid.uuid4().hex[:9].upper()}",
        "event_time": int(time.time()),
        "is_ext_shared_channel": False,
        "event_context": "4-fake",
        "authorizations": [
            {
                "enterprise_id": None,
                "team_id": TEAM,
                "user_id": BOT_USER,
                "is_bot": True,
                "is_enterprise_install": False,
            }
        ],
        "event": event,
    }


@dataclass
class Attempt:
    """One attempt to deliver an event."""

    number: int
    """0 for the first delivery, then the number of the retry."""
    receiver: str = "no receiver"
    outcome: str | None = None
    """`ok`, or why Slack delivers again; None while it waits for an answer."""


@dataclass
class Delivery:
    """An event on its way to the bot, with all attempts so far."""

    payload: Payload
    lose_ack: bool = False
    """Whether the acknowledgement of the first delivery does not reach Slack."""
    attempts: list[Attempt] = field(default_factory=list)
    accepted: bool = False
    ended: bool = False
    """Whether Slack delivers it no more: it was accepted, or all attempts failed."""

    @property
    def event_id(self) -> str:
        return str(self.payload["event_id"])

    @property
    def thread(self) -> str:
        """The thread that an answer belongs to."""
        event = self.payload["event"]
        return str(event.get("thread_ts") or event["ts"])

    def acknowledge(self) -> None:
        """The bot acknowledges the event."""
        self.accepted = not (self.lose_ack and len(self.attempts) == 1)

    @property
    def outcomes(self) -> list[str | None]:
        return [attempt.outcome for attempt in self.attempts]
