"""Each planted bug turns its scenarios red, which are green without it (`test_scenarios.py`), and
some turn random runs red (`test_random_runs.py`)."""

from __future__ import annotations

import pytest

from .forms import run
from .interpreter import ScenarioError
from .matching import MismatchError
from .planted import PATCHES, Bug, InRandomRuns, bugs
from .random_runs import random_runs
from .scenario import FORMS, by_file

RUNS = [
    pytest.param(bug, scenario, step, form, id=f"{bug.name}-{scenario}-{form}")
    for bug in bugs()
    for scenario, step in bug.red.items()
    for form in FORMS
    if by_file(scenario).runs_with(form, "sqlite")
]

RANDOM = [
    pytest.param(bug.name, bug.random, form, id=f"{bug.name}-random-{form}")
    for bug in bugs()
    if bug.random
    for form in FORMS
]

# A run in which the bug has no effect is repeated with the next seed.
SEEDS = range(10)
EVENTS = 40


def test_all_bugs_are_planted() -> None:
    assert PATCHES.keys() == {bug.name for bug in bugs()}


@pytest.mark.parametrize(("bug", "scenario", "step", "form"), RUNS)
def test_a_planted_bug_is_found(
    bug: Bug, scenario: str, step: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    PATCHES[bug.name].plant(monkeypatch)
    with pytest.raises(ScenarioError) as found:
        run(by_file(scenario), form, "sqlite")
    assert found.value.step == step, found.value
    assert isinstance(found.value.__cause__, MismatchError), "the step had no result"
    assert "unexpected" not in str(found.value), "the planted code itself fails"


@pytest.mark.parametrize(("name", "expected", "form"), RANDOM)
def test_random_runs_find_a_planted_bug(
    name: str, expected: InRandomRuns, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    PATCHES[name].plant(monkeypatch)
    for seed in SEEDS:
        # The replica without faults grants what the holders of the other one may have lost.
        report = random_runs(
            form, "postgres", EVENTS, seed, kinds=expected.faults, faulty=1, settles=False
        )
        print(report)
        if any(fault.startswith(f"{expected.rule}: ") for fault in report.broken):
            return
    pytest.fail(f"{len(SEEDS)} random runs have not broken {expected.rule}")
