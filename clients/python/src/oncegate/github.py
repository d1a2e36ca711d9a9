"""GitHub's webhooks. Verify ``X-Hub-Signature-256`` first."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Unpack

from oncegate._delivery import Delivery, DeliveryOptions, pick, read_by_server
from oncegate.v1.delivery_pb2 import PLATFORM_GITHUB

if TYPE_CHECKING:
    from collections.abc import Mapping


def delivery(headers: Mapping[str, str], body: Any, **options: Unpack[DeliveryOptions]) -> Delivery:
    """A webhook's request.

    All webhooks of a repository get the same delivery id: with several of them, set the gate's
    ``consumer``. GitHub redelivers only on request, so the event stays processed for 7 days.
    """
    return read_by_server(
        PLATFORM_GITHUB,
        body,
        options,
        headers=pick(headers, "X-GitHub-Delivery"),
        ttl=timedelta(days=7),
        redelivers=False,
    )
