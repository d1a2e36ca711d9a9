"""Senders that follow https://www.standardwebhooks.com. Verify the signature first."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Unpack

from oncegate._delivery import Delivery, DeliveryOptions, pick, read_by_server
from oncegate.v1.delivery_pb2 import PLATFORM_STANDARD_WEBHOOKS

if TYPE_CHECKING:
    from collections.abc import Mapping


def delivery(headers: Mapping[str, str], body: Any, **options: Unpack[DeliveryOptions]) -> Delivery:
    """A webhook's request. Set ``team``: the request names no tenant. There is no conversation.

    The event stays processed for 7 days.
    """
    return read_by_server(
        PLATFORM_STANDARD_WEBHOOKS,
        body,
        options,
        headers=pick(headers, "webhook-id"),
        ttl=timedelta(days=7),
    )
