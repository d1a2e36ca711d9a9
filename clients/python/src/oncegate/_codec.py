"""Codecs: how a handler's result is stored, so that a duplicate gets the same value."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

JSON = "application/json"
BYTES = "application/octet-stream"


class Codec(Protocol):
    """Turns a result into bytes and back."""

    def encode(self, value: Any) -> tuple[bytes, str]:
        """Returns the stored form, at most 64 KiB, and the name of its type."""
        ...

    def decode(self, data: bytes, result_type: str) -> Any:
        """Returns the value of a stored form."""
        ...


def to_json(value: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """Compact JSON in UTF-8. Halves of surrogate pairs, which UTF-8 has not, are escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, default=default)
    return text.encode(errors="backslashreplace")


class JsonCodec:
    """JSON. Bytes are stored as they are."""

    def encode(self, value: Any) -> tuple[bytes, str]:
        """Returns the value as compact JSON in UTF-8."""
        if isinstance(value, bytes):
            return value, BYTES
        return to_json(value), JSON

    def decode(self, data: bytes, result_type: str) -> Any:
        """Returns the value of JSON; bytes as they are, if their type is another one."""
        return json.loads(data) if result_type == JSON else data


class PydanticCodec:
    """JSON of one type that a pydantic ``TypeAdapter`` accepts, such as a dataclass."""

    def __init__(self, type_: Any) -> None:
        from pydantic import TypeAdapter

        self._adapter: Any = TypeAdapter(type_)

    def encode(self, value: Any) -> tuple[bytes, str]:
        """Returns the value as JSON."""
        return self._adapter.dump_json(value), JSON

    def decode(self, data: bytes, result_type: str) -> Any:
        """Returns a validated value of the type."""
        return self._adapter.validate_json(data)


def encode(codec: Codec, value: Any) -> tuple[bytes, str]:
    """Nothing is stored for ``None``."""
    return (b"", "") if value is None else codec.encode(value)


def decode(codec: Codec, data: bytes, result_type: str) -> Any:
    """The opposite of `encode`."""
    return codec.decode(data, result_type) if data or result_type else None


def decode_or_error(codec: Codec, data: bytes, result_type: str) -> tuple[Any, Exception | None]:
    """The value, or why the codec, which is the author's, cannot decode it."""
    try:
        return decode(codec, data, result_type), None
    except Exception as error:  # noqa: BLE001
        return None, error
