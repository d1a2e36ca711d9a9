"""The real server with TLS and authentication."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from oncegate import AsyncGate, Delivery, Denied, Gate, LeaseLost, TurnLost, Unavailable
from oncegate.testing import Server
from oncegate.testing._server import find_binary

from .certificates import CLIENT, Authority, Pair

FIRST, SECOND = Delivery("T1", "E1"), Delivery("T2", "E2")


@dataclass
class Principals:
    """The file of ``--auth``: two principals, each with a token and a team of its own."""

    path: Path

    def __post_init__(self) -> None:
        self.first, first = new_token()
        self.second, second = new_token()
        self._lines = [principal("first", "T1", first), principal("second", "T2", second)]
        certificate = 'spiffe = ["spiffe://test/bot"]'
        self._lines.append(principal("certified", "T1", certificate))
        self.path.write_text("".join(self._lines))

    def revoke_first(self) -> None:
        self.path.write_text("".join(self._lines[1:]))


def new_token() -> tuple[str, str]:
    """A token, and its line of the file."""
    token, line = subprocess.check_output([find_binary(), "token", "new"], text=True).splitlines()
    return token, line


def principal(name: str, team: str, credential: str) -> str:
    return f'[[principal]]\nname = "{name}"\nrole = "bot"\nteams = ["{team}"]\n{credential}\n'


@pytest.fixture
def principals(tmp_path: Path) -> Principals:
    return Principals(tmp_path / "auth.toml")


@pytest.fixture
def arguments(pair: Pair, principals: Principals) -> tuple[str, ...]:
    files = ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key), "--auth", str(principals.path))
    return ("--listen", "127.0.0.1:0", *files)


@pytest.fixture
def server(arguments: tuple[str, ...]) -> Iterator[Server]:
    with Server(*arguments) as server:
        yield server


@pytest.fixture
def mutual(arguments: tuple[str, ...], ca: Authority) -> Iterator[Server]:
    with Server(*arguments, "--tls-client-ca", str(ca.cert)) as server:
        yield server


def https(server: Server) -> str:
    """Where it listens with TLS: it says so after its socket."""
    assert server._process
    assert server._process.stdout
    return "https://" + server._process.stdout.readline().split(" listens on ")[1].strip()


async def test_a_token_file_that_is_replaced(
    server: Server, principals: Principals, ca: Authority, token_file: Path
) -> None:
    token_file.write_text(principals.first + "\n")
    async with AsyncGate(https(server), tls_ca=ca.cert, token_file=token_file) as gate:
        assert (await gate.mark(FIRST)).first
        with pytest.raises(Denied) as denied:
            await gate.mark(SECOND)
        assert denied.value.reason == "TEAM_DENIED"
        token_file.write_text(principals.second + "\n")
        async with gate.turn(SECOND) as turn:
            turn.check()
        with pytest.raises(Denied) as denied:
            async with gate.turn(FIRST):
                pytest.fail("there is no turn")
        assert denied.value.reason == "TEAM_DENIED"


@pytest.mark.parametrize("options", [{}, {"token": "unknown"}])
def test_a_caller_that_the_server_does_not_know(
    server: Server, ca: Authority, options: dict[str, Any]
) -> None:
    with Gate(https(server), tls_ca=ca.cert, **options) as gate:
        with pytest.raises(Denied) as marked:
            gate.mark(FIRST)
        with pytest.raises(Denied) as begun, gate.turn(FIRST):
            pytest.fail("there is no turn")
    assert {marked.value.reason, begun.value.reason} == {"UNAUTHENTICATED"}


async def test_a_turn_whose_token_is_revoked(
    server: Server, principals: Principals, ca: Authority
) -> None:
    async with AsyncGate(https(server), tls_ca=ca.cert, token=principals.first) as gate:
        with pytest.raises(TurnLost) as lost:
            async with gate.turn(FIRST):
                principals.revoke_first()
                server._signal(signal.SIGHUP)
                await asyncio.Event().wait()
    assert lost.value.reason == "DENIED"


async def test_a_client_certificate(mutual: Server, ca: Authority, client: Pair) -> None:
    address = https(mutual)
    own: Any = {"tls_cert": client.cert, "tls_key": client.key}
    async with AsyncGate(address, tls_ca=ca.cert, **own) as gate:
        async with gate.turn(FIRST) as turn:
            turn.check()
        with pytest.raises(Denied) as denied:
            await gate.mark(SECOND)
        assert denied.value.reason == "TEAM_DENIED"


@pytest.mark.parametrize("which", ["missing", "of another CA", "expired"])
async def test_a_client_certificate_that_the_server_does_not_accept(
    which: str, mutual: Server, ca: Authority, other_ca: Authority
) -> None:
    """The message differs from that of a server that this client does not accept."""
    own: Any = {}
    if which != "missing":
        is_expired = which == "expired"
        lasts = timedelta(days=-1 if is_expired else 1)
        pair = (ca if is_expired else other_ca).issue(f"{which}-client", CLIENT, lasts)
        own = {"tls_cert": pair.cert, "tls_key": pair.key}
    address = https(mutual)
    for _ in range(3):  # at times the connection is lost before the server's alert is read
        async with AsyncGate(address, tls_ca=ca.cert, patience=3, **own) as gate:
            with pytest.raises(Unavailable) as caught:
                await gate.mark(FIRST)
        if "does not accept the client certificate of tls_cert, or needs one" in str(caught.value):
            break
    else:
        pytest.fail(f"it is not told apart: {caught.value}")
    assert "tls_ca" not in str(caught.value)


@pytest.mark.parametrize("is_renewed", [True, False])
async def test_a_turn_and_a_lease_whose_client_certificate_expires(
    is_renewed: bool, mutual: Server, ca: Authority, tmp_path: Path
) -> None:
    cert, key = tmp_path / "cert", tmp_path / "key"

    def put(pair: Pair) -> None:
        cert.write_bytes(pair.cert.read_bytes())
        key.write_bytes(pair.key.read_bytes())

    new = ca.issue(f"new-{is_renewed}", CLIENT)
    put(ca.issue(f"short-{is_renewed}", CLIENT, timedelta(seconds=5)))
    lost: list[str | None] = []
    own: Any = {"tls_ca": ca.cert, "tls_cert": cert, "tls_key": key}
    async with AsyncGate(https(mutual), **own) as gate:

        async def outlast(scope: Any) -> None:
            try:
                async with scope as held:
                    if is_renewed:
                        put(new)
                    # The stream ends with the certificate. Its files were compared less than 10 s ago.
                    async with asyncio.timeout(20):
                        while held.kept_by == "stream" and held.left > 0:  # noqa: ASYNC110
                            await asyncio.sleep(0.05)
                        await asyncio.sleep(0.5)
                    held.check()
            except (TurnLost, LeaseLost) as error:
                lost.append(error.reason)
            else:
                lost.append(None)

        await asyncio.gather(outlast(gate.turn(FIRST)), outlast(gate.lease("T1", "conversation")))
    assert lost == ([None, None] if is_renewed else ["DENIED", "DENIED"])
