"""Compares a result with what a step expects."""

from __future__ import annotations

from typing import Any

from .scenario import Json

# The key that it stands at must be missing. A null must be present, or it would match anything.
ABSENT: Json = {"$absent": True}


class MismatchError(AssertionError):
    """A result differs from what its step expects."""


class Expectations:
    """Matches results, and keeps the values that a scenario stores on the way."""

    def __init__(self) -> None:
        self._stored: dict[str, Any] = {}

    def match(self, expected: Json, result: Json) -> None:
        """Raises MismatchError at the first difference. Nothing is stored of a result that does
        not match as a whole, because it may be compared again."""
        stored: dict[str, Any] = {}
        try:
            self._match(expected, result, "result", stored)
        except MismatchError as error:
            error.add_note(f"the result is {result!r:.2000}")
            raise
        self._stored.update(stored)

    def _match(self, expected: Json, result: Json, at: str, stored: dict[str, Any]) -> None:
        match expected:
            case {"$hex": _}:
                matches = expected == result
            case {"$set": str(name)}:
                stored[name] = result
                matches = result is not None
            case {"$get": str(name)}:
                expected = self._stored[name]
                matches = expected == result
            case {"$gt": str(name)}:
                matches = result is not None and result > self._stored[name]
                expected = f"more than {self._stored[name]}"
            case {"$between": [low, high]}:
                matches = isinstance(result, int | float) and low <= result <= high
            case {"$contains": str(text)}:
                matches = isinstance(result, str) and text in result
            case {"$any": True}:
                matches = result is not None
            case {"$string_bytes": int(length)}:
                matches = isinstance(result, str) and len(result.encode()) == length
            case dict():
                if not isinstance(result, dict):
                    raise _differs(at, expected, result)
                for key, item in expected.items():
                    if (item == ABSENT) == (key in result):
                        raise _differs(f"{at}.{key}", item, result.get(key, "missing"))
                    if item != ABSENT:
                        self._match(item, result[key], f"{at}.{key}", stored)
                return
            case list():
                if not isinstance(result, list) or len(result) != len(expected):
                    raise _differs(at, expected, result)
                for index, item in enumerate(expected):
                    self._match(item, result[index], f"{at}[{index}]", stored)
                return
            case _:
                # A flag is not a number: True == 1 in Python.
                matches = expected == result and type(expected) is type(result)
        if not matches:
            raise _differs(at, expected, result)


def _differs(at: str, expected: Json, result: Json) -> MismatchError:
    return MismatchError(f"{at} is {result!r:.400}, expected {expected!r:.400}")
