"""Handle every event of a bot or webhook once, in its conversation's turn.

``AsyncGate`` and ``Gate`` have the same words: ``turn``, ``run``, ``once``, ``lease``, ``mark``,
``mark_all``, ``seen``, ``adopt``.
"""

from oncegate import discord, github, slack, standard_webhooks, stripe, teams, telegram
from oncegate._aio import AsyncGate
from oncegate._aio_scopes import AsyncLease, AsyncTurn
from oncegate._codec import Codec, JsonCodec, PydanticCodec
from oncegate._delivery import Delivery, Session
from oncegate._errors import (
    Busy,
    Denied,
    Dropped,
    Duplicate,
    EpicMismatch,
    GaveUp,
    InProgress,
    Internal,
    Invalid,
    LeaseLost,
    Misconfigured,
    NotGranted,
    OncegateError,
    Outcome,
    OutcomeUnknown,
    Overloaded,
    PayloadMismatch,
    Ran,
    Reject,
    TurnLost,
    Unavailable,
    WrongProcess,
)
from oncegate._marks import MarkItem, Seen
from oncegate._options import Hooks
from oncegate._sync import Gate
from oncegate._sync_scopes import Lease, Turn
from oncegate._turn import current_turn

__all__ = [
    "AsyncGate",
    "AsyncLease",
    "AsyncTurn",
    "Busy",
    "Codec",
    "Delivery",
    "Denied",
    "Dropped",
    "Duplicate",
    "EpicMismatch",
    "Gate",
    "GaveUp",
    "Hooks",
    "InProgress",
    "Internal",
    "Invalid",
    "JsonCodec",
    "Lease",
    "LeaseLost",
    "MarkItem",
    "Misconfigured",
    "NotGranted",
    "OncegateError",
    "Outcome",
    "OutcomeUnknown",
    "Overloaded",
    "PayloadMismatch",
    "PydanticCodec",
    "Ran",
    "Reject",
    "Seen",
    "Session",
    "Turn",
    "TurnLost",
    "Unavailable",
    "WrongProcess",
    "current_turn",
    "discord",
    "github",
    "slack",
    "standard_webhooks",
    "stripe",
    "teams",
    "telegram",
]
