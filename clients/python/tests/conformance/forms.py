"""Makes clients, by the form of the library and where they run."""

from __future__ import annotations

from .aio import AsyncClient
from .blocking import SyncClient
from .child import ChildClient
from .interpreter import Client, Interpreter
from .scenario import Json, Scenario
from .testbed import Testbed

CLIENTS: dict[str, type[AsyncClient | SyncClient]] = {
    "async": AsyncClient,
    "sync": SyncClient,
}


def make_here(form: str, name: str, address: str, options: dict[str, Json]) -> Client:
    return CLIENTS[form](name, address, options)


def run(scenario: Scenario, form: str, store: str) -> None:
    """Runs a scenario on a testbed of its own."""

    def make(name: str, address: str, options: dict[str, Json]) -> Client:
        if options.pop("own_process", False):
            return ChildClient(form, name, address, options)
        return make_here(form, name, address, options)

    with Testbed(store, scenario.replicas, scenario.server) as testbed:
        try:
            Interpreter(scenario, testbed, make).run()
        except BaseException as error:
            error.add_note(f"log of the server:\n{testbed.log()}")
            raise
