"""All scenarios, with both forms of the gate, on both stores."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from .forms import run
from .scenario import FOLDER, FORMS, SCHEMA, STORES, Scenario, load_all

FILES = sorted((FOLDER / "scenarios").iterdir())
RUNS = [
    pytest.param(scenario, form, store, id=f"{scenario.file}-{form}-{store}")
    for scenario in load_all()
    for form in FORMS
    for store in STORES
    if scenario.runs_with(form, store)
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_scenario_has_the_form_of_the_schema(path: Path) -> None:
    schema = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    schema.validate(json.loads(path.read_text()))


@pytest.mark.parametrize(("scenario", "form", "store"), RUNS)
def test_scenario(scenario: Scenario, form: str, store: str) -> None:
    run(scenario, form, store)
    scenario.note_pass(store)
