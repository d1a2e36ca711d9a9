"""Random runs: handlers of the same events in the same sessions, by several gates, while the
server has random faults. Prints its seed, with which a failure can be repeated:

    python -m conformance.random_runs --form async --store sqlite --seed 7
"""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from oncegate import AsyncGate, Delivery, Gate

from .faults import KINDS, TEAM, random_faults
from .history import Answer, Body, HandlerError, History, Write, clock, is_settled
from .scenario import FORMS, STORES
from .testbed import Testbed

TTL = 2.0
GRACE = TTL / 2
MARGIN = TTL / 10
AT_ONCE = 48
GATES = 6
SESSIONS = 12
DELIVERIES_OF_AN_EVENT = 2
MAX_ATTEMPTS = 4
SLICE_SECONDS = 0.05
PULSE_SECONDS = 0.02
READING_SECONDS = 0.005
HOPELESS_EVENTS = 50  # of so many, one fails always
SETTLE_TIMEOUT = 240.0  # on a busy machine


@dataclass(frozen=True)
class Plan:
    """One delivery, and what its handler does."""

    run: int
    event: int
    session: str
    gate: int
    wait: float
    slices: int
    checks: bool
    fails: bool

    def delivery(self) -> Delivery:
        return Delivery(TEAM, event_of(self.event), session=self.session)


def plans(events: int, chance: random.Random) -> list[Plan]:
    """The deliveries, in a random order that keeps those of an event near each other."""
    numbers = list(range(events)) * DELIVERIES_OF_AN_EVENT
    numbers.sort(key=lambda number: number + chance.uniform(0, 30))
    return [plan(run, number, chance) for run, number in enumerate(numbers)]


def plan(run: int, event: int, chance: random.Random) -> Plan:
    return Plan(
        run=run,
        event=event,
        session=session_of(event),
        gate=chance.randrange(GATES),
        wait=chance.choice((0.0, 2.0, 5.0)),
        slices=chance.choice((0, 1, 5, 50)),
        checks=chance.random() < 0.5,
        fails=chance.random() < 0.1 or event % HOPELESS_EVENTS == 0,
    )


def event_of(event: int) -> str:
    return f"event-{event}"


def session_of(event: int) -> str:
    return f"session-{event % SESSIONS}"


class Recorder:
    """The handler's own part, the same in both forms."""

    def __init__(self, history: History, plan: Plan, turn: Any) -> None:
        now = clock()
        self._plan, self._turn = plan, turn
        fence, trusted = turn.fence or 0, self._trusted_end()
        self._body = Body(
            plan.run, plan.event, plan.session, turn.attempt, fence, now, trusted, plan.checks
        )
        history.enter(self._body)

    def _trusted_end(self) -> float:
        """On the clock. It is read anew if time passed between its two readings."""
        while True:
            before = clock()
            left: float = self._turn.left
            now = clock()
            if now - before < READING_SECONDS:
                return now + left

    def slices(self) -> Iterator[None]:
        """Yields before each pause of the body."""
        try:
            for _ in range(self._plan.slices):
                yield
                if self._plan.checks:
                    checked = clock()
                    self._turn.check()
                    self._body.writes.append(Write(checked, self._trusted_end()))
                elif self._turn.lost.is_set():
                    return
        finally:
            self._body.left = clock()
            self._body.trusted = self._trusted_end()

    def result(self) -> str:
        if self._plan.fails:
            raise HandlerError
        return f"run {self._plan.run}"


def gate_options(number: int) -> dict[str, Any]:
    times = {"ttl": TTL, "grace": GRACE, "patience": 2.5}
    return times | {"max_attempts": MAX_ATTEMPTS, "holder": f"gate-{number}"}


async def keep_pulse(history: History) -> None:
    """Records when this event loop stands still."""
    while True:
        due = clock() + PULSE_SECONDS
        try:
            await asyncio.sleep(PULSE_SECONDS)
        finally:
            history.beat(due)


def keep_pulse_of_threads(history: History, over: threading.Event) -> None:
    """Records when the threads stand still."""
    while not over.is_set():
        due = clock() + PULSE_SECONDS
        over.wait(PULSE_SECONDS)
        history.beat(due)


async def run_async(planned: list[Plan], addresses: list[str], history: History) -> None:
    gates = [AsyncGate(addresses[n % len(addresses)], **gate_options(n)) for n in range(GATES)]
    room = asyncio.Semaphore(AT_ONCE)

    async def one(plan: Plan) -> Any:
        async def handler(turn: Any) -> str:
            recorder = Recorder(history, plan, turn)
            for _ in recorder.slices():
                await asyncio.sleep(SLICE_SECONDS)
            return recorder.result()

        async with room:
            try:
                gate = gates[plan.gate]
                outcome: Any = await gate.run(handler, plan.delivery(), wait=plan.wait)
            except BaseException as error:  # noqa: BLE001 - it is the outcome
                outcome = error
        history.answer(Answer(plan.run, plan.event, outcome, clock()))
        return outcome

    pulse = asyncio.create_task(keep_pulse(history))
    async with asyncio.TaskGroup() as group:
        for plan in planned:
            group.create_task(one(plan))
    pulse.cancel()
    for gate in gates:
        await gate.close()


def run_sync(planned: list[Plan], addresses: list[str], history: History) -> None:
    gates = [Gate(addresses[n % len(addresses)], **gate_options(n)) for n in range(GATES)]

    def one(plan: Plan) -> Any:
        def handler(turn: Any) -> str:
            recorder = Recorder(history, plan, turn)
            # A thread is not interrupted: the library sets `lost`.
            pause = time.sleep if plan.checks else turn.lost.wait
            for _ in recorder.slices():
                pause(SLICE_SECONDS)
            return recorder.result()

        try:
            gate = gates[plan.gate]
            outcome: Any = gate.run(handler, plan.delivery(), wait=plan.wait)
        except BaseException as error:  # noqa: BLE001 - it is the outcome
            outcome = error
        history.answer(Answer(plan.run, plan.event, outcome, clock()))
        return outcome

    over = threading.Event()
    with ThreadPoolExecutor(AT_ONCE + 1) as threads:
        pulse = threads.submit(keep_pulse_of_threads, history, over)
        try:
            list(threads.map(one, planned))
        finally:
            over.set()
        pulse.result()
    for gate in gates:
        gate.close()


def deliver(form: str, planned: list[Plan], addresses: list[str], history: History) -> None:
    history.planned += (plan.run for plan in planned)
    if form == "async":
        asyncio.run(run_async(planned, addresses, history))
    else:
        run_sync(planned, addresses, history)


def settle(form: str, runs: int, addresses: list[str], history: History) -> None:
    """Delivers what is not settled again and again, as senders do."""
    chance = random.Random(runs)
    deadline = time.monotonic() + SETTLE_TIMEOUT
    while time.monotonic() < deadline:
        last = {answer.event: answer.outcome for answer in history.answers}
        open_events = [event for event, outcome in last.items() if not is_settled(outcome)]
        if not open_events:
            return
        planned = [plan(runs + n, event, chance) for n, event in enumerate(open_events)]
        runs += len(planned)
        deliver(form, planned, addresses, history)


@dataclass(frozen=True)
class Report:
    """What happened in the runs, by kinds."""

    title: str
    bodies: int
    answers: Counter[str]
    faults: Counter[str]
    forced: int
    """Releases by force that ended a lease."""
    broken: Sequence[str]
    """What breaks a rule, each with the rule's name."""

    def __str__(self) -> str:
        happened = (
            f"{self.title}: {self.answers.total()} runs, {self.bodies} bodies; "
            f"{dict(self.answers)}; faults: {dict(self.faults)}, {self.forced} forced releases"
        )
        return "\n".join([happened, *self.broken])


def random_runs(
    form: str,
    store: str,
    events: int,
    seed: int,
    *,
    kinds: Collection[str] = KINDS,
    faulty: int | None = None,
    settles: bool = True,
) -> Report:
    """Runs them under faults of these kinds, in all replicas or in so many. `settles`: then what is
    not settled is delivered again."""
    history = History(MARGIN, MAX_ATTEMPTS)
    sessions = [session_of(number) for number in range(SESSIONS)]
    started = time.monotonic()
    with Testbed(store, 2 if store == "postgres" else 1) as testbed:
        planned = plans(events, random.Random(seed))
        faulty = len(testbed.replicas) if faulty is None else faulty
        with random_faults(testbed, seed, history, sessions, kinds, faulty) as faults:
            deliver(form, planned, testbed.replicas, history)
        if settles:
            settle(form, len(planned), testbed.replicas, history)
        for event in {answer.event for answer in history.answers}:
            history.records[event] = testbed.do("look", team=TEAM, event=event_of(event))
    return Report(
        f"{form}, {store}, seed {seed}, {time.monotonic() - started:.1f} s",
        len(history.bodies),
        Counter(type(answer.outcome).__name__ for answer in history.answers),
        Counter(faults),
        len(history.forced),
        history.faults(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--form", choices=FORMS, default="async")
    parser.add_argument("--store", choices=STORES, default="sqlite")
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", file=sys.stderr)
    report = random_runs(arguments.form, arguments.store, arguments.runs, arguments.seed)
    print(report)
    sys.exit(1 if report.broken else 0)


if __name__ == "__main__":
    main()
