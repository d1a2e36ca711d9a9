"""Discord's interactions and gateway events."""

from __future__ import annotations

from typing import Any, Unpack

from oncegate._delivery import Delivery, DeliveryOptions, read_by_server
from oncegate.v1.delivery_pb2 import PLATFORM_DISCORD


def delivery(body: Any, **options: Unpack[DeliveryOptions]) -> Delivery:
    """An interaction or a gateway event, as Discord sent it. Discord does not redeliver."""
    return read_by_server(PLATFORM_DISCORD, body, options, redelivers=False)
