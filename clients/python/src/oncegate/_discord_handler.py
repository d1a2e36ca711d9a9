"""discord.py: events and commands in the turn of their channel."""

# The framework's own types are incomplete.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import functools
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec

from oncegate import discord as names
from oncegate._again import PATIENCE, Refused, granted, keep_asking
from oncegate._clock import seconds
from oncegate._errors import Busy, Overloaded, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

    import discord

    from oncegate._aio import AsyncGate
    from oncegate._aio_scopes import AsyncTurn
    from oncegate._clock import Time

P = ParamSpec("P")

# An interaction must be answered within 3 s.
_PATIENCE_OF_INTERACTION = 2.5


@dataclass
class _Running:
    """A handler that runs in its turn."""

    gate: AsyncGate
    event: int
    turn: AsyncTurn
    ended: bool = False

    def covers(self, gate: AsyncGate, event: int) -> bool:
        """Whether its turn is also that of this event, such as a command that is a message."""
        is_open = not self.ended and not self.turn.lost.is_set()
        return is_open and self.gate is gate and self.event == event


# A task that a handler starts inherits it, and may outlive the turn.
_running: ContextVar[_Running | None] = ContextVar("oncegate_discord_running", default=None)

_DISPATCHED = {"on_message_edit": "MESSAGE_UPDATE", "on_message_delete": "MESSAGE_DELETE"}


def handler(
    gate: AsyncGate,
    *,
    wait: Time = 600.0,
    on_busy: Callable[[discord.Interaction[Any]], Awaitable[object]] | None = None,
) -> Callable[[Callable[P, Coroutine[Any, Any, None]]], Callable[P, Coroutine[Any, Any, None]]]:
    """A decorator for events, commands and callbacks; write it below discord.py's own.

    ``@client.event``, ``@bot.command()`` or ``@tree.command()``, then ``@handler(gate)``. It reads
    the message, interaction or context among the arguments. The handler reads
    `oncegate.current_turn`.

    An event that has been handled, or that another process handles, is not handled again. In a
    busy channel it waits for at most `wait`. For an interaction `on_busy` is called first, such as
    ``lambda interaction: interaction.response.defer()``: Discord wants an answer within 3 s. While
    the server is away, an interaction raises `Unavailable`; a message is kept for `wait`.

    Guard one handler of an event: of several, only the first would run.
    """
    longest = seconds(wait)

    def decorate(
        function: Callable[P, Coroutine[Any, Any, None]],
    ) -> Callable[P, Coroutine[Any, Any, None]]:
        dispatched = _DISPATCHED.get(function.__name__, "MESSAGE_CREATE")

        async def in_turn(*args: P.args, **kwargs: P.kwargs) -> None:
            event = _event((*args, *kwargs.values()))
            running = _running.get()
            if running and running.covers(gate, event.id):
                return await function(*args, **kwargs)
            interaction, body = _read(dispatched, event)
            delivery = names.delivery(body)

            async def attempt(wait: float, patience: float = PATIENCE) -> None:
                async with granted(gate.turn(delivery, wait=wait, patience=patience)) as turn:
                    with _run(_Running(gate, event.id, turn)):
                        await function(*args, **kwargs)

            if interaction is None:
                return await keep_asking(attempt, longest)
            try:
                return await attempt(0, _PATIENCE_OF_INTERACTION)
            except Refused as refused:
                refusal = refused.refusal
            if isinstance(refusal, Unavailable | Overloaded):
                raise refusal
            if isinstance(refusal, Busy):
                if on_busy:
                    await on_busy(interaction)
                await keep_asking(attempt, longest, refusal)
            return None

        async def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            return await in_turn(*args, **kwargs)

        # Commands look up annotations that are texts in the globals of the function they are given.
        copy = FunctionType(guarded.__code__, function.__globals__, closure=guarded.__closure__)
        return functools.wraps(function)(copy)

    return decorate


@contextmanager
def _run(running: _Running) -> Generator[None, None, None]:
    token = _running.set(running)
    try:
        yield
    finally:
        running.ended = True
        _running.reset(token)


def _event(arguments: tuple[object, ...]) -> discord.Interaction[Any] | discord.Message:
    """What a handler was called for."""
    import discord
    from discord.ext.commands import Context

    for argument in reversed(arguments):  # of an edit, the later message
        if isinstance(argument, Context):
            argument = argument.interaction or argument.message
        if isinstance(argument, discord.Interaction | discord.Message):
            return argument
    raise TypeError("the handler has no message, interaction or context among its arguments")


def _read(
    dispatched: str, event: discord.Interaction[Any] | discord.Message
) -> tuple[discord.Interaction[Any] | None, dict[str, Any]]:
    """The interaction, if it is one, and the body as Discord writes it."""
    import discord

    if isinstance(event, discord.Interaction):
        return event, _interaction(event)
    return None, {"t": dispatched, "d": _message(event)}


def _interaction(interaction: discord.Interaction[Any]) -> dict[str, Any]:
    return {
        "id": str(interaction.id),
        "application_id": str(interaction.application_id),
        "type": interaction.type.value,
        "token": "",  # the real one lets its owner answer
        "user": {"id": str(interaction.user.id)},
        **_place(interaction.guild_id, interaction.channel_id, interaction.channel),
    }


def _message(message: discord.Message) -> dict[str, Any]:
    edited = message.edited_at
    # Without its guild in the cache, only the channel knows the guild's id.
    guild = message.guild.id if message.guild else getattr(message.channel, "guild_id", None)
    return {
        "id": str(message.id),
        "author": {"id": str(message.author.id)},
        "edited_timestamp": edited and edited.isoformat(timespec="microseconds"),
        **_place(guild, message.channel.id, message.channel),
    }


def _place(guild: int | None, channel_id: int | None, channel: object) -> dict[str, Any]:
    place: dict[str, Any] = {}
    if guild is not None:
        place["guild_id"] = str(guild)
    if channel_id is not None:
        place["channel_id"] = str(channel_id)
    parent = getattr(channel, "parent_id", None)
    if parent is not None:
        place["channel"] = {"type": channel.type.value, "parent_id": str(parent)}  # type: ignore[attr-defined]
    return place
