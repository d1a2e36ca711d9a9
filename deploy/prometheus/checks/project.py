"""The files of the project that the checks read, and promtool."""

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "deploy/prometheus/rules.yaml"
CASES = sorted((ROOT / "deploy/prometheus/tests").glob("*.yaml"))
SCRAPE = ROOT / "deploy/prometheus/scrape.txt"
RUNBOOKS = ROOT / "docs/operations/alerts"
DASHBOARD = ROOT / "deploy/grafana/oncegate.json"

Json = dict[str, Any]

# Labels that Prometheus adds.
OF_TARGETS = {"job", "instance", "namespace", "le"}


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules(kind: str) -> list[Json]:
    """The rules that have this key: `alert` or `record`."""
    return [rule for group in load(RULES)["groups"] for rule in group["rules"] if kind in rule]


def promtool(*arguments: str | Path, stdin: str = "") -> tuple[bool, str]:
    command = ["promtool", *(str(part) for part in arguments)]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=600)
    return done.returncode == 0, done.stdout + done.stderr


def promtool_test(folder: Path, with_rules: Json, cases: Json) -> tuple[bool, str]:
    """Runs cases on rules. Both are files in the folder then; JSON is YAML."""
    (folder / "rules.yaml").write_text(json.dumps(with_rules))
    (folder / "cases.yaml").write_text(json.dumps(cases | {"rule_files": ["rules.yaml"]}))
    return promtool("test", "rules", folder / "cases.yaml")


@dataclass
class Metric:
    kind: str
    labels: set[str]
    # As far as the reference lists them.
    values: dict[str, set[str]]

    def series(self, name: str) -> list[str]:
        parts = ("_bucket", "_sum", "_count")
        return [name + part for part in parts] if self.kind == "histogram" else [name]


def documented() -> dict[str, Metric]:
    """The metrics of docs/reference/metrics.md, by the name of a series."""
    found: dict[str, Metric] = {}
    for line in (ROOT / "docs/reference/metrics.md").read_text().splitlines():
        if row := re.match(r"\| `(\w+)` \| (\w+) \|(.*?)\| ", line):
            labels = {
                part[1]: set(part[2].split(", ")) - {""} for part in re.finditer(r"`(\w+)` ?([^;|]*)", row[3].strip())
            }
            metric = Metric(row[2], set(labels), labels)
            found |= dict.fromkeys(metric.series(row[1]), metric)
    return found


def selectors(expr: str) -> list[tuple[str, set[str]]]:
    """Each metric that an expression names, with the labels that it selects by. Recorded ones are not metrics."""
    without_strings = re.sub(r'"(?:[^"\\]|\\.)*"', '""', expr)
    pattern = r"(?<![\w:])((?:oncegate|grpc_server|process)_\w+)(?![\w:])(?:\{([^}]*)\})?"
    return [
        (name, set(re.findall(r"(\w+)\s*[=!]", matchers or "")))
        for name, matchers in re.findall(pattern, without_strings)
        if not name.endswith(":")
    ]


def matchers(expr: str) -> list[tuple[str, str, str]]:
    """Each metric that an expression selects by labels, with a label and its value."""
    return [
        (metric, label, value)
        for metric, labels in re.findall(r"(?<![\w:])((?:oncegate|grpc_server|process)_\w+)\{([^}]*)\}", expr)
        for label, value in re.findall(r'(\w+)\s*[=!]=?~?\s*"([^"]*)"', labels)
    ]


def aggregations(expr: str) -> list[tuple[set[str], str]]:
    """What an expression aggregates: the labels that are kept, and the expression within."""
    found = []
    for start in re.finditer(r"\bby \(([\w, ]*)\) \(", expr):
        depth, at = 1, start.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(expr[at], 0)
            at += 1
        found.append((set(start[1].replace(",", " ").split()), expr[start.end() : at - 1]))
    return found
