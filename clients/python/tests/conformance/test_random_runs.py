"""500 random runs under random faults, with both forms of the gate, on both stores."""

from __future__ import annotations

import os
import random

import pytest

from .random_runs import random_runs
from .scenario import FORMS, STORES

RUNS = 500


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("form", FORMS)
def test_random_runs(form: str, store: str) -> None:
    seed = int(os.environ.get("ONCEGATE_TEST_SEED", random.randrange(1 << 32)))
    print(random_runs(form, store, RUNS, seed))
