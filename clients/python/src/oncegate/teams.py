"""Activities of Microsoft Teams. Verify the token first."""

from __future__ import annotations

from typing import Any, Unpack

from oncegate._delivery import Delivery, DeliveryOptions, read_by_server
from oncegate.v1.delivery_pb2 import PLATFORM_TEAMS


def delivery(body: Any, **options: Unpack[DeliveryOptions]) -> Delivery:
    """An activity, as Teams sent it."""
    return read_by_server(PLATFORM_TEAMS, body, options)
