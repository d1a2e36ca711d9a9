"""The chart's README and the Kustomize base, made of the chart."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from chart import CHART, KUBERNETES, ROOT, Object, helm, objects

README = CHART / "README.md"
BASE = ROOT / "deploy/kustomize/base"
NOTICE = "Generated. Change the chart, then run: UPDATE_REFERENCE=1 deploy/helm/test"

# What Helm means to a base that Helm does not apply.
OF_HELM = {"app.kubernetes.io/managed-by", "helm.sh/chart"}
BASE_VALUES = {
    "image": {"repository": "oncegate"},
    "fullnameOverride": "oncegate",
    "tls": {"secretName": "oncegate-tls"},
    "auth": {"secretName": "oncegate-auth"},
    "database": {"secretName": "oncegate-database"},
    # A hook is Helm's; a Job of a base could not be applied twice.
    "migrate": {"by": "server"},
    "test": {"enabled": False},
}


def schema() -> Object:
    return dict(json.loads((CHART / "values.schema.json").read_text()))


def described(part: Object, name: str = "") -> Iterator[tuple[str, str]]:
    """Each value that has a meaning of its own."""
    for key, value in part["properties"].items():
        path = f"{name}.{key}" if name else key
        if "description" in value:
            yield path, value["description"]
        else:
            yield from described(value, path)


def defaults() -> Object:
    return dict(yaml.safe_load((CHART / "values.yaml").read_text()))


def default_of(path: str) -> Any:
    found: Any = defaults()
    for key in path.split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def readme() -> str:
    rows = []
    for path, meaning in described(schema()):
        default = default_of(path)
        shown = (
            ""
            if default in (None, "", [], {})
            else f"`{json.dumps(default) if not isinstance(default, str) else default}`"
        )
        rows.append(f"| `{path}` | {shown} | {meaning} |")
    return "\n".join(
        [
            "# Helm chart",
            "",
            f"<!-- {NOTICE} -->",
            "",
            "Installs oncegate for the bots of a cluster, or as a sidecar of a bot:",
            "[Kubernetes](../../../docs/operations/kubernetes.md) says how. Other values are refused.",
            "",
            "| value | default | meaning |",
            "|---|---|---|",
            *rows,
            "",
            "The flags that `settings` may have are in [configuration](../../../docs/reference/configuration.md). It",
            "refuses those that have a value of their own above, and those that would show a secret.",
            "",
        ]
    )


def base(folder: Path) -> dict[str, str]:
    """The files of the Kustomize base: one for each kind."""
    values = folder / "values.yaml"
    values.write_text(yaml.safe_dump(BASE_VALUES))
    rendered = objects(helm("template", "oncegate", CHART, "--kube-version", KUBERNETES, "--values", values))
    files = {}
    for kind in sorted({one["kind"] for one in rendered}):
        found = [without_helm(one) for one in rendered if one["kind"] == kind]
        text = "---\n".join(yaml.safe_dump(one, sort_keys=False, width=110) for one in found)
        files[f"{kind.lower()}.yaml"] = f"# {NOTICE}\n{text}"
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": list(files),
    }
    files["kustomization.yaml"] = f"# {NOTICE}\n{yaml.safe_dump(kustomization, sort_keys=False)}"
    return files


def without_helm(found: Object) -> Object:
    metadata = dict(found["metadata"])
    metadata.pop("namespace")
    metadata["labels"] = {key: value for key, value in metadata["labels"].items() if key not in OF_HELM}
    return {**found, "metadata": metadata}
