"""Runs the fake in a terminal: each line is a message that mentions the bot."""

import argparse
import asyncio
import logging
import sys

from .slack import FakeSlack

HELP = "Each line mentions the bot in a new thread; a line that starts with > in the last one."


async def chat(slack: FakeSlack) -> None:
    """Reads lines until the end of the input."""
    thread = None
    while line := await asyncio.to_thread(sys.stdin.readline):
        text = line.strip()
        reply = text.startswith(">")
        if text:
            delivery = slack.mention(text.removeprefix(">").strip(), thread if reply else None)
            thread = delivery.thread


async def main() -> None:
    """Parses the arguments, prints the bot's variables, and chats."""
    parser = argparse.ArgumentParser(prog="python -m fake_slack", description=__doc__, epilog=HELP)
    parser.add_argument(
        "--url",
        action="append",
        default=[],
        metavar="URL",
        help="request URL of the bot, once for each replica; without it: Socket Mode",
    )
    parser.add_argument("--port", type=int, default=3100, help="of the Web API (%(default)s)")
    parser.add_argument(
        "--time-scale",
        type=float,
        default=1.0,
        metavar="FACTOR",
        help="shortens the waits of 0, 60 and 300 s before retries, such as 0.1",
    )
    arguments = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", level=logging.INFO)
    async with FakeSlack(
        arguments.url, port=arguments.port, time_scale=arguments.time_scale
    ) as slack:
        for name, value in slack.environment.items():
            print(f"export {name}={value}")
        print(HELP, flush=True)
        await chat(slack)


if __name__ == "__main__":
    asyncio.run(main())
