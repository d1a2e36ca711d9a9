"""Each planted bug turns its scenarios red, which are green without it (`test_scenarios.py`)."""

from __future__ import annotations

import pytest

from .forms import run
from .interpreter import ScenarioError
from .matching import MismatchError
from .planted import PATCHES, Bug, bugs
from .scenario import FORMS, by_file

RUNS = [
    pytest.param(bug, scenario, step, form, id=f"{bug.name}-{scenario}-{form}")
    for bug in bugs()
    for scenario, step in bug.red.items()
    for form in FORMS
    if by_file(scenario).runs_with(form, "sqlite")
]


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
