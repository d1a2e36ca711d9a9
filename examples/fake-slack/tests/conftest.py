"""The options of the tests, and the world that each of them has to itself."""

import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from .world import World


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--bot", help="the command that starts the bot")
    parser.addoption("--oncegate", default="oncegate", help="the server (%(default)s)")


@pytest.fixture(params=["http", "socket_mode"])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    """A fake Slack, an oncegate server, and no bots yet."""
    bot = shlex.split(request.config.getoption("--bot"))
    oncegate = request.config.getoption("--oncegate")
    async with World(bot, oncegate, tmp_path, over_http=request.param == "http") as world:
        yield world
    for log in sorted(tmp_path.glob("*.log")):
        print(f"--- {log.name}\n{log.read_text()}")
