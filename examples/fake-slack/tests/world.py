"""A fake Slack, a real oncegate, and replicas of a bot, each a process that can be killed."""

import asyncio
from asyncio.subprocess import Process
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Self

from fake_slack import Call, FakeSlack
from fake_slack.processes import INHERITED, PORTS, is_listening

TIME_SCALE = 0.1
REPLICAS = 2


class World:
    """All processes of one test; they end with it."""

    def __init__(self, bot: list[str], oncegate: str, folder: Path, *, over_http: bool) -> None:
        self._bot = bot
        self._folder = folder
        self._ports = [next(PORTS) for _ in range(REPLICAS)] if over_http else []
        self._oncegate_port = next(PORTS)
        self._oncegate = [
            *(oncegate, "serve", "--listen", f"127.0.0.1:{self._oncegate_port}"),
            *("--database-url", f"sqlite://{folder}/oncegate.db"),
        ]
        self._stack = AsyncExitStack()
        self.slack = FakeSlack(
            [f"http://127.0.0.1:{port}/slack/events" for port in self._ports],
            time_scale=TIME_SCALE,
        )
        self.server: Process
        self.bots: list[Process] = []

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.slack)
        await self.start_oncegate()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def start_oncegate(self) -> None:
        """Starts the server on the same address and database as before."""
        self.server = await self._start("oncegate", self._oncegate, {})
        await self._ready(self.server, lambda: is_listening(self._oncegate_port))

    async def start_bots(self, count: int = REPLICAS, *, guarded: bool = True) -> None:
        """Starts so many more replicas of the bot."""
        for _ in range(count):
            self.bots.append(await self._start_bot(len(self.bots), guarded))

    async def _start_bot(self, number: int, guarded: bool) -> Process:
        environment = self.slack.environment_of(f"bot-{number}") | {
            "ONCEGATE_SERVER": f"127.0.0.1:{self._oncegate_port}",
            "GUARD": "on" if guarded else "off",
            "THINK_SECONDS": "0",
        }
        opened = self.slack.socket_mode.opened
        if not self._ports:
            bot = await self._start(f"bot-{number}", self._bot, environment)
            await self._ready(bot, lambda: self.slack.socket_mode.opened > opened)
        else:
            port = self._ports[number]
            bot = await self._start(f"bot-{number}", self._bot, environment | {"PORT": str(port)})
            await self._ready(bot, lambda: is_listening(port))
        return bot

    def caller(self, call: Call) -> Process:
        """The bot that made a call."""
        return self.bots[int(call.bot.removeprefix("bot-"))]

    async def kill(self, process: Process) -> None:
        """Ends a process by SIGKILL, so that it can clean up nothing."""
        process.kill()
        await process.wait()

    async def _start(self, name: str, command: list[str], environment: dict[str, str]) -> Process:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *command, stdout=log, stderr=log, env=INHERITED | environment
            )
        self._stack.push_async_callback(self._end, process)
        return process

    async def _end(self, process: Process) -> None:
        if process.returncode is None:
            await self.kill(process)

    async def _ready(self, process: Process, is_ready: Callable[[], bool]) -> None:
        """Waits until a process is ready; fails at once if it ends before."""
        await self.slack.until(lambda: is_ready() or process.returncode is not None)
        assert process.returncode is None, f"exited with {process.returncode} before it was ready"
