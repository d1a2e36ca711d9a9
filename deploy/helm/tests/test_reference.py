"""The README and the Kustomize base are those of the chart, the schema is closed, and it knows the flags of the real
binary."""

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reference
import schemas
import yaml
from chart import CHART, Object, objects, of_kind, run
from policies import POLICIES

# Flags of `oncegate serve` that the chart sets by other values, or keeps from its users.
OWN = {
    "listen", "ops-listen", "ops-tls", "auth", "insecure", "migrate", "lame-duck", "drain-timeout", "database-url",
    "database-url-file", "database-password-file", "database-schema", "tls-cert", "tls-key", "tls-client-ca",
    "tls-client",
}  # fmt: skip


def test_readme() -> None:
    wanted = reference.readme()
    if os.environ.get("UPDATE_REFERENCE"):
        reference.README.write_text(wanted)
    assert reference.README.read_text() == wanted, reference.NOTICE


def test_every_value_has_a_default_and_a_meaning() -> None:
    described = {path for path, _ in reference.described(reference.schema())} - {"global", "enabled"}

    def leaves(part: Any, name: str = "") -> Iterator[str]:
        for key, value in part.items():
            path = f"{name}.{key}" if name else key
            if path not in described and isinstance(value, dict):
                yield from leaves(value, path)
            else:
                yield path

    assert set(leaves(reference.defaults())) == described


def test_the_schema_is_closed() -> None:
    """No object takes names that are not listed, but maps of texts and of amounts, whose names are free."""

    def open_objects(part: Any, path: str) -> Iterator[str]:
        if isinstance(part, dict):
            rule = part.get("additionalProperties")
            is_map = path in ("/$defs/texts", "/$defs/amounts") and isinstance(rule, dict)
            if (part.get("type") == "object" or "properties" in part) and rule is not False and not is_map:
                yield path
            for key, value in part.items():
                yield from open_objects(value, f"{path}/{key}")
        elif isinstance(part, list):
            for number, value in enumerate(part):
                yield from open_objects(value, f"{path}/{number}")

    # A map of free names below `properties` is a property that has such a name, not a schema.
    schema = reference.schema()
    assert not [path for path in open_objects(schema, "") if not path.endswith("/properties")]


def test_settings_are_the_flags_of_the_server() -> None:
    shown = subprocess.run(
        [os.environ["ONCEGATE_BINARY"], "serve", "--help"], capture_output=True, text=True, check=True
    )
    flags = set(re.findall(r"^ +--([a-z-]+)", shown.stdout, re.MULTILINE))
    assert len(flags) > 30
    settings = set(reference.schema()["$defs"]["settings"]["properties"])
    # A flag that is new belongs into values.schema.json, or into OWN.
    assert settings | OWN == flags
    assert not settings & OWN


def test_kustomize_base(tmp_path: Path) -> None:
    wanted = reference.base(tmp_path)
    if os.environ.get("UPDATE_REFERENCE"):
        reference.BASE.mkdir(parents=True, exist_ok=True)
        for path in reference.BASE.iterdir():
            path.unlink()
        for name, text in wanted.items():
            (reference.BASE / name).write_text(text)
    found = {path.name: path.read_text() for path in reference.BASE.iterdir()}
    assert found == wanted, reference.NOTICE


def documented_overlays() -> tuple[str, str]:
    """Those in docs/operations/kubernetes.md: the only install of a namespace, and a second one."""
    text = (CHART.parents[2] / "docs/operations/kubernetes.md").read_text()
    one, two = (part.split("```")[0] for part in text.split("```yaml\n") if "kind: Kustomization" in part)
    return one, two


def built(kustomization: str, folder: Path) -> str:
    overlay = folder / "overlays/bots"
    overlay.mkdir(parents=True)
    (overlay / "kustomization.yaml").write_text(kustomization)
    (folder / "base").mkdir()
    for path in reference.BASE.iterdir():
        (folder / "base" / path.name).write_text(path.read_text())
    done = run("kustomize", "build", overlay)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_overlays_of_the_base(tmp_path: Path) -> None:
    location = schemas.write(tmp_path / "schemas")
    for number, overlay in enumerate(documented_overlays()):
        text = built(overlay, tmp_path / str(number))
        found: list[Object] = objects(text)
        assert {one["metadata"]["namespace"] for one in found} == {"bots"}
        assert "registry.example/oncegate:0.1.0" in text
        assert [name for name, policy in POLICIES.items() if policy(found)] == []
        for version in schemas.VERSIONS:
            command = ["kubeconform", "-strict", "-schema-location", location, "-kubernetes-version", version]
            checked = subprocess.run(command, input=text, capture_output=True, text=True)
            assert checked.returncode == 0, checked.stdout
        assert yaml.safe_load(overlay)["images"]


def test_two_overlays_in_one_namespace(tmp_path: Path) -> None:
    """What selects pods selects those of its own install."""
    installs = [objects(built(overlay, tmp_path / str(at))) for at, overlay in enumerate(documented_overlays())]
    names = [{(one["kind"], one["metadata"]["name"]) for one in found} for found in installs]
    assert not names[0] & names[1]
    labels = [of_kind(found, "Deployment")[0]["spec"]["template"]["metadata"]["labels"] for found in installs]
    for number, found in enumerate(installs):
        selectors = [
            one["spec"].get("podSelector") or one["spec"]["selector"]
            for one in found
            if one["kind"] in ("Deployment", "NetworkPolicy", "PodDisruptionBudget", "Service")
        ]
        assert len(selectors) == 5
        for selector in selectors:
            wanted = selector.get("matchLabels", selector)
            assert [wanted.items() <= one.items() for one in labels] == [number == 0, number == 1]
