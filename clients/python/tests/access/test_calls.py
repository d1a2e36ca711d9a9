"""Calls over TLS and with tokens, to a server of gRPC's own."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2

from oncegate import AsyncGate, Delivery, Denied, Gate, Misconfigured, TurnLost, Unavailable
from oncegate import _access as access
from oncegate._aio_stream import AioStream
from oncegate._wire import RUN_TURN, Failure
from oncegate.v1 import turn_service_pb2 as turns

from .certificates import CLIENT, SERVER, Authority, Pair
from .peer import UNKNOWN, Peer, Refusal

DELIVERY = Delivery("T1", "E1")


def denied(reason: str) -> Refusal:
    status = status_pb2.Status(code=7, message="no")
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(domain="oncegate", reason=reason))
    status.details.append(detail)
    return Refusal(grpc.StatusCode.PERMISSION_DENIED, "no", status.SerializeToString())


async def test_tls_with_a_ca(ca: Authority, pair: Pair) -> None:
    with Peer(pair) as peer:
        async with AsyncGate(peer.address, tls_ca=ca.cert) as gate:
            assert (await gate.mark(DELIVERY)).first
            async with gate.turn(DELIVERY) as turn:
                assert turn.held
    assert not any(peer.tokens)


def test_tls_with_a_ca_of_the_environment(
    ca: Authority, pair: Pair, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Peer(pair) as peer:
        monkeypatch.setenv("ONCEGATE_SERVER", peer.address)
        monkeypatch.setenv("ONCEGATE_TLS_CA", str(ca.cert))
        monkeypatch.setenv("ONCEGATE_TOKEN_FILE", str(token_file))
        with Gate() as gate:
            assert gate.mark(DELIVERY).first
    assert peer.tokens == ["Bearer planted-first"]


async def test_a_ca_that_did_not_issue_the_server(other_ca: Authority, pair: Pair) -> None:
    with Peer(pair) as peer:
        for ca in (other_ca.cert, None):  # None: public CAs
            async with AsyncGate(peer.address, tls_ca=ca, patience=3) as gate:
                with pytest.raises(Unavailable, match="not from a CA of tls_ca"):
                    await gate.mark(DELIVERY)
                with pytest.raises(Unavailable, match="not from a CA of tls_ca"):
                    async with gate.turn(DELIVERY, patience=0):
                        pytest.fail("there is no turn")
    assert not peer.tokens


async def test_a_name_that_the_certificate_does_not_have(ca: Authority, pair: Pair) -> None:
    with Peer(pair) as peer:
        options: Any = {"tls_ca": ca.cert, "patience": 3}
        async with AsyncGate(peer.address, **options, tls_server_name="elsewhere") as gate:
            with pytest.raises(Unavailable, match="not valid for its name"):
                await gate.mark(DELIVERY)
        async with AsyncGate(peer.address, **options, tls_server_name="localhost") as gate:
            assert (await gate.mark(DELIVERY)).first


async def test_a_server_certificate_that_has_expired(ca: Authority) -> None:
    with Peer(ca.issue("expired-server", SERVER, timedelta(days=-1))) as peer:
        async with AsyncGate(peer.address, tls_ca=ca.cert, patience=3) as gate:
            with pytest.raises(Unavailable, match=r"its certificate is .* expired"):
                await gate.mark(DELIVERY)


async def test_a_client_certificate(ca: Authority, pair: Pair, client: Pair) -> None:
    with Peer(pair, client_ca=ca.cert.read_bytes()) as peer:
        own: Any = {"tls_cert": client.cert, "tls_key": client.key}
        async with AsyncGate(peer.address, tls_ca=ca.cert, **own) as gate:
            assert (await gate.mark(DELIVERY)).first
    assert peer.certificates == [client.cert.read_bytes()]


async def test_a_new_client_certificate_is_used_without_a_restart(
    ca: Authority, pair: Pair, client: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "LOOK_AGAIN", 0.0)
    cert, key = tmp_path / "cert", tmp_path / "key"
    cert.write_bytes(client.cert.read_bytes())
    key.write_bytes(client.key.read_bytes())
    new = ca.issue("renewed", CLIENT)
    with Peer(pair, client_ca=ca.cert.read_bytes()) as peer:
        async with AsyncGate(peer.address, tls_ca=ca.cert, tls_cert=cert, tls_key=key) as gate:
            async with gate.turn(DELIVERY) as turn:
                await gate.mark(DELIVERY)
                cert.write_bytes(new.cert.read_bytes())
                await gate.mark(DELIVERY)  # half of the pair is not taken
                key.write_bytes(new.key.read_bytes())
                await gate.mark(DELIVERY)
                turn.check()  # its stream stays on its connection
                old, renewed = client.cert.read_bytes(), new.cert.read_bytes()
                assert peer.certificates == [old, old, old, renewed]
                [io] = gate._runtime._ios.values()
                assert len(io._connections._all) == 2  # the idle one was closed


async def test_a_token_file_that_changes_between_two_calls(token_file: Path) -> None:
    with Peer() as peer:
        async with AsyncGate(peer.address, token_file=token_file) as gate:
            await gate.mark(DELIVERY)
            other = token_file.with_name("other")
            other.write_text("planted-second")
            os.replace(other, token_file)
            await gate.mark(DELIVERY)
            async with gate.turn(DELIVERY):
                pass
    assert peer.tokens[0] == "Bearer planted-first"
    assert set(peer.tokens[1:]) == {"Bearer planted-second"}
    assert len(peer.tokens) >= 3


async def test_no_token_is_sent_unless_one_is_set() -> None:
    with Peer() as peer:
        async with AsyncGate(peer.address) as gate:
            await gate.mark(DELIVERY)
    assert peer.tokens == [None]


async def test_a_token_to_loopback_passes_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    with Peer() as peer:
        for name in ("http_proxy", "https_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.delenv("no_proxy", raising=False)
        async with AsyncGate(peer.address, token="planted") as gate:
            await gate.mark(DELIVERY)
    assert peer.tokens == ["Bearer planted"]


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (UNKNOWN, "UNAUTHENTICATED"),
        (Refusal(grpc.StatusCode.PERMISSION_DENIED, "by a proxy"), "PERMISSION_DENIED"),
        (denied("TEAM_DENIED"), "TEAM_DENIED"),
        (denied("ROLE_DENIED"), "ROLE_DENIED"),
    ],
)
async def test_a_denied_call_is_not_repeated(refusal: Refusal, reason: str) -> None:
    with Peer(refusal=refusal) as peer:
        async with AsyncGate(peer.address, token="planted", on_unavailable="run") as gate:
            with pytest.raises(Denied) as marked:
                await gate.mark(DELIVERY)
            with pytest.raises(Denied) as begun:
                async with gate.turn(DELIVERY):
                    pytest.fail("there is no turn")
    assert (marked.value.reason, begun.value.reason) == (reason, reason)
    assert len(peer.tokens) == 2
    assert "planted" not in repr(begun.value) + repr(begun.value.__cause__)


async def test_no_beginning_of_a_turn_that_is_denied_is_repeated() -> None:
    """Often the server refuses the call before its first message is sent."""
    with Peer(refusal=UNKNOWN) as peer:
        async with AsyncGate(peer.address, token="planted") as gate:
            for _ in range(300):
                with pytest.raises(Denied):
                    async with gate.turn(DELIVERY):
                        pytest.fail("there is no turn")
    assert len(peer.tokens) == 300


async def test_a_message_to_a_call_that_was_denied_says_why() -> None:
    with Peer(refusal=UNKNOWN) as peer:
        async with AsyncGate(peer.address, token="planted") as gate:
            io = gate._runtime.io()
            stream = await io.open(RUN_TURN, turns.RunTurnRequest(), more=True)
            assert isinstance(stream, AioStream)
            assert await stream._call.code() is UNKNOWN.code
            with pytest.raises(Failure) as caught:
                await stream.read(io.now() + 5)
    assert caught.value.denied


async def test_a_turn_whose_caller_is_denied_is_lost(caplog: pytest.LogCaptureFixture) -> None:
    with Peer() as peer:
        async with AsyncGate(peer.address, token="planted") as gate:
            with pytest.raises(TurnLost) as lost:
                async with gate.turn(DELIVERY) as turn:
                    peer.end_turns(UNKNOWN)
                    await asyncio.sleep(30)
    assert lost.value.reason == "DENIED"
    assert turn.lost.reason == "DENIED"
    assert len(peer.tokens) == 1  # nothing is renewed, and no end sent
    assert "planted" not in caplog.text


async def test_a_turn_outlives_the_token_that_it_began_with(token_file: Path) -> None:
    with Peer() as peer:
        async with AsyncGate(peer.address, token_file=token_file) as gate:
            with pytest.raises(Denied):  # the end: its result is not stored
                async with gate.turn(DELIVERY) as turn:
                    token_file.write_text("planted-second")
                    peer.end_turns(UNKNOWN)
                    await asyncio.to_thread(peer.wait_for, 2)
                    turn.check()
                    peer.refusal = UNKNOWN
    assert turn.kept_by == "renew"
    assert set(peer.tokens[1:]) == {"Bearer planted-second"}


class Exchanged:
    """The files of a client certificate that is exchanged."""

    def __init__(self, folder: Path, ca: Authority, client: Pair) -> None:
        self.options: Any = {f"tls_{name}": folder / name for name in ("ca", "cert", "key")}
        self.options["tls_ca"].write_bytes(ca.cert.read_bytes())
        self.old, self.new = client, ca.issue(f"new-{folder.name}", CLIENT)
        self.put(self.old)

    def put(self, pair: Pair) -> None:
        self.options["tls_cert"].write_bytes(pair.cert.read_bytes())
        self.options["tls_key"].write_bytes(pair.key.read_bytes())


@pytest.fixture
def exchanged(tmp_path: Path, ca: Authority, client: Pair) -> Exchanged:
    return Exchanged(tmp_path, ca, client)


async def test_a_turn_outlives_the_client_certificate_that_it_began_with(
    exchanged: Exchanged, ca: Authority, pair: Pair
) -> None:
    """The stream ends when it expires, and the files have another one."""
    old, new = exchanged.old.cert.read_bytes(), exchanged.new.cert.read_bytes()
    with Peer(pair, client_ca=ca.cert.read_bytes()) as peer:
        async with AsyncGate(peer.address, **exchanged.options) as gate:
            async with gate.turn(DELIVERY) as turn:
                await gate.mark(DELIVERY)
                peer.unknown = {old}
                exchanged.put(exchanged.new)
                peer.end_turns(UNKNOWN)
                await asyncio.to_thread(peer.wait_for, 3)
                turn.check()
    assert turn.kept_by == "renew"
    assert peer.certificates == [old, old, new, new]


async def test_a_turn_is_lost_if_the_new_client_certificate_is_refused_too(
    exchanged: Exchanged, ca: Authority, pair: Pair
) -> None:
    old, new = exchanged.old.cert.read_bytes(), exchanged.new.cert.read_bytes()
    with Peer(pair, client_ca=ca.cert.read_bytes()) as peer:
        async with AsyncGate(peer.address, **exchanged.options) as gate:
            with pytest.raises(TurnLost) as lost:
                async with gate.turn(DELIVERY):
                    peer.unknown = {old, new}
                    exchanged.put(exchanged.new)
                    peer.end_turns(UNKNOWN)
                    await asyncio.sleep(30)
    assert lost.value.reason == "DENIED"
    assert peer.certificates == [old, new]


async def test_a_turn_whose_client_certificate_is_the_newest_is_lost(
    exchanged: Exchanged, ca: Authority, pair: Pair
) -> None:
    with Peer(pair, client_ca=ca.cert.read_bytes()) as peer:
        async with AsyncGate(peer.address, **exchanged.options) as gate:
            with pytest.raises(TurnLost) as lost:
                async with gate.turn(DELIVERY):
                    # Other CAs for the server are no other proof of the client.
                    exchanged.options["tls_ca"].write_bytes(ca.cert.read_bytes() + b"\n# again\n")
                    peer.end_turns(UNKNOWN)
                    await asyncio.sleep(30)
    assert lost.value.reason == "DENIED"
    assert len(peer.certificates) == 1


@pytest.mark.parametrize("patience", [0, 10])
async def test_calls_and_beginnings_use_a_new_client_certificate_at_once(
    patience: int, exchanged: Exchanged, ca: Authority, pair: Pair
) -> None:
    """The connection is an old one, and the certificates were compared just now."""
    old, new = exchanged.old.cert.read_bytes(), exchanged.new.cert.read_bytes()
    with Peer(pair, client_ca=ca.cert.read_bytes()) as peer:
        for begins in (False, True):
            exchanged.put(exchanged.old)
            peer.unknown = set()
            async with AsyncGate(peer.address, **exchanged.options, patience=patience) as gate:
                await gate.mark(DELIVERY)
                peer.unknown = {old}
                exchanged.put(exchanged.new)
                peer.certificates.clear()
                if begins:
                    async with gate.turn(DELIVERY) as turn:
                        assert turn.held
                else:
                    assert (await gate.mark(DELIVERY)).first
            assert peer.certificates[:2] == [old, new]


async def test_a_call_whose_token_was_replaced_meanwhile(token_file: Path) -> None:
    newer = (f"planted-{number}" for number in itertools.count(2))
    with Peer(on_call=lambda: token_file.write_text(next(newer))) as peer:
        async with AsyncGate(peer.address, token_file=token_file, patience=0) as gate:
            peer.unknown = {"Bearer planted-first"}
            assert (await gate.mark(DELIVERY)).first
            assert peer.tokens == ["Bearer planted-first", "Bearer planted-2"]
            # A file that changes with each read: one try at once, then as in an outage.
            peer.refusal = UNKNOWN
            with pytest.raises(Unavailable, match="was replaced"):
                await gate.mark(DELIVERY)
    assert 2 <= len(peer.tokens[2:]) < 10


def test_the_last_certificates_serve_all_event_loops(
    exchanged: Exchanged, ca: Authority, pair: Pair
) -> None:
    with Peer(pair, client_ca=ca.cert.read_bytes()) as peer:
        gate = AsyncGate(peer.address, **exchanged.options)

        async def mark() -> None:
            assert (await gate.mark(DELIVERY)).first
            await gate._runtime._ios.pop(asyncio.get_running_loop()).close()

        asyncio.run(mark())
        exchanged.options["tls_key"].unlink()
        asyncio.run(mark())


async def test_a_file_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    async with AsyncGate("https://localhost:1", tls_ca=tmp_path / "none") as gate:
        async with asyncio.timeout(5):
            with pytest.raises(Misconfigured, match="No such file"):
                await gate.mark(DELIVERY)
            with pytest.raises(Misconfigured) as caught:
                async with gate.turn(DELIVERY):
                    pass
    assert caught.value.option == "tls_ca"


def test_a_blocking_gate_and_its_logs(token_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Peer() as peer, Gate(peer.address, token_file=token_file) as gate:
        with caplog.at_level(logging.DEBUG):
            gate.mark(DELIVERY)
            with gate.turn(DELIVERY) as turn:
                turn.check()
        assert "planted" not in caplog.text
    assert set(peer.tokens) == {"Bearer planted-first"}
