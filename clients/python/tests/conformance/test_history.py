"""The rules of random runs find the histories that break them."""

from __future__ import annotations

import pytest

from oncegate import Busy, Duplicate, OutcomeUnknown, Ran

from .history import Answer, Body, History


def body(run: int, fence: int, entered: float, left: float, trusted: float = 9.0) -> Body:
    made = Body(run, 1, "session-1", run, fence, entered, trusted)
    made.left, made.trusted = left, trusted
    return made


def history(*events: Body | Answer | tuple[str, float]) -> History:
    made = History(margin=0.1)
    for event in events:
        match event:
            case Body():
                made.bodies.append(event)
            case Answer():
                made.answers.append(event)
            case _:
                made.forced.append(event)
    return made


def test_a_sound_history_has_no_faults() -> None:
    sound = history(
        body(1, fence=5, entered=1.0, left=2.0),
        body(2, fence=6, entered=2.0, left=8.0, trusted=3.0),
        body(3, fence=7, entered=3.0, left=4.0),
        Answer(1, 1, Ran("a")),
        Answer(2, 1, Duplicate("a")),
        Answer(3, 2, OutcomeUnknown("id", "b")),
        Answer(4, 2, Duplicate("b")),
    )
    assert sound.faults() == []


def test_an_overlap_after_a_forced_release_is_allowed() -> None:
    bodies = body(1, fence=5, entered=1.0, left=3.0), body(2, fence=6, entered=2.0, left=4.0)
    assert len(history(*bodies).faults()) == 1
    assert history(*bodies, ("session-1", 1.5)).faults() == []
    assert len(history(*bodies, ("session-2", 1.5)).faults()) == 1


@pytest.mark.parametrize(
    ("broken", "fault"),
    [
        (history(Answer(1, 1, Ran("a")), Answer(2, 1, Ran("a"))), "succeeded in run 1 and 2"),
        (history(Answer(1, 1, Ran("a")), Answer(2, 1, Duplicate("b"))), "several results"),
        (history(Answer(1, 1, Duplicate("b"))), "no run ended with"),
        (history(body(1, 5, 1.0, 2.0), body(2, 5, 3.0, 4.0)), "with fence 5"),
        (history(body(1, 5, entered=9.2, left=9.3)), "after its trusted end"),
        (history(body(1, 5, 1.0, left=3.0), body(2, 6, entered=2.0, left=4.0)), "before run 1"),
        (history(Answer(1, 1, Busy("b", 0, 1.0))), "not settled"),
    ],
)
def test_a_broken_rule_is_found(broken: History, fault: str) -> None:
    assert any(fault in found for found in broken.faults()), broken.faults()
