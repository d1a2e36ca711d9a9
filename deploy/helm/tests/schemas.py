"""JSON schemas of Kubernetes for kubeconform, without a network: those of the package kubernetes-validate."""

import json
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]

PACKAGE = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
DEFINITIONS = "#/$defs/"
# The last five.
VERSIONS = ["1.33.0", "1.34.0", "1.35.0", "1.36.0", "1.37.0"]
KINDS = [
    "configmap-v1", "deployment-apps-v1", "horizontalpodautoscaler-autoscaling-v2", "job-batch-v1",
    "networkpolicy-networking-v1", "pod-v1", "poddisruptionbudget-policy-v1", "service-v1", "serviceaccount-v1",
]  # fmt: skip


def write(folder: Path) -> str:
    """Writes them. Returns the pattern by which kubeconform finds them."""
    for version in VERSIONS:
        source, target = PACKAGE / f"v{version}-local-strict", folder / f"v{version}"
        target.mkdir(parents=True)
        definitions = json.loads((source / "_definitions.json").read_text())["$defs"]
        for kind in KINDS:
            schema = json.loads((source / f"{kind}.json").read_text())
            (target / f"{kind}.json").write_text(json.dumps(self_contained(schema, definitions)))
    return f"{folder}/{{{{.NormalizedKubernetesVersion}}}}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json"


def self_contained(schema: Any, definitions: dict[str, Any]) -> Any:
    """With the definitions that it refers to, for kubeconform follows no reference to another file."""
    needed: dict[str, Any] = {}

    def local(part: Any) -> Any:
        if isinstance(part, list):
            return [local(item) for item in part]
        if not isinstance(part, dict):
            return part
        reference = part.get("$ref", "")
        if not isinstance(reference, str) or DEFINITIONS not in reference:
            return {key: local(value) for key, value in part.items()}
        name = reference.partition(DEFINITIONS)[2]
        if name not in needed:
            needed[name] = None
            needed[name] = local(definitions[name])
        return {"$ref": DEFINITIONS + name}

    return {**local(schema), "$defs": needed}
