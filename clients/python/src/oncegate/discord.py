"""Discord's interactions and gateway events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

from oncegate._delivery import Delivery, DeliveryOptions, read_by_server
from oncegate.v1.delivery_pb2 import PLATFORM_DISCORD

if TYPE_CHECKING:
    from oncegate._discord_handler import handler

__all__ = ["delivery", "handler"]


def delivery(body: Any, **options: Unpack[DeliveryOptions]) -> Delivery:
    """An interaction or a gateway event, as Discord sent it. Discord does not redeliver."""
    return read_by_server(PLATFORM_DISCORD, body, options, redelivers=False)


def __getattr__(name: str) -> Any:
    if name == "handler":  # needs discord.py
        from oncegate._discord_handler import handler

        return handler
    raise AttributeError(f"module {__name__} has no attribute {name}")
