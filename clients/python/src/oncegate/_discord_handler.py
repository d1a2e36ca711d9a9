"""discord.py: events and commands in the turn of their channel."""

# The framework's own types are incomplete.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import functools
from types import FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec

from oncegate import discord as names
from oncegate._again import PATIENCE, REFUSALS, keep_asking
from oncegate._clock import seconds
from oncegate._errors import Busy, Overloaded, Unavailable
from oncegate._turn import current

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    import discord

    from oncegate._aio import AsyncGate
    from oncegate._clock import Time

P = ParamSpec("P")

# An interaction must be answered within 3 s.
_PATIENCE_OF_INTERACTION = 2.5

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
            if current.get(None) is not None:  # a command whose message has its turn already
                return await function(*args, **kwargs)
            interaction, body = _read(dispatched, (*args, *kwargs.values()))
            delivery = names.delivery(body)

            async def attempt(wait: float, patience: float = PATIENCE) -> None:
                outcome = await gate.run(
                    lambda _: function(*args, **kwargs), delivery, wait=wait, patience=patience
                )
                if isinstance(outcome, REFUSALS):
                    raise outcome

            if interaction is None:
                return await keep_asking(attempt, longest)
            try:
                return await attempt(0, _PATIENCE_OF_INTERACTION)
            except Busy as busy:
                if on_busy:
                    await on_busy(interaction)
                return await keep_asking(attempt, longest, busy)
            except (Unavailable, Overloaded):
                raise
            except REFUSALS:
                return None

        async def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            return await in_turn(*args, **kwargs)

        # Commands look up annotations that are texts in the globals of the function they are given.
        copy = FunctionType(guarded.__code__, function.__globals__, closure=guarded.__closure__)
        return functools.wraps(function)(copy)

    return decorate


def _read(
    dispatched: str, arguments: tuple[object, ...]
) -> tuple[discord.Interaction[Any] | None, dict[str, Any]]:
    """The body of what a handler was called for, as Discord writes it."""
    import discord
    from discord.ext.commands import Context

    for argument in reversed(arguments):  # of an edit, the later message
        if isinstance(argument, Context):
            argument = argument.interaction or argument.message
        if isinstance(argument, discord.Interaction):
            return argument, _interaction(argument)
        if isinstance(argument, discord.Message):
            return None, {"t": dispatched, "d": _message(argument)}
    raise TypeError("the handler has no message, interaction or context among its arguments")


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
