"""discord.py: which event a handler is called for, and how commands and interactions end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import discord
import pytest
from discord.ext import commands

from oncegate import AsyncGate, Reject
from oncegate.discord import handler

from .conftest import until, vector
from .test_discord import command, make_bot, message, state

if TYPE_CHECKING:
    from oncegate.testing import Server

__all__ = ["make_bot"]


async def test_listeners_with_names_of_their_own(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    heard: list[str] = []
    async with AsyncGate(server.address, ttl=30) as gate:

        @bot.listen("on_message_edit")  # type: ignore[untyped-decorator]
        @handler(gate)
        async def corrected(before: discord.Message, after: discord.Message) -> None:
            heard.append(after.content)

        @bot.listen("on_message_delete")  # type: ignore[untyped-decorator]
        @handler(gate, event="on_message_delete")
        async def gone(what: discord.Message) -> None:
            heard.append("gone")

        del bot.on_message_edit, bot.on_message_delete
        bot.receive("MESSAGE_CREATE", message())
        await until(lambda: bot.script.ended)
        for number, content in enumerate(("two", "three")):
            edited = {"edited_timestamp": f"2026-01-01T00:00:0{number}.000000+00:00"}
            bot.receive("MESSAGE_UPDATE", message(content=content) | edited)
            await until(lambda: not server.turns() and len(heard) == number + 1)  # noqa: B023
        bot.receive("MESSAGE_DELETE", {"id": "500", "channel_id": "20", "guild_id": "1"})
        await until(lambda: len(heard) == 3 and not server.turns())
    assert heard == ["two", "three", "gone"]
    body = vector("discord", "MESSAGE_DELETE")["body"]
    assert await state(server, body) == ("PROCESSED", "SUCCEEDED")


async def test_the_event_of_one_message_needs_a_name(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    async with AsyncGate(server.address) as gate:

        @bot.listen("on_message_delete")  # type: ignore[untyped-decorator]
        @handler(gate)
        async def gone(what: discord.Message) -> None: ...

        bot.receive("MESSAGE_CREATE", message())
        bot.receive("MESSAGE_DELETE", {"id": "500", "channel_id": "20", "guild_id": "1"})
        await until(lambda: bot.script.errors)
    [error] = bot.script.errors
    assert isinstance(error, TypeError)
    assert "event=" in str(error)


async def test_an_interaction_with_a_message_is_no_message(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    async with AsyncGate(server.address, ttl=30) as gate:

        @handler(gate)
        async def quote(interaction: discord.Interaction, what: discord.Message) -> None:
            await bot.script.handle(f"quote {what.content}")

        @bot.event  # type: ignore[untyped-decorator]
        async def on_interaction(interaction: discord.Interaction) -> None:
            [what] = bot.cached_messages
            await quote(interaction, what)

        bot.receive("MESSAGE_CREATE", message())
        await until(lambda: bot.script.ended == ["hi"])
        bot.tree.clear_commands(guild=None)
        bot.receive("INTERACTION_CREATE", command())
        await until(lambda: "quote hi" in bot.script.ended and not server.turns())
    assert await state(server, command()) == ("PROCESSED", "SUCCEEDED")


@pytest.mark.parametrize(
    ("error", "expected", "reported"),
    [
        (RuntimeError("boom"), ("NOT_SEEN", None), 1),
        (asyncio.CancelledError(), ("NOT_SEEN", None), 0),
        (Reject("not for us"), ("PROCESSED", "REJECTED"), 0),
    ],
    ids=["error", "cancelled", "reject"],
)
async def test_how_a_command_ends_is_how_the_turn_of_its_message_ends(
    make_bot: Any,
    server: Server,
    error: BaseException,
    expected: tuple[str, str | None],
    reported: int,
) -> None:
    bot = await make_bot()
    began: list[str] = []
    of_commands: list[BaseException] = []

    @bot.event  # type: ignore[untyped-decorator]
    async def on_command_error(_: Any, raised: commands.CommandError) -> None:
        of_commands.append(raised.__cause__ or raised)

    async with AsyncGate(server.address, ttl=30) as gate:

        @bot.event  # type: ignore[untyped-decorator]
        @handler(gate)
        async def on_message(what: discord.Message) -> None:
            await bot.process_commands(what)

        @bot.command()  # type: ignore[untyped-decorator]
        @handler(gate)
        async def bad(_: commands.Context[Any]) -> None:
            began.append("bad")
            raise error

        body = message(content="!bad")
        bot.receive("MESSAGE_CREATE", body)
        await until(lambda: began and not server.turns())
    assert await state(server, body) == expected
    assert of_commands == [error] * reported
    assert bot.script.errors == []  # it is reported once


async def test_an_interaction_waits_although_it_could_not_be_deferred(
    make_bot: Any, server: Server
) -> None:
    bot = await make_bot()
    bot.script.defer_fails = True
    bot.script.go.clear()
    bot.receive("MESSAGE_CREATE", message())
    await until(lambda: bot.script.began)
    bot.receive("INTERACTION_CREATE", command())
    await until(lambda: bot.script.busy == [1000] and server.waiting() == 1)
    bot.script.go.set()
    await until(lambda: bot.script.ended == ["hi", "go there"])
    assert bot.script.errors == []
