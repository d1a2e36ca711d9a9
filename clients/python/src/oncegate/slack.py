"""Slack: Events API, interactivity, slash commands and Socket Mode. Verify the signature first."""

from __future__ import annotations

import json
from typing import Any, Unpack

from oncegate._delivery import Delivery, DeliveryOptions, read_by_server
from oncegate.v1.delivery_pb2 import PLATFORM_SLACK


def delivery(body: Any, *, each_use: bool = False, **options: Unpack[DeliveryOptions]) -> Delivery:
    """A request's body, or a Socket Mode frame or its payload.

    `each_use`: every click on a button is an event of its own. Otherwise a second click of the same
    user on the same button is the same event.

    Slack redelivers events that were not acknowledged. It does not redeliver interactions and commands.
    """
    return read_by_server(PLATFORM_SLACK, body, options, each_use=each_use, redelivers=_is_event(body))


def _is_event(body: Any) -> bool:
    try:
        read = json.loads(body) if isinstance(body, str | bytes | bytearray) else body
    except ValueError:
        return False  # a form
    payload = read.get("payload", read)  # of a frame
    return bool(payload.get("type") == "event_callback")
