"""One database server for all scenarios, unless there is one already."""

from __future__ import annotations

import os

import pytest

from .testbed import Postgres


def pytest_configure(config: pytest.Config) -> None:
    is_worker = hasattr(config, "workerinput")
    if is_worker or "ONCEGATE_TEST_DATABASE_URL" in os.environ or config.option.collectonly:
        return
    postgres = Postgres()
    os.environ["ONCEGATE_TEST_DATABASE_URL"] = postgres.url
    config.add_cleanup(postgres.close)
