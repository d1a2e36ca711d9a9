"""Test kit: the real server for each test, started in milliseconds.

With pytest::

    from oncegate.testing import gate  # or sync_gate

    async def test_answers_once(gate):
        ...
        assert gate.server.turns("T1") == []

Anywhere else, ``with Server() as server, Gate(server.address) as gate``.

The fixtures and the server ignore the settings of another server in the environment, such as
``ONCEGATE_TLS_CA``. A `Gate` of your own reads them: unset them for it.
"""

from __future__ import annotations

from importlib.util import find_spec

from oncegate.testing._server import RunningTurn, Server

__all__ = ["RunningTurn", "Server"]

if find_spec("pytest"):
    from oncegate.testing._fixtures import AsyncServedGate, ServedGate, gate, sync_gate

    __all__ += ["AsyncServedGate", "ServedGate", "gate", "sync_gate"]
