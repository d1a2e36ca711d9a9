"""Testbeds: the server behind proxies, and the faults of a scenario."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from .lines import LineProcess

ROOT = Path(__file__).resolve().parents[4]


def program() -> str:
    """The testbed program, built by `cargo build --example testbed`."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    return os.environ.get("ONCEGATE_TESTBED", str(target / "debug" / "examples" / "testbed"))


class Testbed:
    """One testbed process."""

    __test__ = False

    def __init__(self, store: str, replicas: int = 1, server: Sequence[str] = ()) -> None:
        options = ["--store", store, "--replicas", str(replicas)]
        self._process = LineProcess([program(), *options, "--", *server])
        self.replicas: list[str] = self._process.greeting["ready"]["replicas"]

    def do(self, command: str, **arguments: Any) -> Any:
        """Runs one command. A look at a server that is down is a ProcessError."""
        return self._process.ask(command, **arguments)

    def log(self) -> str:
        return self._process.log()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()


class Postgres:
    """A database server for all testbeds of a test run."""

    def __init__(self) -> None:
        self._process = LineProcess([program(), "postgres"])
        self.url: str = self._process.greeting["ready"]["url"]

    def close(self) -> None:
        self._process.close()
