"""The errors of the library, and the outcomes that are returned as values.

Every error that a server's answer caused has the gRPC status as its ``__cause__``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeAlias, TypeVar

T_co = TypeVar("T_co", covariant=True)


class OncegateError(Exception):
    """Base of all errors of this library."""


class NotGranted(OncegateError):
    """There is no turn. Raised by scopes, returned by ``run``."""


class Duplicate(NotGranted):
    """The event has been handled: acknowledge it."""

    __match_args__ = ("result", "outcome", "detail")

    def __init__(self, result: Any = None, outcome: str | None = None, detail: str = "") -> None:
        super().__init__("the event has been handled; acknowledge it")
        self.result = result
        """What the turn that handled it stored, decoded. None if it cannot be decoded: the codec's
        error is the cause."""
        self.outcome = outcome
        """``"SUCCEEDED"`` or ``"REJECTED"``; ``None`` if it was only marked."""
        self.detail = detail
        """Why it was rejected."""

    def replay(self) -> Any:
        """`result`. Raises this error if it cannot be decoded."""
        if self.__cause__ is not None:
            raise self
        return self.result


class GaveUp(NotGranted):
    """All attempts failed: nobody has handled the event. Acknowledge it, and alert a person."""

    __match_args__ = ("attempts", "detail")

    def __init__(self, attempts: int, detail: str = "") -> None:
        super().__init__(f"the event was given up after {attempts} attempts: {detail or 'no detail'}")
        self.attempts = attempts
        self.detail = detail
        """The detail of the latest failure."""


class InProgress(NotGranted):
    """Another run handles the event: refuse the delivery if its sender redelivers."""

    __match_args__ = ("holder", "attempt", "retry_after")

    def __init__(self, holder: str, attempt: int, retry_after: float) -> None:
        super().__init__(f"{holder} handles the event; ask again in {retry_after:.1f} s")
        self.holder = holder
        self.attempt = attempt
        self.retry_after = retry_after
        """Seconds after which to ask again."""


class Busy(NotGranted):
    """Another turn has the conversation, and ``wait`` is over. The event is unchanged."""

    __match_args__ = ("holder", "queue_length", "retry_after")

    def __init__(self, holder: str, queue_length: int, retry_after: float) -> None:
        super().__init__(
            f"{holder or 'the next in the queue'} has the conversation, {queue_length} waiting; "
            f"ask again in {retry_after:.1f} s"
        )
        self.holder = holder
        self.queue_length = queue_length
        self.retry_after = retry_after
        """Seconds after which to ask again."""


class Dropped(NotGranted):
    """The server is unavailable, and ``on_unavailable`` is ``"drop"``."""

    def __init__(self) -> None:
        super().__init__(
            "the server is unavailable, and on_unavailable is drop; the event is not handled"
        )


class Lost(OncegateError):
    """Base of `TurnLost` and `LeaseLost`."""

    __match_args__ = ("reason", "value")
    what = "holding"

    def __init__(self, reason: str, value: Any = None) -> None:
        super().__init__(f"the {self.what} was lost ({reason}); stop working, another run may have it")
        self.reason = reason
        """``"CLAIM_LOST"``, ``"LEASE_LOST"``, ``"MAX_HOLD"``, ``"DENIED"``, ``"EXPIRED"``, ``"CLOSED"``
        or, if its scope had been left, ``"ENDED"``."""
        self.value = value
        """What the handler returned although the turn was lost. It was not stored."""


class TurnLost(Lost):
    """The turn ended without its holder: stop working."""

    what = "turn"


class LeaseLost(Lost):
    """The lease ended without its holder: stop working."""

    what = "lease"


class OutcomeUnknown(OncegateError):
    """The end of the turn was sent, and no answer came. `Gate.seen` reports later what is stored."""

    __match_args__ = ("turn_id", "value")

    def __init__(self, turn_id: str, value: Any = None) -> None:
        super().__init__(
            "the server did not confirm the end of the turn; refuse the delivery, so that its "
            "redelivery finds out"
        )
        self.turn_id = turn_id
        self.value = value
        """What the handler returned."""


class Unavailable(OncegateError):
    """No server answered within ``patience``. Nothing is held, as far as is known."""

    __match_args__ = ("retry_after",)

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(f"the server is unavailable: {message}; refuse the delivery or retry later")
        self.retry_after = retry_after
        """Seconds after which to try again."""


class Closed(Unavailable):
    """The gate was closed: asking again does not help."""

    def __init__(self) -> None:
        super().__init__("the gate is closed")


class Overloaded(OncegateError):
    """A limit of the server was reached, and ``patience`` is over."""

    __match_args__ = ("retry_after",)

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(f"the server is overloaded: {message}; retry in {retry_after:.1f} s")
        self.retry_after = retry_after
        """Seconds after which to try again."""


class Denied(OncegateError):
    """The server does not know the caller, or the caller may not do this. A retry does not help."""

    __match_args__ = ("reason",)

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(
            f"the server denies the call ({reason}): {message}; check the gate's token or certificate, "
            "and its role and teams in the server's --auth file"
        )
        self.reason = reason
        """``"TEAM_DENIED"``, ``"ROLE_DENIED"`` or another reason of the contract; without one,
        ``"UNAUTHENTICATED"`` or ``"PERMISSION_DENIED"``."""


class Misconfigured(OncegateError):
    """An option of the gate, or the file that it names, cannot be used: fix it."""

    __match_args__ = ("option",)

    def __init__(self, option: str, problem: str) -> None:
        super().__init__(f"{option}: {problem}; fix the settings of the gate")
        self.option = option


class EpicMismatch(OncegateError):
    """The session is bound to another epic."""

    __match_args__ = ("bound",)

    def __init__(self, bound: str) -> None:
        super().__init__(f"the session is bound to epic {bound}; use another session, or BindEpic")
        self.bound = bound


class PayloadMismatch(OncegateError):
    """The event is on record with another digest."""

    def __init__(self) -> None:
        super().__init__("another payload has the same name; name the two events differently")


class Invalid(OncegateError):
    """The request breaks a rule of the contract: fix the caller."""

    __match_args__ = ("field",)

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{problem}; fix the caller")
        self.field = field
        """The field's path; empty if the message has no field."""


class WrongProcess(OncegateError):
    """The turn, lease or gate belongs to the process that forked this one."""

    __match_args__ = ()

    def __init__(self, problem: str) -> None:
        super().__init__(problem)


class Internal(OncegateError):
    """A fault of the server, or an answer that this library does not know. Report it."""

    def __init__(self, message: str) -> None:
        super().__init__(f"{message}; report it")


class Reject(Exception):
    """Raised by a handler: no retry can succeed. The event is ended REJECTED, with this detail."""

    __match_args__ = ("detail",)

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail)
        self.detail = detail


@dataclass(frozen=True)
class Ran(Generic[T_co]):
    """The handler ran, and this is what it returned."""

    value: T_co


REJECTED: Ran[Any] = Ran(None)
"""The handler ran, and rejected the event."""

NOT_GRANTED = (Duplicate, GaveUp, InProgress, Busy, Dropped)
"""All kinds of `NotGranted`."""

Outcome: TypeAlias = Ran[T_co] | Duplicate | GaveUp | InProgress | Busy | Dropped
