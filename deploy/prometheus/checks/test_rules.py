"""Each alert has a runbook, a case in which it fires, and a brief peak in which it does not."""

import re
import subprocess
from pathlib import Path

import pytest
from project import CASES, ROOT, RULES, RUNBOOKS, Json, load, promtool, rules

ALERTS = rules("alert")
LISTED = [case for path in CASES for test in load(path)["tests"] for case in test.get("alert_rule_test", [])]
NAMES = sorted({alert["alert"] for alert in ALERTS})


def title(alert: Json) -> str:
    return "-".join([alert["alert"], *alert["labels"].values()])


def test_rules_are_valid() -> None:
    passed, output = promtool("check", "rules", RULES)
    assert passed, output


@pytest.mark.parametrize("path", CASES, ids=[path.stem for path in CASES])
def test_cases(path: Path) -> None:
    passed, output = promtool("test", "rules", path)
    assert passed, output


@pytest.mark.parametrize("alert", ALERTS, ids=title)
def test_an_alert_has_what_an_operator_needs(alert: Json) -> None:
    assert re.fullmatch(r"Oncegate[A-Z][A-Za-z]+", alert["alert"])
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
    assert len(alert["annotations"]["summary"]) <= 100
    # No name of a job is in a rule.
    assert not re.search(r'job\s*[=!]~?\s*"', alert["expr"])


@pytest.mark.parametrize("alert", ALERTS, ids=title)
def test_an_alert_has_two_cases(alert: Json) -> None:
    own = [case for case in LISTED if case["alertname"] == alert["alert"]]
    fired = [found["exp_labels"] for case in own for found in case["exp_alerts"]]
    assert any(alert["labels"].items() <= labels.items() for labels in fired), "no case in which it fires"
    assert any(not case["exp_alerts"] for case in own), "no case in which it does not fire"


@pytest.mark.parametrize("name", NAMES)
def test_an_alert_has_a_runbook(name: str) -> None:
    page = RUNBOOKS / f"{name}.md"
    urls = {alert["annotations"]["runbook_url"] for alert in ALERTS if alert["alert"] == name}
    assert urls == {f"docs/operations/alerts/{name}.md"}
    lines = page.read_text().splitlines()
    assert lines[0] == f"# {name}"
    sections = [line for line in lines if line.startswith("## ")]
    assert sections == ["## What it means", "## Confirm", "## What to do", "## What not to do"]
    for alert in ALERTS:
        if alert["alert"] == name:
            assert alert["labels"]["severity"] in lines[2]
    assert f"[{name}]({name}.md)" in (RUNBOOKS / "README.md").read_text()


def test_commands_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    page = re.sub(r"<!-- ci: not run: [^\n]* -->\n```sh\n.*?```", "", (RUNBOOKS / "README.md").read_text(), flags=re.S)
    (block,) = re.findall(r"```sh\n(.*?)```", page, re.S)
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    urls = re.findall("runbook_url: (.*)", (tmp_path / "oncegate.yaml").read_text())
    assert len(urls) == len(ALERTS)
    assert all(url.startswith("https://git.example/oncegate/docs/operations/alerts/Oncegate") for url in urls)


def test_the_chart_has_the_same_rules() -> None:
    copy_of_chart = ROOT / "deploy/helm/oncegate/files/rules.yaml"
    assert copy_of_chart.read_bytes() == RULES.read_bytes(), f"cp {RULES} {copy_of_chart}"


def test_a_runbook_has_an_alert() -> None:
    assert sorted(page.stem for page in RUNBOOKS.glob("Oncegate*.md")) == NAMES
