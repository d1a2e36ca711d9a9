"""The settings of a gate: addresses, files, tokens. Nothing connects."""

from __future__ import annotations

import logging
import os
import ssl
from pathlib import Path
from typing import Any

import pytest

from oncegate import AsyncGate, Gate, Misconfigured
from oncegate._access import LOOK_AGAIN, Access, Rotation, _File, metadata_of
from oncegate._wire import Failure

from .certificates import CLIENT, Authority, Pair


@pytest.mark.parametrize(
    ("server", "target", "is_tls"),
    [
        ("gate:7411", "gate:7411", False),
        ("http://gate:7411/", "gate:7411", False),
        ("https://gate:7411", "gate:7411", True),
        ("https://[::1]:7411/", "[::1]:7411", True),
        ("unix:/run/oncegate.sock", "unix:/run/oncegate.sock", False),
        ("dns:///gate:7411", "dns:///gate:7411", False),
    ],
)
def test_addresses(server: str, target: str, is_tls: bool) -> None:
    access = Access(server, {})
    assert (access.target, access.is_tls) == (target, is_tls)


@pytest.mark.parametrize(
    "server", ["https://", "https://gate", "https://me:planted@gate:1", "http://gate:1/path"]
)
def test_an_address_that_is_none(server: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Gate(server)
    assert caught.value.option == "server"
    assert "planted" not in str(caught.value)


_LOCAL = [
    "localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "http://LOCALHOST:1", "dns:///localhost:1",
    "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1", "unix:/run/oncegate.sock", "unix:///run/oncegate.sock",
]  # fmt: skip
_REMOTE = [
    "gate:1", "10.0.0.1:1", "0.0.0.0:1", "[::]:1", "http://gate:1", "dns:///gate:1", "localhost.evil:1",
    "127.0.0.1.evil:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "dns://10.0.0.1/localhost:1", "xds:///localhost:1",
    "evil:1/localhost", "[::ffff:10.0.0.1]:1",
]  # fmt: skip


@pytest.mark.parametrize("option", ["token", "token_file", "environment"])
@pytest.mark.parametrize("server", _REMOTE)
def test_a_token_does_not_leave_the_host_in_plaintext(
    server: str, option: str, token_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {}
    if option == "environment":
        monkeypatch.setenv("ONCEGATE_TOKEN_FILE", str(token_file))
    else:
        options[option] = "planted" if option == "token" else token_file
    for kind in (Gate, AsyncGate):
        with pytest.raises(Misconfigured, match="plaintext") as caught:
            kind(server, **options)
        assert "planted" not in str(caught.value)
        kind(server, **options, insecure=True)


@pytest.mark.parametrize("server", [*_LOCAL, "https://gate:1"])
def test_a_token_may_be_sent_here_and_over_tls(server: str) -> None:
    access = Access(server, {"token": "planted"})
    assert metadata_of(access.token()) == (("authorization", "Bearer planted"),)
    assert access.avoids_proxy is (server != "https://gate:1")


def test_the_environment(monkeypatch: pytest.MonkeyPatch, token_file: Path, client: Pair) -> None:
    monkeypatch.setenv("ONCEGATE_SERVER", "https://gate:7411")
    monkeypatch.setenv("ONCEGATE_TOKEN_FILE", str(token_file))
    monkeypatch.setenv("ONCEGATE_TLS_SERVER_NAME", "gate.test")
    monkeypatch.setenv("ONCEGATE_CLIENT_CERT", str(client.cert))
    monkeypatch.setenv("ONCEGATE_CLIENT_KEY", str(client.key))
    access = Access(None, {})
    assert (access.is_tls, access.server_name) == (True, "gate.test")
    assert metadata_of(access.token()) == (("authorization", "Bearer planted-first"),)
    assert access.certificates().cert == client.cert.read_bytes().strip()
    assert metadata_of(Access(None, {"token": "own"}).token()) == (("authorization", "Bearer own"),)
    # They are for TLS: another server of the same process needs none.
    Access("unix:/run/oncegate.sock", {})
    monkeypatch.setenv("ONCEGATE_CLIENT_CERT", "")
    with pytest.raises(Failure, match="needs both"):
        Access(None, {})


@pytest.mark.parametrize(
    ("server", "options", "option"),
    [
        ("https://gate:1", {"tls_cert": "a"}, "tls_key"),
        ("https://gate:1", {"tls_key": "a"}, "tls_cert"),
        ("gate:1", {"tls_ca": "a"}, "tls_ca"),
        ("gate:1", {"tls_server_name": "a"}, "tls_server_name"),
        ("https://gate:1", {"token": "a", "token_file": "b"}, "token"),
        ("https://gate:1", {"token": ""}, "token"),
        ("https://gate:1", {"token": "planted secret"}, "token"),
        ("https://gate:1", {"token": "planted\nsecret"}, "token"),
        ("https://gate:1", {"token": "plantedé"}, "token"),
    ],
)
def test_settings_that_do_not_fit(server: str, options: dict[str, Any], option: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Gate(server, **options)
    assert caught.value.option == option
    assert "planted" not in str(caught.value)


def test_a_token_file_is_read_for_each_call(token_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    access = Access("https://gate:1", {"token_file": token_file})
    first = access.token()
    assert not access.has_replaced(first)
    token_file.write_text("  planted-second\n")
    assert access.has_replaced(first)
    second = metadata_of(access.token())
    assert second == (("authorization", "Bearer planted-second"),)
    with caplog.at_level(logging.WARNING):
        for broken in (
            lambda: token_file.write_text("\n"),
            token_file.unlink,
            lambda: token_file.mkdir(),
        ):
            broken()
            assert metadata_of(access.token()) == second
    assert len(caplog.records) == 1
    assert "planted" not in caplog.text


@pytest.mark.parametrize("content", [None, "", " \n", "planted two", "planted\x00"])
def test_a_token_file_that_never_held_one(token_file: Path, content: str | None) -> None:
    token_file.unlink()
    if content is not None:
        token_file.write_text(content)
    access = Access("https://gate:1", {"token_file": token_file})
    with pytest.raises(Failure) as caught:
        access.token()
    assert isinstance(caught.value.error(), Misconfigured)
    assert not caught.value.retryable
    assert "planted" not in repr(caught.value)


def test_a_token_is_not_shown(token_file: Path) -> None:
    gate = Gate("https://gate:1", token="planted", tls_ca=token_file)
    access = gate._options.access
    shown = f"{gate!r} {gate._options!r} {access!r} {access.token()!r} {access.token()!s}"
    assert "planted" not in shown


def test_files_that_hold_no_certificate(ca: Authority, client: Pair, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_text("hello")
    der = tmp_path / "der"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(ca.pair.cert.read_text()))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tls_ca": tmp_path / "none"}, "tls_ca"),
        ({"tls_ca": tmp_path}, "tls_ca"),
        ({"tls_ca": garbage}, "tls_ca"),
        ({"tls_ca": der}, "tls_ca"),
        ({"tls_cert": client.cert, "tls_key": ca.pair.key}, "tls_cert"),
        ({"tls_cert": garbage, "tls_key": client.key}, "tls_cert"),
    ]
    for options, option in wrong:
        with pytest.raises(Failure) as caught:
            Access("https://gate:1", options).certificates()
        assert caught.value.field == option


def test_a_certificate_with_a_comment(ca: Authority, tmp_path: Path) -> None:
    commented = tmp_path / "commented"
    commented.write_text("# Zertifizierungsstelle für Bots\n" + ca.pair.cert.read_text(), "utf-8")
    assert Access("https://gate:1", {"tls_ca": commented}).certificates().ca


def test_a_system_without_files_in_memory(client: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interpreters that are built for old versions of glibc have none on Linux either."""
    monkeypatch.delattr(os, "memfd_create", raising=False)
    options = {"tls_cert": client.cert, "tls_key": client.key}
    assert Access("https://gate:1", options).certificates().key


@pytest.mark.parametrize("exchanged_after", ["tls_cert", "tls_key"])
def test_what_is_checked_is_what_is_used(
    exchanged_after: str, ca: Authority, client: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pair is exchanged between the reads of its two files, or before it is checked."""
    cert, key = tmp_path / "cert", tmp_path / "key"
    cert.write_bytes(client.cert.read_bytes())
    key.write_bytes(client.key.read_bytes())
    new = ca.issue(f"exchanged-{exchanged_after}", CLIENT)
    read = _File.read

    def exchanging(file: _File) -> bytes:
        content = read(file)
        if file.option == exchanged_after:
            cert.write_bytes(new.cert.read_bytes())
            key.write_bytes(new.key.read_bytes())
        return content

    monkeypatch.setattr(_File, "read", exchanging)
    access = Access("https://gate:1", {"tls_cert": cert, "tls_key": key})
    if exchanged_after == "tls_cert":
        with pytest.raises(Failure, match="are not a certificate and its key") as caught:
            access.certificates()
        assert caught.value.field == "tls_cert"
    else:
        found = access.certificates()
        old = client.cert.read_bytes().strip(), client.key.read_bytes().strip()
        assert (found.cert, found.key) == old
    assert access.certificates().key == new.key.read_bytes().strip()


def test_a_pair_is_exchanged_as_a_whole(ca: Authority, client: Pair, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert", tmp_path / "key"
    cert.write_bytes(client.cert.read_bytes())
    key.write_bytes(client.key.read_bytes())
    rotation = Rotation(Access("https://gate:1", {"tls_cert": cert, "tls_key": key}))
    first = rotation.certificates()
    new = ca.issue("new", CLIENT)
    cert.write_bytes(new.cert.read_bytes())
    assert not rotation.has_changed(2 * LOOK_AGAIN)  # the key is the old one
    assert rotation.certificates() is first
    key.write_bytes(new.key.read_bytes())
    assert not rotation.has_changed(2.5 * LOOK_AGAIN)  # it has looked only now
    assert rotation.has_changed(3 * LOOK_AGAIN)
    assert rotation.certificates().cert == new.cert.read_bytes().strip()
    assert not rotation.has_changed(4 * LOOK_AGAIN)
