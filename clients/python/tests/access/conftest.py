"""Certificates for all tests of this folder, and an environment without settings."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from .certificates import CLIENT, SERVER, Authority, Pair


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [
        name for name in os.environ if name.startswith("ONCEGATE_") and name != "ONCEGATE_BINARY"
    ]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="session")
def other_ca(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("other"), "other")


@pytest.fixture(scope="session")
def pair(ca: Authority) -> Pair:
    """The server's."""
    return ca.issue("server", SERVER)


@pytest.fixture(scope="session")
def client(ca: Authority) -> Pair:
    return ca.issue("client", CLIENT)


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("planted-first\n")
    return path
