"""500 random runs under random faults, with both forms of the gate, on both stores."""

from __future__ import annotations

import os
import random

import pytest

from .faults import KINDS
from .random_runs import random_runs
from .scenario import FORMS, STORES

RUNS = 500


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("form", FORMS)
def test_random_runs(form: str, store: str) -> None:
    seed = int(os.environ.get("ONCEGATE_TEST_SEED", random.randrange(1 << 32)))
    report = random_runs(form, store, RUNS, seed)
    print(report)
    assert not report.broken, report
    # Less would prove little.
    assert all(report.faults[kind] for kind in KINDS), report
    assert report.bodies >= RUNS, report
    assert report.answers["Ran"] >= RUNS * 0.9, report
    assert report.answers["Duplicate"] >= RUNS // 50, report
    assert report.answers["TurnLost"] >= 1, report
    assert report.answers["GaveUp"] >= 1, report
    assert report.forced >= 1, report
