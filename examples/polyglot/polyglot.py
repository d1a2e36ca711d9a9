"""Bots in several languages serve one Slack workspace, while they and the replicas of oncegate are killed.

Prints figures, and exits with 1 if a message was not answered, was answered twice though its bot lived, or if two
bots worked in one thread at once.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shlex
import statistics
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from fake_slack import Delivery, FakeSlack
from fake_slack.processes import INHERITED, PORTS, is_listening
from fake_slack.web_api import Call

STATUS, POST = "assistant.threads.setStatus", "chat.postMessage"
THREADS = 60
THINK_SECONDS = 0.2
"""How long a bot works on a message."""
TIME_SCALE = 0.1
"""Slack's retries come after 0 s, 6 s and 30 s."""
DOWN = 1.0
"""Seconds before a process that was killed is started again."""
BETWEEN_KILLS = 1.0
LAST_ANSWER_WITHIN = 60.0
"""Seconds after the last delivery: a thread whose bot was killed is free after 22.5 s."""
END_WITHIN = 2.0
"""Seconds from a post within which its turn has ended, unless its bot was killed."""


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
    url: str
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
            while not is_listening(self.port):
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

    @property
    def answer(self) -> str:
        return f"You said: {self.text}"

    def answers(self, calls: Iterable[Call]) -> list[Call]:
        return [call for call in calls if call.arguments.get("text") == self.answer]

    def was_accepted_by(self, bot: Bot) -> bool:
        return self.delivery.accepted and self.delivery.attempts[-1].receiver == bot.url


@dataclass
class World:
    """One workspace, its bots, and the replicas of oncegate that they share."""

    slack: FakeSlack
    replicas: Replicas
    bots: dict[str, Bot] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)

    @property
    def answered(self) -> set[str]:
        return set(self.slack.answers)

    def waiting(self) -> list[Message]:
        """The messages without an answer."""
        answered = self.answered
        return [message for message in self.messages if message.answer not in answered]

    def alone_has(self, bot: Bot) -> bool:
        return any(message.was_accepted_by(bot) for message in self.waiting())


class Killer:
    """Kills one process after the other, each once the one before is ready again.

    No bot is killed while it alone has a message: one that waits for a busy thread is acknowledged,
    so Slack does not deliver it again.
    """

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world = world
        self._chance = chance
        self._stopping = False
        self.kills = Counter[str]()

    async def stop(self, running: asyncio.Task[None]) -> None:
        """Ends it once all processes are ready."""
        self._stopping = True
        await running

    async def run(self) -> None:
        world = self._world
        processes: list[Bot | int] = [*world.bots.values(), *range(world.replicas.count)]
        while not self._stopping:
            for process in self._chance.sample(processes, len(processes)):
                await asyncio.sleep(self._chance.uniform(0, 2 * BETWEEN_KILLS))
                if self._stopping:
                    return
                if isinstance(process, Bot):
                    await self._kill_and_restart(process)
                else:
                    await world.replicas.kill_and_restart(process, DOWN)
                    self.kills["a replica of oncegate"] += 1

    async def _kill_and_restart(self, bot: Bot) -> None:
        await self._world.slack.until(lambda: not self._world.alone_has(bot))
        await bot.kill()
        self.kills[bot.name] += 1
        await asyncio.sleep(DOWN)
        await bot.start()


async def send(world: World, count: int, seconds: float, chance: random.Random) -> None:
    """Sends messages to the threads at random, spread over the time."""
    threads = dict[int, str]()
    for number in range(count):
        thread = chance.randrange(THREADS)
        text = f"message {number} in thread {thread}"
        delivery = world.slack.mention(text, threads.get(thread))
        threads.setdefault(thread, delivery.thread)
        world.messages.append(Message(text, delivery, time.monotonic()))
        await asyncio.sleep(chance.uniform(0, 2 * seconds / count))


def wrong_answers(world: World) -> list[str]:
    """Messages that were not answered, or more often than the deaths of bots explain."""
    wrong = []
    posts = world.slack.calls(POST)
    for message in world.messages:
        answers = message.answers(posts)
        if not answers:
            attempts = [(each.receiver, each.outcome) for each in message.delivery.attempts]
            wrong.append(f"{message.text!r} was not answered: {attempts}")
        for first, second in pairwise(answers):
            until = min(second.time, first.time + END_WITHIN)
            if not world.bots[first.bot].was_killed(first.time, until):
                wrong.append(f"{message.text!r} was answered by {first.bot}, and by {second.bot}")
    return wrong


def overlaps(world: World) -> list[str]:
    """Threads in which a bot began although another one worked and lived."""
    working = dict[str, Call]()
    wrong = []
    for call in world.slack.calls(STATUS, POST):
        thread = call.arguments["thread_ts"]
        before = working.pop(thread, None)
        if call.method == STATUS:
            if before and not world.bots[before.bot].was_killed(before.time, call.time):
                wrong.append(f"{thread}: {call.bot} began while {before.bot} worked")
            working[thread] = call
        elif not before or before.bot != call.bot:
            wrong.append(f"{thread}: {call.bot} answered out of its turn")
    return wrong


def figures(world: World, kills: Counter[str], took: float) -> str:
    posts = world.slack.calls(POST)
    attempts = [attempt for message in world.messages for attempt in message.delivery.attempts]
    refused = Counter(attempt.outcome for attempt in attempts if attempt.outcome != "ok")
    answers = [message.answers(posts) for message in world.messages]
    waits = sorted(
        1000 * (found[0].time - message.sent)
        for message, found in zip(world.messages, answers)
        if found
    )
    rows = {
        "messages": f"{len(world.messages)} in {THREADS} threads, in {took:.0f} s",
        "deliveries": f"{len(attempts)}, not accepted: {dict(refused)}",
        "killed": f"{sum(kills.values())}: {dict(kills)}",
        "answered": f"{len(waits)}, by {dict(Counter(call.bot for call in posts))}",
        "answered again": f"{len(posts) - len(waits)}, each after a kill right after the post",
        "until answered": f"p50 {statistics.median(waits):.0f} ms, longest {waits[-1]:.0f} ms",
    }
    return "\n".join(f"{name:<15} {value}" for name, value in rows.items())


async def run(arguments: argparse.Namespace) -> int:
    chance = random.Random(arguments.seed)
    commands = dict(bot.split("=", 1) for bot in arguments.bot)
    ports = dict(zip(commands, PORTS))
    async with AsyncExitStack() as stack:
        replicas = Replicas(arguments.testbed, 2)
        await replicas.start(stack)
        urls = {name: f"http://127.0.0.1:{port}/slack/events" for name, port in ports.items()}
        slack = await stack.enter_async_context(FakeSlack(urls.values(), time_scale=TIME_SCALE))
        world = World(slack, replicas)
        for name, command in commands.items():
            environment = slack.environment_of(name) | {
                "PORT": str(ports[name]),
                "THINK_SECONDS": str(THINK_SECONDS),
                "ONCEGATE_SERVER": f"ipv4:{','.join(replicas.addresses)}",
            }
            log = arguments.logs / f"{name}.log"
            bot = Bot(name, urls[name], shlex.split(command), ports[name], environment, log)
            world.bots[name] = bot
            stack.push_async_callback(bot.kill)
            await bot.start()
        killer = Killer(world, chance)
        killing = asyncio.create_task(killer.run())
        began = time.monotonic()
        await send(world, arguments.messages, arguments.seconds, chance)
        await killer.stop(killing)
        await slack.until(lambda: all(message.delivery.ended for message in world.messages))
        with contextlib.suppress(TimeoutError):  # what is still not answered is reported
            await slack.until(lambda: not world.waiting(), LAST_ANSWER_WITHIN)
        took = time.monotonic() - began
    print(figures(world, killer.kills, took))
    answered_by = {call.bot for call in slack.calls(POST)}
    wrong = wrong_answers(world) + overlaps(world)
    wrong += [f"{name} has answered nothing" for name in world.bots if name not in answered_by]
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
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    sys.exit(asyncio.run(run(arguments)))


main()
