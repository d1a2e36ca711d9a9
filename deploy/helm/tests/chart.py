"""The chart, rendered: what all tests of it share."""

import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[3]
CHART = ROOT / "deploy/helm/oncegate"
VALUES = sorted((CHART / "ci").glob("*.yaml"))
RELEASE, NAMESPACE = "gate", "bots"
# Of the cluster that is assumed. Helm has a default that its own releases set.
KUBERNETES = "1.37.0"

Object = dict[str, Any]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)


def helm(*arguments: str | Path) -> str:
    done = run("helm", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@cache
def template(values: Path, *arguments: str | Path, chart: Path = CHART) -> str:
    assumed = ["--namespace", NAMESPACE, "--kube-version", KUBERNETES]
    return helm("template", RELEASE, chart, *assumed, "--values", values, *arguments)


def objects(text: str) -> list[Object]:
    return [found for found in yaml.safe_load_all(text) if found]


def render(values: Path, *arguments: str | Path, chart: Path = CHART) -> list[Object]:
    return objects(template(values, *arguments, chart=chart))


def of_kind(rendered: list[Object], kind: str) -> list[Object]:
    return [found for found in rendered if found["kind"] == kind]


def pods(rendered: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Each object that runs a pod, with the pod's spec."""
    for found in rendered:
        if found["kind"] == "Pod":
            yield found, found["spec"]
        elif found["kind"] in ("Deployment", "Job"):
            yield found, found["spec"]["template"]["spec"]


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def merged(under: Any, over: Any) -> Any:
    if isinstance(under, dict) and isinstance(over, dict):
        return {key: merged(under.get(key), over[key]) if key in over else under[key] for key in {**under, **over}}
    return over
