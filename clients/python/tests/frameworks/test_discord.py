"""discord.py: a client whose gateway events come from the test."""

from __future__ import annotations

import asyncio
import copy
from typing import TYPE_CHECKING, Any

import discord
import pytest
import pytest_asyncio
from discord import app_commands
from discord.ext import commands

from oncegate import AsyncGate, Busy, Delivery, Session, current_turn
from oncegate import discord as names
from oncegate.discord import handler

from .conftest import until, vector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from oncegate.testing import Server

USER = {"id": "300", "username": "ann", "discriminator": "0", "avatar": None}
GUILD: dict[str, Any] = {
    "id": "1",
    "name": "guild",
    "member_count": 1,
    "channels": [],
    "threads": [],
    "members": [],
}


class Script:
    """What the handlers do, and what they did."""

    def __init__(self) -> None:
        self.began: list[tuple[str, int | None, int]] = []
        self.ended: list[str] = []
        self.lost: list[str] = []
        self.busy: list[int] = []
        self.errors: list[BaseException] = []
        self.fail: list[Exception] = []
        self.defer_fails = False
        self.go = asyncio.Event()
        self.go.set()

    async def handle(self, what: str) -> None:
        turn = current_turn()
        self.began.append((what, turn.fence, turn.attempt))
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.lost.append(what)
            raise
        if self.fail:
            raise self.fail.pop(0)
        self.ended.append(what)


class Bot(commands.Bot):
    """A bot with a message handler, a text command and a slash command."""

    def __init__(self, gate: AsyncGate) -> None:
        super().__init__("!", intents=discord.Intents.all())
        self.script = script = Script()

        async def busy(interaction: discord.Interaction) -> None:
            script.busy.append(interaction.id)
            if script.defer_fails:
                raise RuntimeError("too late to defer")

        @self.event
        @handler(gate)
        async def on_message(message: discord.Message) -> None:
            await script.handle(message.content)
            await self.process_commands(message)

        @self.event
        @handler(gate)
        async def on_message_edit(before: discord.Message, after: discord.Message) -> None:
            await script.handle(f"{before.content} -> {after.content}")

        @self.event
        @handler(gate)
        async def on_message_delete(message: discord.Message) -> None:
            await script.handle(f"deleted {message.content}")

        @self.command()
        @handler(gate)
        async def greet(context: commands.Context[Any], name: str) -> None:
            await script.handle(f"greet {name}")

        @self.tree.command(description="go")
        @handler(gate, on_busy=busy)
        async def go(interaction: discord.Interaction, where: str = "there") -> None:
            await script.handle(f"go {where}")

        @self.tree.error
        async def on_error(_: discord.Interaction, error: Exception) -> None:
            script.errors.append(error.__cause__ or error)

    async def on_error(self, event_method: str, /, *args: Any, **kwargs: Any) -> None:
        import sys

        error = sys.exception()
        assert error
        self.script.errors.append(error)

    async def connect_here(self) -> None:
        """What a connection to the gateway begins with."""
        await self._async_setup_hook()
        me: Any = {"id": "77", "username": "bot", "discriminator": "0", "avatar": None}
        self._connection.user = discord.ClientUser(state=self._connection, data=me)
        self.receive("GUILD_CREATE", GUILD)

    def receive(self, event: str, data: dict[str, Any]) -> None:
        """An event of the gateway."""
        self._connection.parsers[event](copy.deepcopy(data))


@pytest_asyncio.fixture
async def make_bot(server: Server) -> AsyncIterator[Callable[[], Any]]:
    async with AsyncGate(server.address, ttl=30) as gate:

        async def make() -> Bot:
            bot = Bot(gate)
            await bot.connect_here()
            return bot

        yield make


def message(message_id: str = "500", content: str = "hi") -> dict[str, Any]:
    body: dict[str, Any] = vector("discord", "MESSAGE_CREATE")["body"]["d"]
    body |= {"id": message_id, "content": content, "author": USER}
    return body | {"mentions": [], "mention_roles": [], "attachments": [], "embeds": []}


def command(interaction_id: str = "1000") -> dict[str, Any]:
    body: dict[str, Any] = vector("discord", "slash command")["body"]
    body["member"] = {"user": USER, "roles": [], "joined_at": None, "permissions": "0", "flags": 0}
    body["channel"] |= {"name": "general", "position": 0}
    body["data"] = {"id": "9", "name": "go", "type": 1, "options": []}
    return body | {"id": interaction_id, "attachment_size_limit": 1}


async def state(server: Server, body: dict[str, Any]) -> tuple[str, str | None]:
    async with AsyncGate(server.address) as gate:
        seen = await gate.seen(names.delivery(body))
        return seen.state, seen.outcome


async def test_a_message_is_handled_once(make_bot: Any, server: Server) -> None:
    bot, replica = await make_bot(), await make_bot()
    bot.receive("MESSAGE_CREATE", message())
    await until(lambda: bot.script.ended and not server.turns())
    assert await state(server, message()) == ("PROCESSED", "SUCCEEDED")
    [(what, fence, attempt)] = bot.script.began
    assert (what, attempt) == ("hi", 1)
    assert fence is not None
    replica.receive("MESSAGE_CREATE", message())
    replica.receive("MESSAGE_CREATE", message("501", "next"))
    await until(lambda: replica.script.ended)
    assert replica.script.ended == ["next"]


async def test_an_edit_and_a_deletion_are_events_of_their_own(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    bot.receive("MESSAGE_CREATE", message())
    await until(lambda: bot.script.ended == ["hi"])
    edited = message(content="ho") | {"edited_timestamp": "2026-01-01T00:00:09.000000+00:00"}
    bot.receive("MESSAGE_UPDATE", edited)
    await until(lambda: len(bot.script.ended) == 2)
    bot.receive("MESSAGE_DELETE", {"id": "500", "channel_id": "20", "guild_id": "1"})
    await until(lambda: len(bot.script.ended) == 3 and not server.turns())
    assert bot.script.ended == ["hi", "hi -> ho", "deleted ho"]
    for event in ("MESSAGE_UPDATE by an edit", "MESSAGE_DELETE"):
        body = vector("discord", event)["body"]
        assert await state(server, body) == ("PROCESSED", "SUCCEEDED")


async def test_messages_of_a_channel_come_one_after_another(make_bot: Any, server: Server) -> None:
    bot, replica = await make_bot(), await make_bot()
    bot.script.go.clear()
    bot.receive("MESSAGE_CREATE", message())
    await until(lambda: bot.script.began)
    replica.receive("MESSAGE_CREATE", message("501", "next"))
    await until(lambda: server.waiting() == 1)
    assert replica.script.began == []
    bot.script.go.set()
    await until(lambda: replica.script.ended == ["next"])


async def test_a_command_shares_the_turn_of_its_message(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    bot.receive("MESSAGE_CREATE", message(content="!greet Ann"))
    await until(lambda: len(bot.script.ended) == 2)
    (first, fence, _), (second, same_fence, _) = bot.script.began
    assert (first, second) == ("!greet Ann", "greet Ann")
    assert fence == same_fence


async def test_a_handler_that_raises_fails_the_turn(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    boom = RuntimeError("boom")
    bot.script.fail.append(boom)
    bot.receive("MESSAGE_CREATE", message())
    await until(lambda: bot.script.errors == [boom] and not server.turns())
    assert (await state(server, message()))[0] == "NOT_SEEN"
    bot.receive("MESSAGE_CREATE", message())
    await until(lambda: bot.script.ended)
    assert [attempt for _, _, attempt in bot.script.began] == [1, 2]


async def test_a_refusal_that_the_handler_raises_fails_the_turn(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    async with AsyncGate(server.address) as gate, gate.turn(Delivery("T1", "other", session="other")):

        @bot.event  # type: ignore[untyped-decorator]
        @handler(gate)
        async def on_message(message: discord.Message) -> None:
            bot.script.began.append((message.content, None, current_turn().attempt))
            async with gate.turn(Delivery("T1", "nested", session="other")):
                pass

        bot.receive("MESSAGE_CREATE", message())
        await until(lambda: bot.script.errors or len(bot.script.began) > 1)
        assert [type(error) for error in bot.script.errors] == [Busy]
        assert bot.script.began == [("hi", None, 1)]
        bot.script.errors.clear()
        bot.script.fail.append(Busy("nested", 1, 0.1))
        bot.receive("INTERACTION_CREATE", command())
        await until(lambda: bot.script.errors)
        assert (bot.script.busy, len(bot.script.began)) == ([], 2)


async def test_a_value_that_the_handler_returns_is_ignored(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    async with AsyncGate(server.address) as gate:

        @bot.event  # type: ignore[untyped-decorator]
        @handler(gate)
        async def on_message(message: discord.Message) -> Any:
            bot.script.ended.append(message.content)
            return message

        bot.receive("MESSAGE_CREATE", message())
        await until(lambda: bot.script.ended and not server.turns())
    assert bot.script.errors == []
    assert await state(server, message()) == ("PROCESSED", "SUCCEEDED")


async def test_a_task_that_outlives_a_turn_needs_its_own(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    outlived = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async with AsyncGate(server.address, ttl=30) as gate:

        @handler(gate, event="on_message")
        async def greet(what: discord.Message) -> None:
            await bot.script.handle(f"greeted {what.content}")

        @bot.event  # type: ignore[untyped-decorator]
        @handler(gate)
        async def on_message(what: discord.Message) -> None:
            async def later() -> None:
                await outlived.wait()
                await greet(what)  # of an event that has been handled

            tasks.append(asyncio.create_task(later()))

        bot.receive("MESSAGE_CREATE", message())
        await until(lambda: tasks and not server.turns())
        outlived.set()
        await tasks[0]
    assert bot.script.ended == []


async def test_another_event_in_a_turn_has_its_own(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    async with AsyncGate(server.address, ttl=30) as gate:

        @handler(gate, event="on_message")
        async def greet(what: discord.Message) -> None:
            await bot.script.handle(f"greeted {what.content}")

        @bot.event  # type: ignore[untyped-decorator]
        @handler(gate)
        async def on_message(what: discord.Message) -> None:
            other = copy.copy(what)
            other.id = 501
            other.channel = discord.Object(21)  # type: ignore[assignment]
            await greet(other)
            await greet(other)

        bot.receive("MESSAGE_CREATE", message())
        await until(lambda: bot.script.began and not server.turns())
    assert bot.script.ended == ["greeted hi"]


async def test_a_slash_command_is_handled_once(make_bot: Any, server: Server) -> None:
    bot, replica = await make_bot(), await make_bot()
    bot.script.go.clear()
    bot.receive("INTERACTION_CREATE", command())
    await until(lambda: bot.script.began)
    replica.receive("INTERACTION_CREATE", command())
    bot.script.go.set()
    await until(lambda: bot.script.ended and not server.turns())
    assert bot.script.ended == ["go there"]
    assert await state(server, command()) == ("PROCESSED", "SUCCEEDED")
    bot.receive("INTERACTION_CREATE", command("1001"))
    await until(lambda: len(bot.script.ended) == 2)
    assert (replica.script.began, replica.script.errors) == ([], [])


async def test_a_slash_command_in_a_busy_channel(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    bot.script.go.clear()
    bot.receive("MESSAGE_CREATE", message())
    await until(lambda: bot.script.began)
    bot.receive("INTERACTION_CREATE", command())
    await until(lambda: bot.script.busy == [1000] and server.waiting() == 1)
    bot.script.go.set()
    await until(lambda: bot.script.ended == ["hi", "go there"])


async def test_the_server_is_away(
    make_bot: Any, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("oncegate._discord_handler._PATIENCE_OF_INTERACTION", 0.2)
    bot = await make_bot()
    server.kill()
    bot.receive("INTERACTION_CREATE", command())
    bot.receive("MESSAGE_CREATE", message())
    await until(lambda: bot.script.errors)
    assert type(bot.script.errors[0]).__name__ == "Unavailable"
    server.start()
    await until(lambda: bot.script.ended == ["hi"])


async def test_a_lost_turn_cancels_the_handler(make_bot: Any, server: Server) -> None:
    bot = await make_bot()
    bot.script.go.clear()
    bot.receive("MESSAGE_CREATE", message())
    await until(lambda: bot.script.began)
    server.lose(Session("1", "1:20"))
    await until(lambda: bot.script.lost == ["hi"])
    assert bot.script.ended == []


async def test_a_handler_needs_something_to_handle(make_bot: Any) -> None:
    async with AsyncGate() as gate:

        @handler(gate)
        async def on_ready() -> None: ...

        with pytest.raises(TypeError, match="no message"):
            await on_ready()


async def test_annotations_that_are_texts_reach_the_command() -> None:
    async with AsyncGate() as gate:

        @app_commands.command()
        @handler(gate)
        async def go(interaction: discord.Interaction, where: int) -> None: ...

        assert go.parameters[0].type is discord.AppCommandOptionType.integer
