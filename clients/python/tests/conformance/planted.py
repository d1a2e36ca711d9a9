"""Plants the bugs of `clients/conformance/planted.json` in the library of this process."""

from __future__ import annotations

import inspect
import json
import textwrap
from dataclasses import dataclass
from typing import Any

import pytest

from oncegate import _connections, _delivery, _entry, _hold, _lease_flow, _turn_flow

from .scenario import FOLDER, Json

Turn, Hold, Lease = _turn_flow.TurnFlow, _hold.Hold, _lease_flow.LeaseFlow


@dataclass(frozen=True)
class InRandomRuns:
    """How random runs find a bug."""

    rule: str
    """The rule that it breaks, as in `history`."""
    faults: list[str]
    """The faults that it needs, as in `faults`."""


@dataclass(frozen=True)
class Bug:
    """One bug of the list."""

    name: str
    broken: str
    red: dict[str, int]
    """The scenarios that it turns red, each with the number of the step that differs."""
    random: InRandomRuns | None


def bugs() -> list[Bug]:
    return [bug(**fields) for fields in json.loads((FOLDER / "planted.json").read_text())]


def bug(name: str, broken: str, red: dict[str, int], random: Json = None) -> Bug:
    return Bug(name, broken, red, random and InRandomRuns(**random))


class Changed:
    """A function of the library with one text of its source replaced by another."""

    def __init__(self, function: Any, was: str, now: str) -> None:
        self._function, self._was, self._now = function, was, now

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        source = textwrap.dedent(inspect.getsource(self._function))
        count = source.count(self._was)
        where = self._function.__qualname__
        assert count == 1, f"{self._was!r} stands {count} times in {where}: plant it anew"
        made: dict[str, Any] = {}
        changed = compile(source.replace(self._was, self._now), f"<planted in {where}>", "exec")
        exec(changed, self._function.__globals__, made)
        # The code alone is exchanged, so that all who have imported the function run it.
        patch.setattr(self._function, "__code__", made[self._function.__name__].__code__)


class Together:
    """Several changes: the library guards the same rule in more than one place."""

    def __init__(self, *changes: Changed) -> None:
        self._changes = changes

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        for change in self._changes:
            change.plant(patch)


class Replaced:
    """A constant of the library with another value, in all modules that use it."""

    def __init__(self, name: str, value: Any, *modules: Any) -> None:
        self._name, self._value, self._modules = name, value, modules

    def plant(self, patch: pytest.MonkeyPatch) -> None:
        for module in self._modules:
            assert getattr(module, self._name) != self._value
            patch.setattr(module, self._name, self._value)


# As if it had been granted.
ENTERS = "self.trusted_end = self.now() + 60; return True"

PATCHES: dict[str, Changed | Together | Replaced] = {
    "enters-on-busy": Changed(
        Turn._granted,
        "raise errors.Busy(held.holder, held.queue_length, span(held.retry_after))",
        ENTERS,
    ),
    "enters-on-duplicate": Changed(
        Turn._granted, "raise duplicate(message.duplicate, self._codec)", ENTERS
    ),
    "impatient": Changed(Hold._ask, "if over or not failure.retryable:", "if True:"),
    "no-wait": Changed(Turn._open, "self._request.wait.CopyFrom(duration(wait))", "pass"),
    "new-request-id-per-retry": Changed(
        Hold._ask, "heard = False", "heard, self._request.request_id = False, repr(self._sent)"
    ),
    "no-consumer": Changed(_delivery.Delivery.event_key, "consumer=consumer", 'consumer=""'),
    "counts-from-receipt": Changed(Hold._trust, "sent + elapsed + lasts", "self.now() + lasts"),
    "ignores-elapsed": Changed(Hold._trust, "sent + elapsed + lasts", "sent + lasts"),
    "ignores-grace": Changed(Hold._trust, "min(remaining, grace)", "remaining"),
    "silence-is-not-probed": Changed(Hold._trust, "min(0.4 * self.terms.ttl, latest)", "3600"),
    "no-renewal-after-a-break": Changed(
        Hold._break,
        "if failure.loss:\n        self.lose(failure.loss)",
        "if True:\n        self.lose(failure.loss or 'EXPIRED')",
    ),
    "renewal-dies": Changed(Hold._keep_renewing, "while not self._over:", "for _ in range(1):"),
    "loss-does-not-interrupt": Changed(Hold.lose, "self.on_lost(reason)", "pass"),
    "check-ignores-the-clock": Changed(Hold.check, "self.held and self.left <= 0", "False"),
    "end-after-loss": Together(
        Changed(Hold._close, "if self._over:", "if self._over and not self.lost_reason:"),
        Changed(_entry.TurnEntry._encoded, "if flow.lost_reason is not None:", "if False:"),
    ),
    "end-is-not-repeated": Changed(
        Turn._end,
        "await call_until(self._io, FINISH_TURN, request, until)",
        'raise Failure("UNAVAILABLE", "not repeated")',
    ),
    "unknown-is-success": Changed(
        Turn._finish, "raise errors.OutcomeUnknown(self.id) from failure.__cause__", "return"
    ),
    "success-is-failure": Changed(
        Turn.succeed, "events.TURN_OUTCOME_SUCCEEDED", "events.TURN_OUTCOME_FAILED"
    ),
    "error-is-success": Changed(
        Turn._give_back,
        "outcome=events.TURN_OUTCOME_FAILED, detail=short(detail)",
        "outcome=events.TURN_OUTCOME_SUCCEEDED",
    ),
    "reject-is-failure": Changed(
        Turn.reject, "events.TURN_OUTCOME_REJECTED", "events.TURN_OUTCOME_FAILED"
    ),
    "own-error-is-masked": Changed(
        Turn._give_back,
        'LOG.debug("the end of turn %s failed: %s", self.id, failure)',
        "raise failure.error()",
    ),
    "fails-open": Changed(_entry.TurnEntry._refuse, 'if self._on_unavailable == "run":', "if True:"),
    "single-channel": Replaced("STREAMS_PER_CHANNEL", 10_000, _connections),
    "lease-is-not-released": Changed(
        Lease._give_back,
        "await call_until(self._io, RELEASE_LEASE, request, self._io.now() + RELEASING)",
        "pass",
    ),
}
