"""Slack: Events API, interactivity, slash commands and Socket Mode. Verify the signature first."""

from __future__ import annotations

import json
from typing import Any, Unpack

from oncegate._delivery import Delivery, DeliveryOptions, read_by_server, to_bytes
from oncegate.v1.delivery_pb2 import PLATFORM_SLACK


def delivery(body: Any, *, each_use: bool = False, **options: Unpack[DeliveryOptions]) -> Delivery:
    """A request's body, or a Socket Mode frame or its payload.

    `each_use`: every click on a button is an event of its own. Otherwise a second click of the same
    user on the same button is the same event.

    Slack redelivers events that were not acknowledged. It does not redeliver interactions and commands.
    """
    sent = to_bytes(body)
    return read_by_server(PLATFORM_SLACK, sent, options, each_use=each_use, redelivers=_is_event(sent))


def _is_event(body: bytes) -> bool:
    try:
        read = json.loads(body)
    except (ValueError, RecursionError):
        return False  # a form
    match read:  # a frame, or its payload
        case {"payload": {"type": "event_callback"}} | {"type": "event_callback"}:
            return True
        case _:
            return False
