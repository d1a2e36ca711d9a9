"""Times: the clock that ends are counted on, and conversions."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TypeAlias

from google.protobuf.duration_pb2 import Duration

Time: TypeAlias = float | timedelta
"""A time span: seconds, or a timedelta."""

if hasattr(time, "CLOCK_BOOTTIME"):

    def now() -> float:
        """Seconds on a clock that also counts while the system is suspended."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    now = time.monotonic


def seconds(value: Time) -> float:
    """A time span in seconds."""
    return value.total_seconds() if isinstance(value, timedelta) else float(value)


def duration(value: float) -> Duration:
    """A protobuf duration of so many seconds."""
    whole, nanos = divmod(round(value * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=nanos)


def span(value: Duration) -> float:
    """A protobuf duration in seconds."""
    return value.seconds + value.nanos / 1e9
