"""Scenarios as they stand in `clients/conformance/scenarios`, and the values in them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[3] / "conformance"
SCHEMA = FOLDER / "scenario.schema.json"

Json = Any
Step = dict[str, Json]

FORMS = ("async", "sync")
STORES = ("sqlite", "postgres")

# What a client of this language can do, by its form. Only a loop can be blocked, and only a
# task can be cancelled from outside. grpc.aio does not survive a fork once it has been used.
CAPABILITIES = {
    "async": {"fork", "event_loop", "interrupt"},
    "sync": {"fork", "fork_after_use"},
}


@dataclass(frozen=True)
class Scenario:
    """One scenario. Its fields are those of the file."""

    file: str
    name: str
    why: str
    steps: list[Step]
    stores: tuple[str, ...] = STORES
    replicas: int = 1
    server: tuple[str, ...] = ()
    clients: dict[str, dict[str, Json]] = field(default_factory=dict)
    deliveries: dict[str, Json] = field(default_factory=dict)
    needs: tuple[str, ...] = ()

    def runs_with(self, form: str, store: str) -> bool:
        return store in self.stores and CAPABILITIES[form].issuperset(self.needs)

    def note_pass(self, store: str) -> None:
        """Notes for `clients/behaviour` that it has passed."""
        if results := os.environ.get("ONCEGATE_SCENARIO_RESULTS"):
            with (Path(results) / "python").open("a") as file:
                file.write(f"{self.file}\t{store}\n")


def load(path: Path) -> Scenario:
    return Scenario(file=path.stem, **json.loads(path.read_text()))


def load_all() -> list[Scenario]:
    return [load(path) for path in sorted((FOLDER / "scenarios").glob("*.json"))]


def by_file(name: str) -> Scenario:
    return load(FOLDER / "scenarios" / f"{name}.json")


def value(written: Json) -> Json:
    """A value as a step writes it: JSON, a repeated text, or raw bytes."""
    match written:
        case {"$repeat": [text, count]}:
            return text * count
        case {"$hex": digits}:
            return bytes.fromhex(digits)
        case dict():
            return {key: value(item) for key, item in written.items()}
        case list():
            return [value(item) for item in written]
    return written


def written(value: Json) -> Json:
    """A value as a step writes it, so that results can be compared and sent as JSON."""
    match value:
        case bytes():
            return {"$hex": value.hex()}
        case dict():
            return {key: written(item) for key, item in value.items()}
        case list() | tuple():
            return [written(item) for item in value]
    return value
