"""What the processes of bots need: ports, and an environment without a developer's own tokens."""

import os
import socket
import zlib
from collections.abc import Iterator
from itertools import cycle

# A developer's own tokens would connect the bots to the real Slack.
INHERITED = {name: value for name, value in os.environ.items() if not name.startswith("SLACK_")}


def is_listening(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def free_ports() -> Iterator[int]:
    """Ports that no other process of these tests takes, below those of outgoing connections."""
    run = zlib.crc32(os.environ.get("PYTEST_XDIST_TESTRUNUID", "").encode()) % 20
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10
    first = 10_000 + 1_000 * run + 100 * worker
    return (port for port in cycle(range(first, first + 100)) if not is_listening(port))


PORTS = free_ports()
