"""Certificates of a test, made by the openssl command line."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

SERVER = "subjectAltName=DNS:localhost,IP:127.0.0.1"
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

    def issue(self, name: str, extensions: str) -> Pair:
        """A certificate of this CA, valid for two days."""
        pair = self._pair(name)
        signing, settings = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        settings.write_text(extensions + "\n")
        self._run("req", *self._request(pair, name), "-out", signing)
        self._run(
            *("x509", "-req", "-in", signing, "-extfile", settings, "-days", "2", "-out", pair.cert),
            *("-CA", self.cert, "-CAkey", self.pair.key, "-CAcreateserial"),
        )
        return pair

    def _pair(self, name: str) -> Pair:
        return Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")

    @staticmethod
    def _request(pair: Pair, name: str) -> tuple[str | Path, ...]:
        curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
        return (*curve, "-nodes", "-keyout", pair.key, "-subj", f"/CN={name}")

    @staticmethod
    def _run(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)
