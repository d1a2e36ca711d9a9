"""The files of certificates: what is refused, and when they are read again. Nothing connects."""

from __future__ import annotations

import os
import ssl
from pathlib import Path
from typing import Any

import pytest

from oncegate._access import LOOK_AGAIN, LOOK_SOON, Access, Certificates, Rotation, _File
from oncegate._wire import Failure

from .certificates import CLIENT, Authority, Pair


def test_files_that_hold_no_certificate(ca: Authority, client: Pair, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_text("hello")
    der = tmp_path / "der"
    pem = ca.pair.cert.read_text()
    der.write_bytes(ssl.PEM_cert_to_DER_cert(pem))
    damaged = {
        "cut": f"{pem}\n{pem[: len(pem) // 2]}",
        "glued": pem.strip() + pem,  # as `cat` joins files without a last newline
        "marked": f"{pem}\ufeff{pem}",  # a byte order mark, as in a file of Windows
        "foreign": f"{pem}\n{pem[:100]}é{pem[100:]}",
    }
    for name, content in damaged.items():
        (tmp_path / name).write_text(content, "utf-8")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"tls_ca": tmp_path / "none"}, "tls_ca"),
        ({"tls_ca": tmp_path}, "tls_ca"),
        ({"tls_ca": garbage}, "tls_ca"),
        ({"tls_ca": der}, "tls_ca"),
        *(({"tls_ca": tmp_path / name}, "tls_ca") for name in damaged),
        ({"tls_cert": client.cert, "tls_key": ca.pair.key}, "tls_cert"),
        ({"tls_cert": garbage, "tls_key": client.key}, "tls_cert"),
    ]
    for options, option in wrong:
        with pytest.raises(Failure) as caught:
            Access("https://gate:1", options).certificates()
        assert caught.value.field == option


def test_a_certificate_with_a_comment(ca: Authority, tmp_path: Path) -> None:
    commented = tmp_path / "commented"
    pem = ca.pair.cert.read_text()
    windows = pem.replace("\n", " \r\n").strip()
    text = f"# Zertifizierungsstelle für Bots\n{pem}-- the same --\n{windows}"
    commented.write_bytes(text.encode())
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


def test_a_pair_is_exchanged_as_a_whole(
    ca: Authority, client: Pair, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cert, key = tmp_path / "cert", tmp_path / "key"
    cert.write_bytes(client.cert.read_bytes())
    key.write_bytes(client.key.read_bytes())
    rotation = Rotation(Access("https://gate:1", {"tls_cert": cert, "tls_key": key}).certificates)
    first = rotation.certificates(0.0)
    new = ca.issue("new", CLIENT)
    cert.write_bytes(new.cert.read_bytes())
    for look in range(1, 4):
        assert rotation.certificates(look * LOOK_AGAIN) is first  # the key is the old one
    assert len(caplog.records) == 1  # one for the outage
    key.write_bytes(new.key.read_bytes())
    assert rotation.certificates(3.9 * LOOK_AGAIN) is first  # it does not look yet
    second = rotation.certificates(4 * LOOK_AGAIN)
    assert second.cert == new.cert.read_bytes().strip()
    assert rotation.certificates(5 * LOOK_AGAIN) is second
    key.write_bytes(client.key.read_bytes())
    assert rotation.certificates(6 * LOOK_AGAIN) is second
    assert len(caplog.records) == 2  # the next one
    assert "the certificates that were read before stay in use" in caplog.text


def test_certificates_that_have_not_changed_are_not_checked_again(
    ca: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ca"
    path.write_bytes(ca.cert.read_bytes())
    access = Access("https://gate:1", {"tls_ca": path})
    checked: list[Certificates] = []
    check = Access._check

    def checking(access: Access, found: Certificates) -> None:
        checked.append(found)
        check(access, found)

    monkeypatch.setattr(Access, "_check", checking)
    rotation = Rotation(access.certificates)
    first = rotation.certificates(0.0)
    assert rotation.certificates(LOOK_AGAIN) is first
    assert checked == [first]
    path.write_text("no certificate")
    assert rotation.certificates(2 * LOOK_AGAIN) is first
    assert len(checked) == 2


def test_when_the_certificates_are_compared_with_their_files(
    ca: Authority, other_ca: Authority, tmp_path: Path
) -> None:
    path = tmp_path / "ca"
    access = Access("https://gate:1", {"tls_ca": path})

    def put(authority: Authority) -> bytes:
        path.write_bytes(authority.cert.read_bytes())
        return path.read_bytes().strip()

    def used(now: float, **options: Any) -> bytes | None:
        found = access.credentials(now, **options).certificates
        assert found is not None
        return found.ca

    first = put(ca)
    assert used(0.0) == first
    second = put(other_ca)
    assert used(LOOK_AGAIN - 0.1) == first
    assert used(LOOK_AGAIN - 0.1, at_once=True) == second
    put(ca)
    now = LOOK_AGAIN + LOOK_SOON
    assert used(now) == second
    for reason, expected in (("STORE_UNAVAILABLE", second), ("", first)):
        access.credentials(now).judge(Failure("UNAVAILABLE", "away", reason=reason), now)
        assert used(now) == expected
    put(other_ca)
    assert used(now + LOOK_SOON) == first  # once for a failure
