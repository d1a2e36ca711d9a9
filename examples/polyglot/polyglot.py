"""Bots in several languages serve one Slack workspace, while they and the replicas of oncegate are killed.

Prints figures, and exits with 1 if a message was not answered, was answered twice though its bot lived, or if two
bots worked in one thread at once.
"""

import argparse
import asyncio
import json
import os
import random
import shlex
import socket
import statistics
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from fake_slack import Delivery, FakeSlack
from fake_slack.web_api import Call

STATUS, POST = "assistant.threads.setStatus", "chat.postMessage"
THREADS = 20
THINK_SECONDS = 0.2
"""How long a bot works on a message."""
TIME_SCALE = 0.1
"""Slack's retries come after 0 s, 6 s and 30 s."""
DOWN = 1.0
"""Seconds before a process that was killed is started again."""
BETWEEN_KILLS = 1.0
END_WITHIN = 2.0
"""Seconds from a post within which its turn has ended, unless its bot was killed."""

# A developer's own tokens would connect the bots to the real Slack.
INHERITED = {name: value for name, value in os.environ.items() if not name.startswith("SLACK_")}


def free_ports(count: int) -> list[int]:
    """Ports that are free now; all are held until the last is known, so that no two are equal."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


async def is_listening(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


class Replicas:
    """The replicas of oncegate, on one PostgreSQL database."""

    def __init__(self, testbed: str, count: int) -> None:
        self._testbed = testbed
        self.count = count
        self.addresses: list[str] = []
        self._process: Process
        self._number = 0

    async def start(self, stack: AsyncExitStack) -> None:
        command = [self._testbed, "--store", "postgres", "--replicas", str(self.count)]
        self._process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        stack.push_async_callback(self._end)
        self.addresses = (await self._read())["ready"]["replicas"]

    async def kill_and_restart(self, replica: int, down: float) -> None:
        await self._do("kill", replica)
        await self._do("restart", replica, after_ms=int(1000 * down))

    async def _do(self, command: str, replica: int, **arguments: int) -> None:
        assert self._process.stdin
        self._number += 1
        line = {"id": self._number, "do": command, "replica": replica} | arguments
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        answer = await self._read()
        assert "ok" in answer, answer

    async def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        answer: dict[str, Any] = json.loads(await self._process.stdout.readline())
        return answer

    async def _end(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        await self._process.wait()


@dataclass
class Bot:
    """One bot: a process that is started again after it was killed."""

    name: str
    command: list[str]
    port: int
    environment: dict[str, str]
    log: Path
    killed: list[float] = field(default_factory=list)
    process: Process | None = None

    async def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *self.command, stdout=log, stderr=log, env=INHERITED | self.environment
            )
        async with asyncio.timeout(60):
            while not await is_listening(self.port):
                if self.process.returncode is not None:
                    sys.exit(f"{self.name} has ended before it was ready: see {self.log}")
                await asyncio.sleep(0.05)

    async def kill(self) -> None:
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()
            self.killed.append(time.monotonic())

    def was_killed(self, after: float, before: float) -> bool:
        return any(after <= at <= before for at in self.killed)


@dataclass
class Message:
    """A message to the bots, and when it was sent."""

    text: str
    delivery: Delivery
    sent: float

    def answers(self, calls: Iterable[Call]) -> list[Call]:
        return [call for call in calls if call.arguments["text"] == f"You said: {self.text}"]


async def kill_in_turn(
    bots: list[Bot], replicas: Replicas, chance: random.Random, kills: Counter[str]
) -> None:
    """Kills one process after the other, each once the one before is ready again."""
    processes: list[tuple[str, Callable[[], Awaitable[None]]]] = []
    for bot in bots:

        async def restart(bot: Bot = bot) -> None:
            await bot.kill()
            await asyncio.sleep(DOWN)
            await bot.start()

        processes.append((bot.name, restart))
    for number in range(replicas.count):

        async def again(number: int = number) -> None:
            await replicas.kill_and_restart(number, DOWN)

        processes.append((f"replica {number}", again))
    while True:
        for name, kill_and_restart in chance.sample(processes, len(processes)):
            await asyncio.sleep(chance.uniform(0, 2 * BETWEEN_KILLS))
            kills[name] += 1
            await kill_and_restart()


async def send(
    slack: FakeSlack, count: int, seconds: float, chance: random.Random
) -> list[Message]:
    """Sends messages to the threads at random, spread over the time."""
    messages, threads = [], dict[int, str]()
    for number in range(count):
        thread = chance.randrange(THREADS)
        text = f"message {number} in thread {thread}"
        delivery = slack.mention(text, threads.get(thread))
        threads.setdefault(thread, delivery.thread)
        messages.append(Message(text, delivery, time.monotonic()))
        await asyncio.sleep(chance.uniform(0, 2 * seconds / count))
    return messages


def wrong_answers(messages: list[Message], calls: list[Call], bots: dict[str, Bot]) -> list[str]:
    """Messages that were not answered, or more often than the deaths of bots explain."""
    wrong = []
    for message in messages:
        answers = message.answers(calls)
        if not answers:
            attempts = [(attempt.receiver, attempt.outcome) for attempt in message.delivery.attempts]
            wrong.append(f"{message.text!r} was not answered: {attempts}")
        for first, second in pairwise(answers):
            if not bots[first.bot].was_killed(
                first.time, min(second.time, first.time + END_WITHIN)
            ):
                wrong.append(f"{message.text!r} was answered by {first.bot}, and by {second.bot}")
    return wrong


def overlaps(calls: list[Call], bots: dict[str, Bot]) -> list[str]:
    """Threads in which a bot began although another one worked and lived."""
    working = dict[str, Call]()
    wrong = []
    for call in calls:
        thread = call.arguments["thread_ts"]
        before = working.pop(thread, None)
        if call.method == STATUS:
            if before and not bots[before.bot].was_killed(before.time, call.time):
                wrong.append(f"{thread}: {call.bot} began while {before.bot} worked")
            working[thread] = call
        elif not before or before.bot != call.bot:
            wrong.append(f"{thread}: {call.bot} answered out of its turn")
    return wrong


def table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


async def run(arguments: argparse.Namespace, folder: Path) -> int:
    chance = random.Random(arguments.seed)
    commands = dict(bot.split("=", 1) for bot in arguments.bot)
    ports = dict(zip(commands, free_ports(len(commands))))
    kills = Counter[str]()
    async with AsyncExitStack() as stack:
        replicas = Replicas(arguments.testbed, 2)
        await replicas.start(stack)
        urls = [f"http://127.0.0.1:{port}/slack/events" for port in ports.values()]
        slack = await stack.enter_async_context(FakeSlack(urls, time_scale=TIME_SCALE))
        bots = {}
        for name, command in commands.items():
            environment = slack.environment_of(name) | {
                "PORT": str(ports[name]),
                "THINK_SECONDS": str(THINK_SECONDS),
                "ONCEGATE_SERVER": f"ipv4:{','.join(replicas.addresses)}",
            }
            log = folder / f"{name}.log"
            bots[name] = Bot(name, shlex.split(command), ports[name], environment, log)
            stack.push_async_callback(bots[name].kill)
            await bots[name].start()
        killing = asyncio.create_task(kill_in_turn(list(bots.values()), replicas, chance, kills))
        began = time.monotonic()
        messages = await send(slack, arguments.messages, arguments.seconds, chance)
        while not all(message.delivery.ended for message in messages):
            if killing.done():
                await killing  # raises why
            await asyncio.sleep(0.1)
        killing.cancel()
        took = time.monotonic() - began
        calls = slack.calls(STATUS, POST)
    posts = [call for call in calls if call.method == POST]
    waits = sorted(
        1000 * (answers[0].time - message.sent)
        for message in messages
        if (answers := message.answers(posts))
    )
    attempts = [attempt for message in messages for attempt in message.delivery.attempts]
    by_bot = Counter(call.bot for call in posts)
    refused = Counter(attempt.outcome for attempt in attempts if attempt.outcome != "ok")
    per_message = Counter(call.arguments["text"] for call in posts)
    again = sum(per_message.values()) - len(per_message)
    print(
        table(
            [
                ("messages", f"{len(messages)} in {THREADS} threads, in {took:.0f} s"),
                ("deliveries", f"{len(attempts)}, of which not accepted: {dict(refused)}"),
                ("answered", f"{len(waits)}, by {dict(by_bot)}"),
                (
                    "answered again",
                    f"{again}, because the bot was killed between the post and its turn's end",
                ),
                ("killed", f"{sum(kills.values())}: {dict(kills)}"),
                (
                    "until answered",
                    f"p50 {statistics.median(waits):.0f} ms, longest {waits[-1]:.0f} ms",
                ),
            ]
        )
    )
    wrong = wrong_answers(messages, posts, bots) + overlaps(calls, bots)
    wrong += [f"{name} has answered nothing" for name in bots if not by_bot[name]]
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bot", action="append", required=True, metavar="NAME=COMMAND")
    parser.add_argument(
        "--testbed", required=True, help="the program that runs oncegate and PostgreSQL"
    )
    parser.add_argument("--logs", required=True, type=Path, help="a folder for the bots' logs")
    parser.add_argument("--messages", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    sys.exit(asyncio.run(run(arguments, arguments.logs)))


main()
