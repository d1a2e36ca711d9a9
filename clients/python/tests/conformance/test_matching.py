"""The matcher accepts what a step expects, and nothing else."""

from __future__ import annotations

import pytest

from .matching import Expectations, MismatchError
from .scenario import Json


@pytest.mark.parametrize(
    ("expected", "result"),
    [
        ({}, {"ran": None}),
        ({"ran": None}, {"ran": None, "more": 1}),
        ({"FinishTurn": {"$absent": True}}, {"RunTurn": {"OK": 1}}),
        ({"duplicate": {"result": {"$hex": "00ff"}}}, {"duplicate": {"result": {"$hex": "00ff"}}}),
        ([{"$any": True}, {"$between": [1, 2]}], ["x", 1.5]),
        ({"name": {"$string_bytes": 2}, "text": {"$contains": "b"}}, {"name": "é", "text": "abc"}),
    ],
)
def test_a_result_matches(expected: Json, result: Json) -> None:
    Expectations().match(expected, result)


@pytest.mark.parametrize(
    ("expected", "result"),
    [
        ({"ran": None}, {"error": {"kind": "internal"}}),
        ({"ran": None}, {"ran": 1}),
        ({"ran": {"$any": True}}, {"ran": None}),
        ({"duplicate": {"result": None}}, {"duplicate": {}}),
        ({"FinishTurn": {"$absent": True}}, {"FinishTurn": {"OK": 1}}),
        ({"FinishTurn": {"$absent": True}}, {"FinishTurn": None}),
        ({"FinishTurn": {"$absent": True}}, None),
        ([1], [1, 2]),
        ({"held": True}, {"held": 1}),
        ({"left_ms": {"$between": [1, 2]}}, {"left_ms": None}),
    ],
)
def test_a_result_differs(expected: Json, result: Json) -> None:
    with pytest.raises(MismatchError):
        Expectations().match(expected, result)


def test_stored_values_are_compared() -> None:
    expectations = Expectations()
    expectations.match({"fence": {"$set": "fence"}}, {"fence": 5})
    expectations.match({"fence": {"$get": "fence"}}, {"fence": 5})
    expectations.match({"fence": {"$gt": "fence"}}, {"fence": 6})
    with pytest.raises(MismatchError):
        expectations.match({"fence": {"$get": "fence"}}, {"fence": 6})
    with pytest.raises(MismatchError):
        expectations.match({"fence": {"$gt": "fence"}}, {"fence": 5})


@pytest.mark.parametrize("rule", ["$get", "$gt"])
@pytest.mark.parametrize("result", [None, 1])
def test_a_name_that_nothing_was_stored_under_is_a_fault_of_the_scenario(
    rule: str, result: Json
) -> None:
    with pytest.raises(KeyError):
        Expectations().match({"fence": {rule: "fenc"}}, {"fence": result})


def test_nothing_is_stored_of_a_result_that_differs() -> None:
    expectations = Expectations()
    expectations.match({"fence": {"$set": "fence"}}, {"fence": 5})
    with pytest.raises(MismatchError):
        expectations.match({"fence": {"$set": "fence"}, "held": True}, {"fence": 6, "held": False})
    expectations.match({"fence": {"$get": "fence"}}, {"fence": 5})
