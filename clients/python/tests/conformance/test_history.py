"""The rules of random runs find the histories that break them."""

from __future__ import annotations

import asyncio
import threading
import time
from asyncio import CancelledError
from concurrent.futures import ThreadPoolExecutor

import pytest

from oncegate import Busy, Duplicate, GaveUp, OutcomeUnknown, Ran, TurnLost

from .faults import stand_still
from .history import Answer, Body, Forced, HandlerError, History, Pause, Write, clock
from .random_runs import keep_pulse, keep_pulse_of_threads
from .scenario import Json


def body(
    run: int, fence: int, entered: float, left: float, trusted: float = 9.0, event: int = 1
) -> Body:
    made = Body(run, event, "session-1", run, fence, entered, 9.0)
    made.left, made.trusted = left, trusted
    return made


def open_body(run: int, fence: int, entered: float) -> Body:
    """One that has not recorded that it left."""
    return Body(run, 1, "session-1", run, fence, entered, 9.0)


def answer(run: int, event: int, outcome: object, at: float = 8.5) -> Answer:
    return Answer(run, event, outcome, at)


def record(outcome: str | None, result: object) -> Json:
    state = "NOT_SEEN" if outcome is None else "PROCESSED"
    return {"state": state, "outcome": outcome, "result": result}


def forced(before: int, after: int, session: str = "session-1") -> Forced:
    return Forced(session, before, after)


def history(*events: Body | Answer | Forced | dict[int, Json]) -> History:
    """One whose runs all have been answered."""
    made = History(margin=0.1, max_attempts=2)
    for event in events:
        match event:
            case Body():
                made.bodies.append(event)
            case Answer():
                made.answers.append(event)
                made.planned.append(event.run)
            case dict():
                made.records.update(event)
            case _:
                made.forced.append(event)
    return made


def test_a_sound_history_has_no_faults() -> None:
    sound = history(
        body(1, fence=5, entered=1.0, left=2.0),
        body(2, fence=6, entered=2.0, left=8.0, trusted=3.0),
        body(3, fence=7, entered=3.0, left=4.0, event=2),
        body(5, fence=8, entered=4.0, left=5.0, event=3),
        body(6, fence=9, entered=5.0, left=6.0, event=3),
        answer(2, 1, TurnLost("EXPIRED", None)),
        answer(1, 1, Ran("a"), at=8.0),
        answer(4, 1, Duplicate("a", "SUCCEEDED", "")),
        answer(3, 2, OutcomeUnknown("id", "b")),
        answer(8, 2, Duplicate("b", "SUCCEEDED", "")),
        answer(5, 3, HandlerError()),
        answer(6, 3, HandlerError()),
        answer(7, 3, GaveUp(2, "")),
        {1: record("SUCCEEDED", "a"), 2: record("SUCCEEDED", "b"), 3: record("GAVE_UP", None)},
    )
    assert sound.faults() == []


def test_an_overlap_after_a_forced_release_is_allowed() -> None:
    bodies = body(1, fence=5, entered=1.0, left=3.0), body(2, fence=7, entered=2.0, left=4.0)
    assert len(history(*bodies).faults()) == 1
    # It raised the fence to 6. The fence after it may be that of the next hold, or of a later one.
    for after in (6, 7, 8):
        assert history(*bodies, forced(5, after)).faults() == []
    assert len(history(*bodies, forced(3, 5)).faults()) == 1
    assert len(history(*bodies, forced(7, 8)).faults()) == 1
    assert len(history(*bodies, forced(5, 6, "session-2")).faults()) == 1


def test_an_entry_that_a_forced_release_overtook_is_allowed() -> None:
    bodies = body(1, fence=7, entered=1.0, left=2.0), body(2, fence=5, entered=2.0, left=3.0)
    assert len(history(*bodies).faults()) == 1
    assert history(*bodies, forced(5, 6)).faults() == []
    again = body(3, fence=7, entered=3.0, left=4.0)
    (fault,) = history(*bodies, again, forced(5, 6)).faults()
    assert "run 3 entered with fence 7, after run 1 with fence 7" in fault


def test_each_run_has_one_answer() -> None:
    def broken(*runs: int, outcome: object = HandlerError()) -> list[str]:
        made = History(margin=0.1, max_attempts=2)
        made.planned += 1, 2
        made.answers += (answer(run, run, outcome) for run in runs)
        return [fault for fault in made.faults() if "each-run" in fault]

    assert broken(1, 2) == []
    assert broken(1) == ["each-run-has-one-answer: run 2 has 0 answers"]
    assert broken(1, 2, 2) == ["each-run-has-one-answer: run 2 has 2 answers"]
    assert len(broken(1, 2, outcome=CancelledError())) == 2


def reliant_body(run: int, fence: int, entered: float, left: float, trusted: float) -> Body:
    """One that relies on the library's interruption."""
    made = body(run, fence, entered, left, trusted)
    made.checks = False
    return made


def late_write() -> Body:
    made = body(1, fence=5, entered=1.0, left=2.0)
    made.writes = [Write(checked=1.2, trusted=1.5), Write(checked=1.6, trusted=1.5)]
    return made


def test_a_pause_excuses_a_late_interruption() -> None:
    late = history(reliant_body(1, fence=5, entered=1.0, left=3.0, trusted=2.0))
    assert len(late.faults()) == 1
    late.pauses.append(Pause(1.5, 2.3))
    assert len(late.faults()) == 1  # it went on for 0.7 s more
    late.pauses.append(Pause(2.4, 2.6))
    assert late.faults() == []


def test_a_pause_excuses_a_late_entry() -> None:
    late = history(body(1, fence=5, entered=9.5, left=9.6, trusted=9.0))
    assert len(late.faults()) == 1
    late.pauses.append(Pause(8.0, 9.3))
    assert len(late.faults()) == 1
    late.pauses.append(Pause(9.35, 10.0))
    assert late.faults() == []


def test_a_late_beat_is_a_pause() -> None:
    kept = history()
    due = clock()
    kept.beat(due + 60)
    assert kept.pauses == []
    kept.beat(due - 0.5)
    [pause] = kept.pauses
    assert pause.began == due - 0.5
    assert due <= pause.ended <= clock()


def test_a_pulse_records_what_holds_up_its_event_loop() -> None:
    kept = history()

    async def hold_up() -> tuple[float, float]:
        pulse = asyncio.create_task(keep_pulse(kept))
        await asyncio.sleep(0.1)
        began = clock()
        stand_still(500)
        ended = clock()
        pulse.cancel()  # before its next beat
        await asyncio.gather(pulse, return_exceptions=True)
        return began, ended

    began, ended = asyncio.run(hold_up())
    assert kept.awake(began, ended) < 0.1


def test_a_pulse_of_threads_records_what_holds_them_up() -> None:
    kept, over = history(), threading.Event()
    with ThreadPoolExecutor() as threads:
        pulse = threads.submit(keep_pulse_of_threads, kept, over)
        time.sleep(0.1)
        began = clock()
        stand_still(500)
        ended = clock()
        over.set()
    pulse.result()
    assert kept.awake(began, ended) < 0.1


FAILED_ONCE = body(1, 5, 1.0, 2.0), body(2, 6, 2.0, 3.0), answer(1, 1, HandlerError())
ENTERED_AGAIN = body(1, 5, 1.0, 2.0), body(2, 6, 4.0, 5.0), answer(1, 1, Ran("a"), at=3.0)
A_LONG_ONE = body(1, 5, 1.0, left=6.0), body(2, 6, 2.0, left=2.0), body(3, 7, 3.0, left=4.0)


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (history(answer(1, 1, Ran("a")), answer(2, 1, Ran("a"))), "succeeded in run 1 and 2"),
        (history(answer(1, 1, Ran("a")), answer(2, 1, Duplicate("b"))), "several results"),
        (history(answer(1, 1, Duplicate("b"))), "no run ended with"),
        (history(*ENTERED_AGAIN), "run 2 entered although it was settled"),
        (history(body(1, 5, 1.0, 2.0), answer(1, 1, Duplicate("a"))), "with Duplicate after 1"),
        (history(body(1, 5, 1.0, 2.0), answer(1, 1, Busy("b", 0, 1.0))), "with Busy after 1"),
        (history(answer(1, 1, Ran("a"))), "with Ran after 0"),
        (history(*FAILED_ONCE, answer(3, 1, GaveUp(2, ""))), "after 1 failures"),
        (history(answer(1, 1, GaveUp(1, ""))), "after 0 failures"),
        (history(answer(1, 1, Ran("a")), {1: record(None, None)}), "is ('NOT_SEEN', None, None)"),
        (history(answer(1, 1, Ran("a")), {1: record("SUCCEEDED", "b")}), "'SUCCEEDED', 'b')"),
        (history(answer(1, 1, GaveUp(2, "")), {1: record("SUCCEEDED", "b")}), "'GAVE_UP', None)"),
        (history(answer(1, 1, Ran("a"))), "is (None, None, None)"),
        (history(body(1, 5, 1.0, 2.0), body(2, 5, 3.0, 4.0)), "with fence 5"),
        (history(body(1, 5, entered=9.2, left=9.3)), "after its trusted end"),
        (history(body(1, 5, 1.0, left=3.0), body(2, 6, entered=2.0, left=4.0)), "before run 1"),
        (history(*A_LONG_ONE), "run 3 entered 3.000 s before run 1"),
        (history(late_write()), "no-write-after-the-end: event 1: run 1 wrote 0.100 s"),
        (history(reliant_body(1, 5, 1.0, left=2.7, trusted=2.0)), "went on for 0.700 s"),
        (history(open_body(1, 5, 1.0), body(2, 6, entered=2.0, left=4.0)), "before run 1"),
        (history(answer(1, 1, Busy("b", 0, 1.0))), "not settled"),
    ],
)
def test_a_broken_rule_is_found(broken: History, fault: str) -> None:
    assert any(fault in found for found in broken.faults()), broken.faults()
