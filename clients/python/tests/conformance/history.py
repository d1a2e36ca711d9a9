"""What happened in random runs, and the rules that it must keep."""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from oncegate import (
    Duplicate,
    GaveUp,
    NotGranted,
    OncegateError,
    OutcomeUnknown,
    Ran,
)

from .scenario import Json

SETTLE_SECONDS = 0.5
"""How long the library may read what came in time while it was held up."""

LATE_SECONDS = 0.04
"""A pulse that is later than this has stood still."""


def clock() -> float:
    """The clock that the library counts ends on."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Write:
    """A write of a body, after a check that passed."""

    checked: float
    """When the check began."""
    trusted: float
    """The trusted end, read after it."""


@dataclass(frozen=True)
class Pause:
    """This process stood still: as one of the faults, or because other processes ran."""

    began: float
    ended: float


@dataclass
class Body:
    """A handler's body."""

    run: int
    event: int
    session: str
    attempt: int
    fence: int
    entered: float
    trusted_at_entry: float
    checks: bool = True
    """It checks before each write. Else it relies on the library's interruption."""
    writes: list[Write] = field(default_factory=list)
    left: float = float("inf")
    """When its last statement ran."""
    trusted: float = float("inf")
    """Its last trusted end, as it left."""

    @property
    def stopped(self) -> float:
        """Until when it may have had effects, if its author calls `check` before each."""
        return min(self.left, self.trusted)


class HandlerError(Exception):
    """A handler's own error."""


@dataclass
class Answer:
    """What one delivery of an event came to: an outcome, or an error."""

    run: int
    event: int
    outcome: Any
    at: float


@dataclass(frozen=True)
class Forced:
    """A session was released by force, which raised its fence. The next holds may have raised it
    further before it was read."""

    session: str
    before: int
    after: int


@dataclass
class History:
    """What the handlers recorded. Threads append to it."""

    margin: float
    max_attempts: int
    planned: list[int] = field(default_factory=list)
    """The runs that are to be."""
    bodies: list[Body] = field(default_factory=list)
    answers: list[Answer] = field(default_factory=list)
    forced: list[Forced] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)
    """They do not overlap: one pulse records them."""
    records: dict[int, Json] = field(default_factory=dict)
    """The events as the server has them at the end."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def enter(self, body: Body) -> None:
        with self._lock:
            self.bodies.append(body)

    def answer(self, answer: Answer) -> None:
        with self._lock:
            self.answers.append(answer)

    def beat(self, due: float) -> None:
        """A beat of the pulse, which was due then."""
        now = clock()
        if now - due > LATE_SECONDS:
            self.pauses.append(Pause(due, now))

    def faults(self) -> list[str]:
        """What breaks a rule, each with the rule's name. None: all hold."""
        return [f"{name_of(rule)}: {fault}" for rule in RULES for fault in rule(self)]

    def awake(self, since: float, until: float) -> float:
        """How much of this time the process did not stand still."""
        overlaps = (min(until, pause.ended) - max(since, pause.began) for pause in self.pauses)
        return until - since - sum(max(0.0, overlap) for overlap in overlaps)


def each_run_has_one_answer(history: History) -> Iterator[str]:
    """A run ends with an outcome, or with an error of the library's or of the handler's own."""
    answers = Counter(answer.run for answer in history.answers)
    for run in history.planned:
        if answers[run] != 1:
            yield f"run {run} has {answers[run]} answers"
    for answer in history.answers:
        if not isinstance(answer.outcome, Ran | OncegateError | HandlerError):
            yield f"run {answer.run} ended with {answer.outcome!r}"


def one_success(history: History) -> Iterator[str]:
    """An event succeeds once at most."""
    succeeded: dict[int, int] = {}
    for answer in history.answers:
        if isinstance(answer.outcome, Ran):
            if answer.event in succeeded:
                runs = f"{succeeded[answer.event]} and {answer.run}"
                yield f"event {answer.event} succeeded in run {runs}"
            succeeded[answer.event] = answer.run


def duplicates_replay_the_success(history: History) -> Iterator[str]:
    """A duplicate gets the value of the run that succeeded, or whose outcome is unknown."""
    values: dict[int, set[Any]] = defaultdict(set)
    possible: dict[int, set[Any]] = defaultdict(set)
    for answer in history.answers:
        match answer.outcome:
            case Duplicate(result=result):
                values[answer.event].add(result)
            case Ran(value):
                values[answer.event].add(value)
                possible[answer.event].add(value)
            case OutcomeUnknown(value=value):
                possible[answer.event].add(value)
    for event, found in values.items():
        if len(found) > 1:
            yield f"event {event} has several results: {found}"
        if not found <= possible[event]:
            yield f"event {event} has a result that no run ended with: {found - possible[event]}"


def no_entry_once_settled(history: History) -> Iterator[str]:
    """Once an event is settled, as a caller has been answered, no body of it begins."""
    settled: dict[int, float] = {}
    for answer in history.answers:
        if is_settled(answer.outcome):
            settled[answer.event] = min(answer.at, settled.get(answer.event, answer.at))
    for body in history.bodies:
        if body.entered > settled.get(body.event, body.entered):
            yield f"event {body.event}: run {body.run} entered although it was settled"


def a_refused_run_has_no_body(history: History) -> Iterator[str]:
    """Who is refused, as a duplicate or otherwise, does not run the handler; who ran did once."""
    bodies = Counter(body.run for body in history.bodies)
    for answer in history.answers:
        most = 0 if isinstance(answer.outcome, NotGranted) else 1
        least = 1 if isinstance(answer.outcome, Ran) else 0
        if not least <= bodies[answer.run] <= most:
            name = type(answer.outcome).__name__
            yield f"run {answer.run} ended with {name} after {bodies[answer.run]} bodies"


def given_up_after_failures(history: History) -> Iterator[str]:
    """An event is given up when all its attempts have failed, or were lost: some before a body."""
    failures: Counter[int] = Counter()
    seen: dict[int, set[int]] = defaultdict(set)
    for body in history.bodies:
        seen[body.event].add(body.attempt)
    for answer in history.answers:
        event, outcome = answer.event, answer.outcome
        if isinstance(outcome, GaveUp):
            ended = failures[event] + outcome.attempts - len(seen[event])
            if min(ended, outcome.attempts) < history.max_attempts:
                yield f"event {event} was given up after {failures[event]} failures"
        if not isinstance(outcome, Ran | NotGranted):
            failures[event] += 1


def the_server_has_the_answers(history: History) -> Iterator[str]:
    """The record of an event has the outcome and the result that its callers got."""
    for answer in history.answers:
        match answer.outcome:
            case Ran(value) | Duplicate(result=value):
                expected = ("PROCESSED", "SUCCEEDED", value)
            case GaveUp():
                expected = ("PROCESSED", "GAVE_UP", None)
            case _:
                continue
        record = history.records.get(answer.event, {})
        found = tuple(record.get(key) for key in ("state", "outcome", "result"))
        if found != expected:
            yield f"event {answer.event} is {found}, run {answer.run} was answered {expected}"


def fences_rise(history: History) -> Iterator[str]:
    """The holds of a session are entered in the order of their fences. A forced release can
    overtake a grant that is on its way."""
    for session, bodies in _by_session(history).items():
        for before, after in combinations(bodies, 2):
            if after.fence <= before.fence and not _is_forced(history, after, before):
                yield f"{session}: run {after.run} entered with fence {after.fence}, " + (
                    f"after run {before.run} with fence {before.fence}"
                )


def no_entry_after_the_end(history: History) -> Iterator[str]:
    """A body does not begin after its trusted end. The margin is for what lies between the
    library's look at the clock and the body's own."""
    for body in history.bodies:
        late = history.awake(body.trusted_at_entry, body.entered)
        if late > history.margin:
            yield f"event {body.event}: run {body.run} entered {late:.3f} s after its trusted end"


def no_write_after_the_end(history: History) -> Iterator[str]:
    """A check that begins after the trusted end does not pass."""
    for body in history.bodies:
        late = max((write.checked - write.trusted for write in body.writes), default=0.0)
        if late > 0:
            yield f"event {body.event}: run {body.run} wrote {late:.3f} s after its trusted end"


def a_loss_interrupts(history: History) -> Iterator[str]:
    """A body that relies on it is interrupted at its trusted end, or before."""
    for body in history.bodies:
        late = history.awake(body.trusted, body.left) if body.trusted < body.left else 0.0
        if not body.checks and late > history.margin + SETTLE_SECONDS:
            yield f"event {body.event}: run {body.run} went on for {late:.3f} s after its trusted end"


def no_two_bodies(history: History) -> Iterator[str]:
    """Within their trusted ends, the bodies of a session do not overlap, unless an operator has
    released the session by force."""
    for session, bodies in _by_session(history).items():
        for before, after in combinations(bodies, 2):
            if before.stopped <= after.entered or _is_forced(history, *_by_fence(before, after)):
                continue
            yield f"{session}: run {after.run} entered {before.stopped - after.entered:.3f} s " + (
                f"before run {before.run} stopped"
            )


def all_events_settle(history: History) -> Iterator[str]:
    """Once the faults have stopped, the last answer for each event settles it."""
    last = {answer.event: answer for answer in history.answers}
    for event, answer in last.items():
        if not is_settled(answer.outcome):
            yield f"event {event} is not settled; its last answer is {answer.outcome!r}"


RULES: tuple[Callable[[History], Iterator[str]], ...] = (
    each_run_has_one_answer,
    one_success,
    duplicates_replay_the_success,
    no_entry_once_settled,
    a_refused_run_has_no_body,
    given_up_after_failures,
    the_server_has_the_answers,
    fences_rise,
    no_entry_after_the_end,
    no_write_after_the_end,
    a_loss_interrupts,
    no_two_bodies,
    all_events_settle,
)


def name_of(rule: Callable[[History], Iterator[str]]) -> str:
    """As `planted.json` has it."""
    return rule.__name__.replace("_", "-")


def is_settled(outcome: Any) -> bool:
    return isinstance(outcome, Ran | Duplicate | GaveUp)


def _by_fence(one: Body, other: Body) -> tuple[Body, Body]:
    return (one, other) if one.fence < other.fence else (other, one)


def _is_forced(history: History, earlier: Body, later: Body) -> bool:
    """Whether the session was released by force between the grants of two holds, as far as the
    fences say."""
    return any(
        forced.session == later.session
        and max(earlier.fence, forced.before) < min(later.fence, forced.after)
        for forced in history.forced
    )


def _by_session(history: History) -> dict[str, list[Body]]:
    sessions: dict[str, list[Body]] = defaultdict(list)
    for body in sorted(history.bodies, key=lambda body: body.entered):
        sessions[body.session].append(body)
    return sessions
