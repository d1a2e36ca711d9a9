"""The cases of an alert find one that never fires, or fires at once. Takes minutes: only with FULL=true."""

import copy
from pathlib import Path

import pytest
from project import CASES, RULES, Json, load, promtool_test
from test_rules import ALERTS, title


def of_alert(name: str, cases: Json) -> list[Json]:
    """The tests of a file that are about an alert."""
    return [
        test for test in cases["tests"] if any(case["alertname"] == name for case in test.get("alert_rule_test", []))
    ]


@pytest.mark.parametrize("fault", ["never fires", "fires at once"])
@pytest.mark.parametrize("alert", ALERTS, ids=title)
def test_the_cases_find_a_faulty_alert(alert: Json, fault: str, tmp_path: Path) -> None:
    if fault == "fires at once" and "for" not in alert:
        return
    changed = copy.deepcopy(load(RULES))
    for group in changed["groups"]:
        group["rules"] = [rule for rule in group["rules"] if "record" in rule or rule["alert"] == alert["alert"]]
        for rule in group["rules"]:
            if rule == alert and fault == "never fires":
                rule["expr"] = f"({rule['expr']}) and on () (vector(0) > 1)"
            elif rule == alert:
                rule["for"] = "0s"
    seen = False
    for path in CASES:
        cases = load(path)
        for test in of_alert(alert["alert"], cases):
            test["alert_rule_test"] = [case for case in test["alert_rule_test"] if case["alertname"] == alert["alert"]]
            passed, _ = promtool_test(tmp_path, changed, cases | {"tests": [test]})
            seen = seen or not passed
    assert seen
