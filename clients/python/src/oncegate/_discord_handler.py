"""discord.py: events and commands in the turn of their channel."""

# The framework's own types are incomplete.
# pyright: reportMissingTypeStubs=false, reportUnknownArgumentType=false
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import functools
import logging
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any, ParamSpec

from oncegate import discord as names
from oncegate._clock import seconds
from oncegate._errors import Busy, Overloaded, Reject, Unavailable
from oncegate._retry import PATIENCE, Refused, granted, keep_asking

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

    import discord

    from oncegate._aio import AsyncGate
    from oncegate._aio_scopes import AsyncTurn
    from oncegate._clock import Time

LOG = logging.getLogger("oncegate")

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
    error: BaseException | None = None
    """Of a command that runs in this turn; discord.py reports it, and does not raise it."""

    def covers(self, gate: AsyncGate, event: int) -> bool:
        """Whether its turn is also that of this event, such as a command that is a message."""
        is_open = not self.ended and not self.turn.lost.is_set()
        return is_open and self.gate is gate and self.event == event


# A task that a handler starts inherits it, and may outlive the turn.
_running: ContextVar[_Running | None] = ContextVar("oncegate_discord_running", default=None)

_DISPATCHED = {
    "on_message": "MESSAGE_CREATE",
    "on_message_edit": "MESSAGE_UPDATE",
    "on_message_delete": "MESSAGE_DELETE",
}


def handler(
    gate: AsyncGate,
    *,
    event: str | None = None,
    wait: Time = 600.0,
    on_busy: Callable[[discord.Interaction[Any]], Awaitable[object]] | None = None,
) -> Callable[[Callable[P, Coroutine[Any, Any, None]]], Callable[P, Coroutine[Any, Any, None]]]:
    """A decorator for events, commands and callbacks; write it below discord.py's own.

    ``@client.event``, ``@bot.command()`` or ``@tree.command()``, then ``@handler(gate)``. It reads
    the message, interaction or context among the arguments. The handler reads
    `oncegate.current_turn`. `event` names the event of a message, as for ``@bot.listen``, if the
    function has another name: ``"on_message"`` or ``"on_message_delete"``.

    A handler that raises fails the turn. So does a command in the turn of its message, after
    discord.py has reported its error.

    An event that has been handled, or that another process handles, is not handled again. In a
    busy channel it waits for at most `wait`. For an interaction `on_busy` is called first, such as
    ``lambda interaction: interaction.response.defer()``: Discord wants an answer within 3 s. While
    the server is unavailable, an interaction raises `Unavailable`; a message is kept for `wait`.

    Guard one handler of an event: of several, only the first would run.
    """
    longest = seconds(wait)

    def decorate(
        function: Callable[P, Coroutine[Any, Any, None]],
    ) -> Callable[P, Coroutine[Any, Any, None]]:
        name = event or function.__name__

        async def in_turn(*args: P.args, **kwargs: P.kwargs) -> None:
            called_for = _CalledFor.of((*args, *kwargs.values()))
            running = _running.get()
            if running and running.covers(gate, called_for.subject.id):
                with _noted(running) if called_for.is_command else nullcontext():
                    await function(*args, **kwargs)
                return None
            interaction, body = called_for.read(name)
            delivery = names.delivery(body)

            async def attempt(wait: float, patience: float = PATIENCE) -> None:
                reported: BaseException | None = None
                try:
                    async with granted(gate.turn(delivery, wait=wait, patience=patience)) as turn:
                        with _run(_Running(gate, called_for.subject.id, turn)) as running:
                            await function(*args, **kwargs)
                        reported = running.error
                        if reported:
                            raise reported
                except BaseException as error:
                    if error is not reported:
                        raise

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
                    try:
                        await on_busy(interaction)
                    except Exception:
                        LOG.exception("on_busy failed; the interaction stays in the queue")
                await keep_asking(attempt, longest, refusal)
            return None

        async def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            return await in_turn(*args, **kwargs)

        # Commands look up annotations that are texts in the globals of the function they are given.
        copy = FunctionType(guarded.__code__, function.__globals__, closure=guarded.__closure__)
        return functools.wraps(function)(copy)

    return decorate


@contextmanager
def _run(running: _Running) -> Generator[_Running, None, None]:
    token = _running.set(running)
    try:
        yield running
    finally:
        running.ended = True
        _running.reset(token)


@contextmanager
def _noted(running: _Running) -> Generator[None, None, None]:
    """Notes how a command ends. What it rejects is an order, and not a fault."""
    try:
        yield
    except BaseException as error:
        running.error = running.error or error
        if not isinstance(error, Reject):
            raise


@dataclass
class _CalledFor:
    """The message or interaction that a handler was called for."""

    subject: discord.Interaction[Any] | discord.Message
    is_command: bool
    is_edit: bool

    @classmethod
    def of(cls, arguments: tuple[object, ...]) -> _CalledFor:
        """Reads the arguments of a handler."""
        import discord
        from discord.ext.commands import Context

        for argument in arguments:  # whose other arguments may be messages
            if isinstance(argument, Context):
                return cls(argument.interaction or argument.message, is_command=True, is_edit=False)
            if isinstance(argument, discord.Interaction):
                return cls(argument, is_command=True, is_edit=False)
        messages = [argument for argument in arguments if isinstance(argument, discord.Message)]
        if not messages:
            raise TypeError("the handler has no message, interaction or context among its arguments")
        # An edit has two messages: before and after.
        return cls(messages[-1], is_command=False, is_edit=len(messages) > 1)

    def read(self, name: str) -> tuple[discord.Interaction[Any] | None, dict[str, Any]]:
        """The interaction, if it is one, and the body as Discord writes it; `name`: of the event."""
        import discord

        if isinstance(self.subject, discord.Interaction):
            return self.subject, _interaction(self.subject)
        if self.is_command:
            dispatched = "MESSAGE_CREATE"
        elif self.is_edit:
            dispatched = "MESSAGE_UPDATE"
        elif name in _DISPATCHED:
            dispatched = _DISPATCHED[name]
        else:
            raise TypeError(f"{name} is no event of a message; name it: handler(gate, event=...)")
        return None, {"t": dispatched, "d": _message(self.subject)}


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
