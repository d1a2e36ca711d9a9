"""Stripe's events. Verify ``Stripe-Signature`` first."""

from __future__ import annotations

from datetime import timedelta
from typing import Any, Unpack

from oncegate._delivery import Delivery, DeliveryOptions, read_by_server
from oncegate.v1.delivery_pb2 import PLATFORM_STRIPE


def delivery(body: Any, **options: Unpack[DeliveryOptions]) -> Delivery:
    """An event: what Stripe sent, or a ``stripe.Event``. Set ``team`` for your own account's events.

    Stripe retries for 3 days, so the event stays processed for 7 days.
    """
    return read_by_server(PLATFORM_STRIPE, body, options, ttl=timedelta(days=7))
