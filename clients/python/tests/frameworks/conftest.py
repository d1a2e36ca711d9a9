"""The real server for each test, and what the platforms send."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from oncegate.testing import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_VECTORS = Path(__file__).parents[4] / "tests" / "data" / "platforms"
_PATIENCE = 30.0


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own."""
    with Server() as server:
        yield server


def vector(platform: str, what: str) -> dict[str, Any]:
    """A delivery that the server's own tests read too, by its description: headers and body."""
    vectors: list[dict[str, Any]] = json.loads((_VECTORS / f"{platform}.json").read_text())
    [found] = [vector for vector in vectors if vector["what"] == what]
    return copy.deepcopy(found)


async def until(condition: Callable[[], object]) -> None:
    """Waits until something is so."""
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come to be so"
        await asyncio.sleep(0.01)
