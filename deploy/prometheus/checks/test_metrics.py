"""Rules and panels name metrics that the server has, and each panel shows the recorded scrape."""

import json
import re
import runpy
from itertools import pairwise
from pathlib import Path

from project import (
    DASHBOARD,
    OF_TARGETS,
    ROOT,
    RULES,
    RUNBOOKS,
    SCRAPE,
    Json,
    aggregations,
    documented,
    load,
    matchers,
    promtool,
    promtool_test,
    rules,
    selectors,
)

# Of the job and the instance that the scrape is given.
TARGET = 'job="oncegate",instance="a:9464"'
# Variables of Grafana.
VARIABLES = {
    "$__rate_interval": "5m",
    "$__range": "1h",
    "$job": ".*",
    "$namespace": ".*",
    "$instance": ".*",
    "$principal": ".*",
}


# It has no series before the first autovacuum, and the labels of another one of tables.
LATER = {"oncegate_table_last_autovacuum_timestamp_seconds": "oncegate_table_dead_rows"}


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


def codes_of_metrics() -> set[str]:
    """The status codes, as the server spells them in its metrics."""
    _, label = (ROOT / "src/grpc/code.rs").read_text().split("fn label")
    return set(re.findall(r'Code::\w+ => "(\w+)"', label))


def test_codes_are_spelt_as_the_server_spells_them() -> None:
    codes = codes_of_metrics()
    assert len(codes) == 17
    cases = [(path.name, path.read_text()) for path in (RULES.parent / "tests").glob("*.yaml")]
    for name, text in EXPRESSIONS + shown() + queries() + cases:
        for values in re.findall(r'grpc_code[=!~]+"(.*?)"', text):
            assert set(values.split("|")) <= codes, f"{name}: {values}"


def family(series: str) -> str:
    """The metric that a series belongs to. A part of a histogram is a series of its own."""
    return re.sub("_(bucket|sum|count)$", "", series)


def test_every_metric_has_a_use() -> None:
    used = {family(metric) for _, expr in EXPRESSIONS + shown() for metric, _ in selectors(expr)}
    unused = {family(name) for name in documented()} - used
    assert unused == set(), "no rule and no panel shows them"


def recorded_labels() -> dict[str, dict[str, set[str]]]:
    """The labels of each metric of the scrape, with their values."""
    found: dict[str, dict[str, set[str]]] = {}
    for line in SCRAPE.read_text().splitlines():
        if part := re.match(r"(\w+)(?:\{(.*?)\})? \S+", line):
            labels = found.setdefault(part[1], {})
            for label, value in re.findall(r'(\w+)="([^"]*)"', part[2] or ""):
                labels.setdefault(label, set()).add(value)
    return found


def values_of(metric: str, label: str) -> set[str]:
    """All values that a label can have: those of the scrape, of the reference and of the contract."""
    recorded, listed = recorded_labels()[LATER.get(metric, metric)], documented()[metric].values
    found = recorded.get(label, set()) | listed.get(label, set())
    if label in ("grpc_method", "grpc_service"):
        contract = "".join(path.read_text() for path in (ROOT / "proto").rglob("*.proto"))
        if label == "grpc_method":
            found |= set(re.findall(r"^\s*rpc (\w+)\(", contract, re.M))
        else:
            found |= {f"oncegate.v1.{name}" for name in re.findall(r"^service (\w+)", contract, re.M)}
            found.add("another.Service")  # of a program that is not oncegate, in a case
    if label == "grpc_code":
        found |= codes_of_metrics()
    return found


def test_the_scrape_has_the_metrics_of_the_rules() -> None:
    recorded = recorded_labels()
    for name, expr in EXPRESSIONS + shown() + queries():
        for metric, _ in selectors(expr):
            assert LATER.get(metric, metric) in recorded, f"{name}: {metric} is not in the scrape"


def test_values_of_labels_exist() -> None:
    cases = [(path.stem, path.read_text()) for path in (RULES.parent / "tests").glob("*.yaml")]
    seen = 0
    wrong: list[str] = []
    for name, expr in EXPRESSIONS + queries() + cases + [(name, filled(expr)) for name, expr in shown()]:
        for metric, label, wanted in matchers(expr):
            if label in OF_TARGETS or label in ("version", "revision") or wanted == ".*":
                continue
            known = values_of(metric, label)
            for value in [wanted] if "+" in wanted else wanted.split("|"):
                seen += 1
                if not any(re.fullmatch(value, one) for one in known):
                    wrong.append(f"{name}: {metric} has no {label}={value}")
    assert wrong == []
    assert seen > 100


def test_aggregations_are_by_labels_that_exist() -> None:
    seen = 0
    for name, expr in EXPRESSIONS + shown() + queries():
        for labels, inner in aggregations(expr):
            for metric, _ in selectors(inner):
                seen += 1
                known = documented()[metric].labels | OF_TARGETS
                assert labels <= known, f"{name}: {metric} has no label {labels - known}"
    assert seen > 100


def test_a_wrong_label_or_value_is_found() -> None:
    ((labels, inner),) = aggregations("sum by (job, rason) (rate(oncegate_shed_total[5m]))")
    assert labels == {"job", "rason"}
    assert selectors(inner) == [("oncegate_shed_total", set())]
    assert not labels <= documented()["oncegate_shed_total"].labels | OF_TARGETS
    assert matchers('oncegate_shed_total{reason!="slwo"}') == [("oncegate_shed_total", "reason", "slwo")]
    assert "slow" in values_of("oncegate_shed_total", "reason")
    assert "slwo" not in values_of("oncegate_shed_total", "reason")


def test_the_objectives_are_about_the_same_methods() -> None:
    page = (ROOT / "docs/operations/slo.md").read_text()
    of_rules = {wanted for _, expr in EXPRESSIONS for _, label, wanted in matchers(expr) if "IsProcessed" in wanted}
    of_page = set(re.findall(r'grpc_method=~"([^"]*IsProcessed[^"]*)"', page))
    assert len(of_rules) == 1
    assert of_page == of_rules


def test_the_dashboard_is_generated() -> None:
    generated = runpy.run_path(str(ROOT / "deploy/grafana/generate"))["text"]()
    for path in (DASHBOARD, ROOT / "deploy/helm/oncegate/files/dashboards/oncegate.json"):
        assert path.read_text() == generated, "run deploy/grafana/generate"


def test_the_lifetime_is_that_of_one_certificate(tmp_path: Path) -> None:
    """During a renewal by one replica after the other, no figure is of two certificates."""
    (lifetime,) = [expr for _, expr in shown() if "oncegate_certificate_not_before_seconds" in expr]
    series = [
        {"series": f'oncegate_certificate_not_{end}_seconds{{job="gate", instance="{name}"}}', "values": f"{at}x4"}
        for name, begin in (("old", 0), ("new", 2400))
        for end, at in (("before", begin), ("after", begin + 3600))
    ]
    series[0]["values"] = "-3600x4"  # one for two hours
    test = {
        "expr": filled(lifetime),
        "eval_time": "1m",
        "exp_samples": [{"labels": '{job="gate"}', "value": 3600}],
    }
    case = {"interval": "30s", "input_series": series, "promql_expr_test": [test]}
    passed, output = promtool_test(tmp_path, load(RULES), {"evaluation_interval": "30s", "tests": [case]})
    assert passed, output


def test_the_dashboard_follows_the_conventions() -> None:
    found = board()
    assert found["uid"] == "oncegate"
    names = [variable["name"] for variable in found["templating"]["list"]]
    assert names == ["datasource", "job", "namespace", "instance", "principal"]
    rows = [panel["title"] for panel in found["panels"] if panel["type"] == "row"]
    assert [row.split()[0].strip(",:") for row in rows] == ["Calls", "Store", "Marks", "Tenants", "Process"]
    for panel in panels():
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(part["datasource"]["uid"] == "${datasource}" for part in [panel, *panel["targets"]])
        chosen = 'job=~"$job", namespace=~"$namespace"'
        assert all(chosen in target["expr"] for target in panel["targets"]), panel["title"]
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
