"""The settings of a gate: addresses, files, tokens. Nothing connects."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from oncegate import AsyncGate, Gate, Misconfigured
from oncegate._access import (
    ENVIRONMENT,
    MAX_FILE,
    Access,
    Metadata,
)
from oncegate._wire import Failure

from .certificates import Authority, Pair


def metadata_of(access: Access) -> Metadata | None:
    return access.credentials(0.0).metadata()


@pytest.mark.parametrize(
    ("server", "target", "is_tls"),
    [
        ("gate:7411", "gate:7411", False),
        ("http://gate:7411/", "gate:7411", False),
        ("https://gate:7411", "gate:7411", True),
        ("https://[::1]:7411/", "[::1]:7411", True),
        ("unix:/run/oncegate.sock", "unix:/run/oncegate.sock", False),
        ("dns:///gate:7411", "dns:///gate:7411", False),
        ("HTTPS://gate:7411", "gate:7411", True),
        ("Http://gate:7411", "gate:7411", False),
        ("UNIX:/run/Oncegate.sock", "unix:/run/Oncegate.sock", False),
        ("[fe80::1%eth0]:7411", "[fe80::1%eth0]:7411", False),
    ],
)
def test_addresses(server: str, target: str, is_tls: bool) -> None:
    access = Access(server, {})
    assert (access.target, access.is_tls) == (target, is_tls)


_NO_ADDRESSES = [
    "https://", "https://gate", "https://me:planted@gate:1", "http://gate:1/path", "https://:7411",
    ":7411", "gate", "gate:", "gate:0", "gate:65536", "::1:7411", "[::1]", "[127.0.0.1]:1", "[]:1",
    "https://gate:1,planted:1", "https:gate:1", "grpc://gate:1", "tcp://planted:1", "xds:///gate:1",
    "evil:1/localhost", "unix:", "unix-abstract:planted", "dns:///", " gate:1", "gate:1\n", "",
]  # fmt: skip


@pytest.mark.parametrize("server", _NO_ADDRESSES)
def test_an_address_that_is_none(server: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        Gate(server)
    assert caught.value.option == "server"
    assert "planted" not in str(caught.value)


_LOCAL = [
    "localhost:1", "127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "http://LOCALHOST:1", "dns:///localhost:1",
    "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1", "unix:/run/oncegate.sock", "unix:///run/oncegate.sock",
    "[::ffff:127.0.0.1]:1", "http://[::FFFF:7f09:909]:1",
]  # fmt: skip
_REMOTE = [
    "gate:1", "10.0.0.1:1", "0.0.0.0:1", "[::]:1", "http://gate:1", "dns:///gate:1", "localhost.evil:1",
    "127.0.0.1.evil:1", "ipv4:127.0.0.1:1,10.0.0.1:1", "dns://10.0.0.1/localhost:1",
    "[::ffff:10.0.0.1]:1", "dns:///ipv4:127.0.0.1:1", "unix-abstract:1",
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
    assert metadata_of(access) == (("authorization", "Bearer planted"),)
    assert access.avoids_proxy is (server != "https://gate:1")


def test_the_environment(monkeypatch: pytest.MonkeyPatch, token_file: Path, client: Pair) -> None:
    monkeypatch.setenv("ONCEGATE_SERVER", "https://gate:7411")
    monkeypatch.setenv("ONCEGATE_TOKEN_FILE", str(token_file))
    monkeypatch.setenv("ONCEGATE_TLS_SERVER_NAME", "gate.test")
    monkeypatch.setenv("ONCEGATE_CLIENT_CERT", str(client.cert))
    monkeypatch.setenv("ONCEGATE_CLIENT_KEY", str(client.key))
    access = Access(None, {})
    assert (access.is_tls, access.server_name) == (True, "gate.test")
    assert metadata_of(access) == (("authorization", "Bearer planted-first"),)
    assert access.certificates().cert == client.cert.read_bytes().strip()
    assert metadata_of(Access(None, {"token": "own"})) == (("authorization", "Bearer own"),)
    monkeypatch.setenv("ONCEGATE_CLIENT_CERT", "")
    with pytest.raises(Failure, match="needs both"):
        Access(None, {})


@pytest.mark.parametrize("server", ["gate:1", "http://127.0.0.1:1", "unix:/run/oncegate.sock"])
@pytest.mark.parametrize("option", ["tls_ca", "tls_cert", "tls_key", "tls_server_name"])
def test_settings_of_tls_need_tls(option: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own: Any = {option: "a"}
    with pytest.raises(Misconfigured, match="the option needs TLS") as caught:
        Gate(server, **own)
    assert caught.value.option == option
    monkeypatch.setenv(ENVIRONMENT[option], "")
    Gate(server)
    monkeypatch.setenv(ENVIRONMENT[option], "a")
    for kind in (Gate, AsyncGate):
        with pytest.raises(Misconfigured, match=f"{ENVIRONMENT[option]} needs TLS") as caught:
            kind(server)
        assert caught.value.option == option


@pytest.mark.parametrize(
    "option", ["server", "tls_ca", "tls_cert", "tls_key", "tls_server_name", "token", "token_file"]
)
def test_empty_settings(option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONCEGATE_SERVER", "https://gate:1")
    empty: Any = {option: ""}
    with pytest.raises(Misconfigured, match="it is empty") as caught:
        Gate(**empty)
    assert caught.value.option == option
    empty = {option: None}  # as if it were left out
    Gate(**empty)


@pytest.mark.parametrize(
    ("server", "options", "option"),
    [
        ("https://gate:1", {"tls_cert": "a"}, "tls_key"),
        ("https://gate:1", {"tls_key": "a"}, "tls_cert"),
        ("https://gate:1", {"token": "a", "token_file": "b"}, "token"),
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
    token_file.write_text("  planted-second\n")
    second = metadata_of(access)
    assert access.token() != first
    assert second == (("authorization", "Bearer planted-second"),)
    link = token_file.with_name("link")

    def large() -> None:
        token_file.write_text("a\n" + " " * MAX_FILE)

    def pipe() -> None:
        token_file.unlink()
        os.mkfifo(token_file)

    def linked_pipe() -> None:
        token_file.rename(link)
        token_file.symlink_to(link)

    def folder() -> None:
        token_file.unlink()
        token_file.mkdir()

    def nothing() -> None:
        token_file.rmdir()

    for outage in (1, 2):
        for broken in (lambda: token_file.write_text("\n"), large, pipe, linked_pipe, folder, nothing):
            broken()
            with caplog.at_level(logging.WARNING):
                assert metadata_of(access) == second
            assert len(caplog.records) == outage  # not again before it ends
        token_file.write_text("planted-second")
        assert metadata_of(access) == second
    assert "token_file: cannot use the file" in caplog.text
    assert "planted" not in caplog.text


@pytest.mark.parametrize("option", ["token_file", "tls_ca"])
def test_files_that_are_no_files(option: str, tmp_path: Path, ca: Authority) -> None:
    """Nothing waits for the writer of a pipe, and nothing without end is read."""
    pipe, link, large = tmp_path / "pipe", tmp_path / "link", tmp_path / "large"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    with large.open("wb") as file:
        file.truncate(MAX_FILE + 1)
    cases: list[tuple[Path | str, str]] = [
        (pipe, "not a regular file"),
        (link, "not a regular file"),
        ("/dev/zero", "not a regular file"),
        (large, "larger than 1 MiB"),
    ]
    for path, problem in cases:
        with pytest.raises(Failure, match=problem) as caught:
            Access("https://gate:1", {option: path}).credentials(0.0)
        assert caught.value.field == option
    link.unlink()
    large.write_bytes(ca.cert.read_bytes() if option == "tls_ca" else b"planted")
    link.symlink_to(large)
    with large.open("ab") as file:
        file.write(b"\n" * (MAX_FILE - large.stat().st_size))
    assert large.stat().st_size == MAX_FILE
    Access("https://gate:1", {option: link}).credentials(0.0)


@pytest.mark.parametrize("content", [None, "", " \n", "planted two", "planted\x00", "\ufeffplanted"])
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
