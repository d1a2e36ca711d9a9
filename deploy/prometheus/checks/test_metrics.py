"""Rules and panels name metrics that the server has, and each panel shows the recorded scrape."""

import json
import re
import runpy
from itertools import pairwise
from pathlib import Path

import pytest
from project import (
    DASHBOARD,
    OF_TARGETS,
    ROOT,
    RULES,
    RUNBOOKS,
    SCRAPE,
    Json,
    documented,
    load,
    promtool,
    promtool_test,
    rules,
    selectors,
)

# Of the job and the instance that the scrape is given.
TARGET = 'job="oncegate",instance="a:9464"'
# Variables of Grafana.
VARIABLES = {"$__rate_interval": "5m", "$__range": "1h", "$job": ".*", "$instance": ".*", "$principal": ".*"}


def board() -> Json:
    found: Json = json.loads(DASHBOARD.read_text())
    return found


def panels() -> list[Json]:
    return [panel for panel in board()["panels"] if panel["type"] != "row"]


def shown() -> list[tuple[str, str]]:
    """Each expression of the dashboard, with a name."""
    found = [(panel["title"], target["expr"]) for panel in panels() for target in panel["targets"]]
    return found + [(note["name"], note["expr"]) for note in board()["annotations"]["list"]]


def queries() -> list[tuple[str, str]]:
    """Each query of a runbook, one in a line, with the runbook's name."""
    blocks = [(page.stem, re.findall(r"```promql\n(.*?)```", page.read_text(), re.S)) for page in RUNBOOKS.glob("*.md")]
    return [(name, query) for name, found in blocks for block in found for query in block.splitlines()]


def filled(expr: str) -> str:
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


EXPRESSIONS = [
    (rule.get("alert") or rule["record"], rule["expr"]) for kind in ("alert", "record") for rule in rules(kind)
]


def test_metrics_and_their_labels_exist() -> None:
    known = documented()
    assert len(known) > 25
    assert len(queries()) > 20
    for name, expr in EXPRESSIONS + shown() + queries():
        for metric, labels in selectors(expr):
            assert metric in known, f"{name}: no metric {metric}"
            assert labels <= known[metric].labels | OF_TARGETS, f"{name}: {metric} has no label {labels}"


def test_recorded_metrics_exist() -> None:
    recorded = {rule["record"] for rule in rules("record")}
    for name, expr in EXPRESSIONS + shown():
        used = set(re.findall(r"\b(?:job|instance):\w+(?::\w+)?", re.sub(r'"[^"]*"', "", expr)))
        assert used <= recorded, f"{name}: {used - recorded}"


def test_queries_of_runbooks_are_valid(tmp_path: Path) -> None:
    found = [{"record": f"query:{name}:{at}", "expr": expr} for at, (name, expr) in enumerate(queries())]
    (tmp_path / "rules.yaml").write_text(json.dumps({"groups": [{"name": "queries", "rules": found}]}))
    passed, output = promtool("check", "rules", tmp_path / "rules.yaml")
    assert passed, output


def test_codes_are_spelt_as_the_server_spells_them() -> None:
    source = (ROOT / "src/grpc/middleware/call.rs").read_text()
    codes = set(re.findall(r'Code::\w+ => "(\w+)"', source))
    assert len(codes) == 17
    cases = [(path.name, path.read_text()) for path in (RULES.parent / "tests").glob("*.yaml")]
    for name, text in EXPRESSIONS + shown() + queries() + cases:
        for values in re.findall(r'grpc_code[=!~]+"(.*?)"', text):
            assert set(values.split("|")) <= codes, f"{name}: {values}"


def test_metrics_without_a_use(record_property: pytest.Function) -> None:
    """For information: it never fails."""
    used = {metric for _, expr in EXPRESSIONS + shown() for metric, _ in selectors(expr)}
    names = {re.sub("_(bucket|sum|count)$", "", name) for name in documented()}
    unused = sorted(name for name in names if not any(name in metric for metric in used))
    print("metrics that no rule and no panel uses:", ", ".join(unused) or "none")


def test_the_dashboard_is_generated() -> None:
    generated = runpy.run_path(str(ROOT / "deploy/grafana/generate"))["text"]()
    for path in (DASHBOARD, ROOT / "deploy/helm/oncegate/files/dashboards/oncegate.json"):
        assert path.read_text() == generated, "run deploy/grafana/generate"


def test_the_dashboard_follows_the_conventions() -> None:
    found = board()
    assert found["uid"] == "oncegate"
    names = [variable["name"] for variable in found["templating"]["list"]]
    assert names == ["datasource", "job", "instance", "principal"]
    rows = [panel["title"] for panel in found["panels"] if panel["type"] == "row"]
    assert [row.split()[0].strip(",:") for row in rows] == ["Calls", "Store", "Marks", "Tenants", "Process"]
    for panel in panels():
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(part["datasource"]["uid"] == "${datasource}" for part in [panel, *panel["targets"]])
        assert all('job=~"$job"' in target["expr"] for target in panel["targets"]), panel["title"]
    places = sorted((panel["gridPos"]["y"], panel["gridPos"]["x"]) for panel in found["panels"])
    assert all(one != other for one, other in pairwise(places))


def series() -> list[Json]:
    """The scrape as series of 20 minutes. Counters began at zero."""
    kinds: dict[str, str] = {}
    found = []
    for line in SCRAPE.read_text().splitlines():
        if kind := re.match(r"# TYPE (\S+) (\S+)", line):
            kinds[kind[1]] = kind[2]
        if line.startswith("#") or not (part := re.match(r"(\w+)(?:\{(.*?)\})? (\S+)(?: |$)", line)):
            continue
        name, labels, value = part[1], part[2], float(part[3])
        family = re.sub(r"_(bucket|sum|count|total)$", "", name)
        rises = "histogram" in (kinds.get(family), kinds.get(name)) or name.endswith("_total")
        values = f"0+{value / 20:.9f}x40" if rises else f"{value:.9f}x40"
        found.append({"series": f"{name}{{{labels + ',' if labels else ''}{TARGET}}}", "values": values})
    assert len(found) > 100
    return found


def test_each_panel_shows_the_scrape(tmp_path: Path) -> None:
    # A version is new in its first minutes.
    new = {note["name"] for note in board()["annotations"]["list"]}
    tests = [
        {
            # What is not a number is no figure.
            "expr": f"count(({filled(expr)}) == ({filled(expr)})) > bool 0",
            "eval_time": "1m" if name in new else "10m",
            "exp_samples": [{"labels": "{}", "value": 1}],
        }
        for name, expr in shown()
    ]
    case = {"interval": "30s", "input_series": series(), "promql_expr_test": tests}
    passed, output = promtool_test(tmp_path, load(RULES), {"evaluation_interval": "30s", "tests": [case]})
    assert passed, output
