"""Certificates of a test, made by the openssl command line."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

SERVER = "subjectAltName=DNS:localhost,IP:127.0.0.1"
_SETTINGS = """
[ca]
default_ca = this
[this]
database = index
new_certs_dir = .
serial = serial
default_md = sha256
policy = names
unique_subject = no
[names]
commonName = supplied
"""

CLIENT = "subjectAltName=URI:spiffe://test/bot\nextendedKeyUsage=clientAuth"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """A CA, in a folder of the test."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self.pair = self._pair(name)
        self._run("req", "-x509", *self._request(self.pair, name), "-days", "2", "-out", self.cert)

    @property
    def cert(self) -> Path:
        return self.pair.cert

    def issue(self, name: str, extensions: str, lasts: timedelta = timedelta(days=2)) -> Pair:
        """A certificate of this CA."""
        pair = self._pair(name)
        (self._folder / "index").touch()
        (self._folder / "settings").write_text(_SETTINGS)
        (self._folder / f"{name}.ext").write_text(extensions + "\n")
        self._run("req", *self._request(pair, name), "-out", f"{name}.csr")
        ends = f"{datetime.now(UTC) + lasts:%Y%m%d%H%M%SZ}"
        self._run(
            *("ca", "-batch", "-notext", "-rand_serial", "-config", "settings", "-out", pair.cert),
            *("-cert", self.cert, "-keyfile", self.pair.key, "-in", f"{name}.csr"),
            *("-extfile", f"{name}.ext", "-startdate", "20200101000000Z", "-enddate", ends),
        )
        return pair

    def _pair(self, name: str) -> Pair:
        return Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")

    @staticmethod
    def _request(pair: Pair, name: str) -> tuple[str | Path, ...]:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        return (*curve, "-nodes", "-keyout", pair.key, "-subj", f"/CN={name}")

    def _run(self, *arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=self._folder)
