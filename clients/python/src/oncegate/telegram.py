"""Telegram's updates."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Unpack

from oncegate._delivery import Delivery, DeliveryOptions, read_by_server
from oncegate.v1.delivery_pb2 import PLATFORM_TELEGRAM

if TYPE_CHECKING:
    from oncegate._telegram_turns import Turns

__all__ = ["Turns", "delivery"]


def delivery(body: Any, **options: Unpack[DeliveryOptions]) -> Delivery:
    """An update. Set ``team`` to the bot: an update does not name it.

    `body` is what Telegram sent, or an object with ``to_dict()``. The event stays processed for 2 days,
    because update ids may start again after a week.
    """
    return read_by_server(PLATFORM_TELEGRAM, body, options, ttl=timedelta(days=2))


def __getattr__(name: str) -> Any:
    if name == "Turns":  # needs python-telegram-bot
        from oncegate._telegram_turns import Turns

        return Turns
    raise AttributeError(f"module {__name__} has no attribute {name}")
