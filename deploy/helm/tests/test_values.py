"""Values that make no sense, or would make a server that does not start or has no protection, are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import CHART, KUBERNETES, helm, merged, run

LEAST = yaml.safe_load((CHART / "ci/shared-tls-auth.yaml").read_text())
SIDECAR = yaml.safe_load((CHART / "ci/sidecar-example.yaml").read_text())


def outcome(values: Any, folder: Path) -> tuple[int, str]:
    file = folder / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    done = run("helm", "template", "gate", CHART, "--kube-version", KUBERNETES, "--values", file)
    return done.returncode, done.stderr


# Over the least of values: what, and a part of the message.
REFUSED = [
    # Misspelt, at every level.
    ({"replica": 3}, "additional properties 'replica' not allowed"),
    ({"tls": {"secret": "x"}}, "additional properties 'secret' not allowed"),
    ({"settings": {"max-call": 1}}, "additional properties 'max-call' not allowed"),
    ({"sidecar": {"setting": {}}}, "additional properties 'setting' not allowed"),
    ({"resources": {"request": {"cpu": "1"}}}, "additional properties 'request' not allowed"),
    ({"networkPolicy": {"clients": [{"podSelector": {"matchLabel": {}}}]}}, "additional properties 'matchLabel'"),
    ({"tolerations": [{"keys": "pool"}]}, "additional properties 'keys' not allowed"),
    ({"extraVolumes": [{"name": "x", "hostPath": {"path": "/"}}]}, "additional properties 'hostPath' not allowed"),
    # Wrong types and values.
    ({"mode": "cluster"}, "/mode"),
    ({"image": {"tag": "latest"}}, "/image/tag"),
    ({"image": {"repository": "registry.example/oncegate:1.0 "}}, "/image/repository"),
    ({"image": {"digest": "sha256:abc"}}, "/image/digest"),
    ({"replicas": 0}, "/replicas"),
    ({"replicas": "3"}, "/replicas"),
    ({"service": {"port": 70000}}, "/service/port"),
    ({"service": {"address": "127.0.0.1"}}, "/service/address"),
    ({"settings": {"max-hold": "1 hour"}}, "/settings/max-hold"),
    ({"settings": {"max-hold": 3600}}, "/settings/max-hold"),
    ({"settings": {"max-calls": 0}}, "/settings/max-calls"),
    ({"settings": {"log-format": "xml"}}, "/settings/log-format"),
    ({"settings": {"database-url": "postgres://u:p@h/d"}}, "additional properties 'database-url' not allowed"),
    ({"settings": {"insecure": True}}, "additional properties 'insecure' not allowed"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "/podDisruptionBudget/maxUnavailable"),
    ({"podDisruptionBudget": {"maxUnavailable": "0%"}}, "/podDisruptionBudget/maxUnavailable"),
    ({"database": {"schema": "a b"}}, "/database/schema"),
    ({"auth": {"key": "../etc/passwd"}}, "/auth/key"),
    ({"tls": {"secretName": "Not_A_Name"}}, "/tls/secretName"),
    ({"tls": {"clients": "yes"}}, "/tls/clients"),
    ({"migrate": {"by": "hand"}}, "/migrate/by"),
    ({"shutdown": {"drainSeconds": "10s"}}, "/shutdown/drainSeconds"),
    ({"insecure": "no"}, "/insecure"),
    ({"podLabels": {"version": 2}}, "/podLabels/version"),
    ({"service": {"trafficDistribution": "PreferNear"}}, "/service/trafficDistribution"),
    ({"prometheusRule": {"runbookBase": "git.example/oncegate"}}, "/prometheusRule/runbookBase"),
    ({"prometheusRule": {"runbookBase": "https://"}}, "/prometheusRule/runbookBase"),
    # The chart's own labels would stand twice, and which of them counts is a matter of the parser.
    ({"podLabels": {"app.kubernetes.io/component": "bot"}}, "/podLabels"),
    ({"serviceMonitor": {"labels": {"app.kubernetes.io/name": "x"}}}, "/serviceMonitor/labels"),
    ({"prometheusRule": {"labels": {"helm.sh/chart": "x"}}}, "/prometheusRule/labels"),
    ({"dashboards": {"labels": {"app.kubernetes.io/managed-by": "x"}}}, "/dashboards/labels"),
    # What does not fit together.
    ({"image": {"repository": ""}}, "image.repository is required"),
    ({"database": {"secretName": ""}}, "database.secretName is required"),
    ({"tls": {"secretName": ""}}, "tls.secretName is required"),
    ({"auth": {"secretName": ""}}, "auth.secretName is required"),
    ({"insecure": True, "tls": {"secretName": "", "clients": "optional"}}, "tls.clients needs tls.secretName"),
    ({"tls": {"clients": "required"}}, "test.tlsSecretName is required"),
    ({"autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 4}}, "minReplicas exceeds"),
]


@pytest.mark.parametrize(("change", "message"), REFUSED, ids=[json.dumps(change) for change, _ in REFUSED])
def test_refused(change: Any, message: str, tmp_path: Path) -> None:
    code, error = outcome(merged(LEAST, change), tmp_path)
    assert code != 0 and message in error, error


@pytest.mark.parametrize("name", ["1gate", "gate.bots"])
def test_a_name_that_no_service_may_have(name: str) -> None:
    """Helm takes it, and Kubernetes would refuse the Services when the migration has run."""
    command: list[str | Path] = ["helm", "template", name, CHART, "--kube-version", KUBERNETES, "--values"]
    done = run(*command, CHART / "ci/shared-tls-auth.yaml")
    assert done.returncode != 0 and "set fullnameOverride" in done.stderr
    assert run(*command, CHART / "ci/shared-tls-auth.yaml", "--set", "fullnameOverride=gate").returncode == 0
    # A sidecar has no Service.
    assert run(*command, CHART / "ci/sidecar-example.yaml").returncode == 0


@pytest.mark.parametrize("missing", ["image", "database"])
def test_a_sidecar_needs_them_too(missing: str, tmp_path: Path) -> None:
    values = {key: value for key, value in SIDECAR.items() if key != missing}
    code, error = outcome(values, tmp_path)
    assert code != 0
    assert f"{missing}." in error
    assert "is required" in error


def test_without_values_it_says_what_is_missing() -> None:
    done = run("helm", "template", "gate", CHART, "--kube-version", KUBERNETES)
    assert done.returncode != 0
    assert "is required" in done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"insecure": True, "tls": {"secretName": ""}, "auth": {"secretName": ""}},
        {"insecure": True, "auth": {"secretName": ""}},
        {"tls": {"clients": "required"}, "test": {"enabled": False}},
        {"podLabels": {"app.kubernetes.io/part-of": "bots"}},
        # As the subchart of another one.
        {"global": {"anything": 1}, "enabled": True},
    ],
)
def test_accepted(change: Any, tmp_path: Path) -> None:
    assert outcome(merged(LEAST, change), tmp_path) == (0, "")


def test_the_chart_of_a_bot_has_the_sidecar(tmp_path: Path) -> None:
    """As docs/operations/kubernetes.md says: a dependency, and its templates in the pod of the bot."""
    bot = tmp_path / "bot"
    (bot / "charts").mkdir(parents=True)
    (bot / "charts/oncegate").symlink_to(CHART)
    (bot / "templates").mkdir()
    dependency = {"name": "oncegate", "version": "0.1.0", "condition": "oncegate.enabled"}
    (bot / "Chart.yaml").write_text(
        yaml.safe_dump({"apiVersion": "v2", "name": "bot", "version": "1.0.0", "dependencies": [dependency]})
    )
    values = {key: value for key, value in SIDECAR.items() if key != "sidecar"}
    (bot / "values.yaml").write_text(yaml.safe_dump({"oncegate": {**values, "enabled": True}, "global": {"a": 1}}))
    (bot / "templates/bot.yaml").write_text(documented_pod())
    rendered = list(yaml.safe_load_all(helm("template", "bot", bot, "--kube-version", KUBERNETES)))
    (pod,) = [one for one in rendered if one["kind"] == "Pod"]
    (sidecar,) = pod["spec"]["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["image"] == "registry.example/oncegate:0.1.0"
    mounted = {one["name"] for each in (sidecar, *pod["spec"]["containers"]) for one in each["volumeMounts"]}
    assert mounted == {one["name"] for one in pod["spec"]["volumes"]}
    # Besides the pod only the Job that migrates, and its policy.
    assert {one["kind"] for one in rendered} == {"Pod", "Job", "NetworkPolicy"}


def documented_pod() -> str:
    text = (CHART.parents[2] / "docs/operations/kubernetes.md").read_text()
    block = text.split("<!-- sidecar: pod -->\n\n```yaml\n", 1)[1].split("```", 1)[0]
    return f"apiVersion: v1\nkind: Pod\nmetadata:\n  name: bot\n{block}"
