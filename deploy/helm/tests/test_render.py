"""Helm and the schemas of Kubernetes accept what the chart renders, and each value does what it says."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import schemas
import yaml
from chart import (
    CHART,
    KUBERNETES,
    RELEASE,
    ROOT,
    VALUES,
    Object,
    containers,
    helm,
    objects,
    of_kind,
    pods,
    render,
    run,
    template,
)

# Of the Prometheus operator. No schema of Kubernetes knows them: `operator_takes` reads them with its own types.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}


@pytest.fixture(scope="session")
def schema_location(work: Path) -> str:
    return schemas.write(work / "schemas")


def conform(text: str, location: str, version: str) -> tuple[int, dict[str, int]]:
    command = ["kubeconform", "-strict", "-summary", "-output", "json", "-schema-location", location,
               "-kubernetes-version", version, "-skip", ",".join(FOREIGN)]  # fmt: skip
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=120)
    report = json.loads(done.stdout)
    assert done.returncode == 0 or report["resources"], done.stderr
    return done.returncode, report["summary"]


def test_eight_files_of_values() -> None:
    assert len(VALUES) >= 8


def test_lint(values: Path) -> None:
    helm("lint", "--strict", "--kube-version", KUBERNETES, "--values", values, CHART)


@pytest.mark.parametrize("version", schemas.VERSIONS)
def test_schemas_of_kubernetes(values: Path, version: str, schema_location: str) -> None:
    text = template(values, "--kube-version", version)
    rendered = objects(text)
    code, summary = conform(text, schema_location, version)
    foreign = sum(found["kind"] in FOREIGN for found in rendered)
    assert (code, summary["valid"], summary["skipped"]) == (0, len(rendered) - foreign, foreign), summary


def test_the_schemas_are_strict(schema_location: str) -> None:
    text = template(CHART / "ci/sidecar-example.yaml")
    wrong = text.replace("restartPolicy: Always", "restartPolicyy: Always")
    assert wrong != text
    for version in schemas.VERSIONS:
        code, summary = conform(wrong, schema_location, version)
        assert code != 0
        assert summary["invalid"] == 1


def test_an_older_kubernetes_is_refused() -> None:
    done = run("helm", "template", CHART, "--values", VALUES[0], "--kube-version", "1.28.0")
    assert done.returncode != 0
    assert "chart requires kubeVersion" in done.stderr


def test_version_is_that_of_cargo() -> None:
    version = run(ROOT / "deploy/version").stdout.strip()
    images = [one["image"] for _, pod in pods(render(CHART / "ci/shared-tls-auth.yaml")) for one in containers(pod)]
    assert set(images) == {f"registry.example/oncegate:{version}"}


def copy_with(files: bool, folder: Path) -> Path:
    """The chart with alerts and dashboards, or with none."""
    chart = folder / "chart"
    shutil.copytree(CHART, chart)
    shutil.rmtree(chart / "files", ignore_errors=True)
    if files:
        (chart / "files/dashboards").mkdir(parents=True)
        rule = {
            "alert": "OncegateDown",
            "expr": 'up{job="oncegate"} == 0',
            "annotations": {"summary": "{{ $labels.pod }}", "runbook_url": "docs/operations/alerts/OncegateDown.md"},
        }
        (chart / "files/rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "oncegate", "rules": [rule]}]}))
        for name in ("overview", "store"):
            (chart / f"files/dashboards/{name}.json").write_text(json.dumps({"uid": name, "panels": []}, indent=2))
    return chart


def operator_takes(text: str) -> int | str:
    """How many objects of the Prometheus operator there are, or what is wrong with one."""
    done = subprocess.run(["monitors"], input=text, capture_output=True, text=True, timeout=60)
    return int(done.stdout) if done.returncode == 0 else done.stderr


def test_the_prometheus_operator_takes_them(tmp_path: Path) -> None:
    text = template(CHART / "ci/shared-autoscaling.yaml", chart=copy_with(True, tmp_path))
    assert operator_takes(text) == 2
    assert operator_takes(template(CHART / "ci/shared-autoscaling.yaml")) == 1 + (CHART / "files/rules.yaml").exists()
    for right, wrong in (("jobLabel:", "jobLabels:"), ("path: /metrics", "pathh: /metrics"), ("expr:", "expression:")):
        assert "unknown field" in str(operator_takes(text.replace(right, wrong)))


def test_monitoring(tmp_path: Path) -> None:
    rendered = render(CHART / "ci/shared-autoscaling.yaml", chart=copy_with(True, tmp_path))
    (monitor,) = of_kind(rendered, "ServiceMonitor")
    (headless,) = [found for found in of_kind(rendered, "Service") if is_selected(found, monitor["spec"]["selector"])]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    # The rules take a `job` for an install.
    assert headless["metadata"]["labels"][monitor["spec"]["jobLabel"]] == RELEASE
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint == {"port": "ops", "path": "/metrics", "interval": "15s"}
    assert endpoint["port"] in [port["name"] for port in headless["spec"]["ports"]]

    (rule,) = of_kind(rendered, "PrometheusRule")
    # Prometheus' own templates are not Helm's.
    assert rule["spec"]["groups"][0]["rules"][0]["annotations"]["summary"] == "{{ $labels.pod }}"
    dashboards = {found["metadata"]["name"]: found for found in of_kind(rendered, "ConfigMap")}
    assert set(dashboards) == {"gate-oncegate-overview", "gate-oncegate-store"}
    for name, found in dashboards.items():
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        ((file, text),) = found["data"].items()
        assert json.loads(text)["uid"] + ".json" == file
        assert name.endswith(file.removesuffix(".json"))


def test_runbooks_have_an_address(tmp_path: Path) -> None:
    chart = copy_with(True, tmp_path)

    def runbook(*arguments: str) -> str:
        (rule,) = of_kind(render(CHART / "ci/shared-autoscaling.yaml", *arguments, chart=chart), "PrometheusRule")
        return str(rule["spec"]["groups"][0]["rules"][0]["annotations"]["runbook_url"])

    path = "docs/operations/alerts/OncegateDown.md"
    assert runbook() == path
    base = "https://git.example/oncegate"
    for end in ("", "/", "//"):
        assert runbook("--set", f"prometheusRule.runbookBase={base}{end}") == f"{base}/{path}"


def is_selected(found: Object, selector: Object) -> bool:
    return bool(selector["matchLabels"].items() <= found["metadata"]["labels"].items())


def test_the_chart_has_the_alerts_and_dashboards_of_the_project() -> None:
    """The chart has copies: Helm packs no file outside of it."""
    sources = {CHART / "files/rules.yaml": ROOT / "deploy/prometheus/rules.yaml"}
    for path in (ROOT / "deploy/grafana").glob("*.json"):
        sources[CHART / "files/dashboards" / path.name] = path
    missing = [
        str(copy.relative_to(ROOT))
        for copy, source in sources.items()
        if source.exists() and not (copy.exists() and copy.read_bytes() == source.read_bytes())
    ]
    assert not missing


def test_a_chart_without_them_renders(tmp_path: Path) -> None:
    rendered = render(CHART / "ci/shared-autoscaling.yaml", chart=copy_with(False, tmp_path))
    assert of_kind(rendered, "ServiceMonitor")
    assert not of_kind(rendered, "PrometheusRule")
    assert not of_kind(rendered, "ConfigMap")


def test_services(values: Path) -> None:
    rendered = render(values)
    services = of_kind(rendered, "Service")
    if "shared" not in values.stem:
        assert not services
        return
    (deployment,) = of_kind(rendered, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    tls = any(argument.startswith("--tls-cert=") for argument in container["args"])
    plain, headless = services
    assert headless["spec"]["clusterIP"] == "None"
    assert "clusterIP" not in plain["spec"]
    for service in services:
        assert service["spec"]["selector"].items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
        grpc = service["spec"]["ports"][0]
        assert grpc["port"] == ports[grpc["targetPort"]]
        override = values.stem == "shared-ipv6"
        assert grpc["appProtocol"] == ("grpc" if override else "https" if tls else "kubernetes.io/h2c")
    # Metrics have no TLS, so they are not where clients connect.
    assert [port["name"] for port in plain["spec"]["ports"]] == ["grpc"]


@pytest.mark.parametrize(
    ("version", "wanted", "rendered"),
    [
        ("1.31.0", "PreferSameZone", "PreferClose"),
        ("1.33.9-gke.100", "PreferSameZone", "PreferClose"),
        ("1.34.0", "PreferSameZone", "PreferSameZone"),
        ("1.34.0-eks-1", "PreferSameNode", "PreferSameNode"),
        ("1.37.0", "PreferSameNode", "PreferSameNode"),
        ("1.29.0", "", None),
        # Its name before 1.34.
        ("1.31.0", "PreferClose", "PreferClose"),
        ("1.34.0", "PreferClose", "PreferSameZone"),
    ],
)
def test_traffic_distribution(version: str, wanted: str, rendered: str | None) -> None:
    """By the name that the cluster knows and does not warn of."""
    arguments = ["--kube-version", version, "--set", f"service.trafficDistribution={wanted}"]
    plain, headless = of_kind(render(CHART / "ci/shared-tls-auth.yaml", *arguments), "Service")
    assert plain["spec"].get("trafficDistribution") == rendered
    assert "trafficDistribution" not in headless["spec"]


@pytest.mark.parametrize(("version", "wanted"), [("1.30.9", "PreferSameZone"), ("1.33.9", "PreferSameNode")])
def test_traffic_distribution_that_the_cluster_does_not_have(version: str, wanted: str) -> None:
    arguments = ["--kube-version", version, "--set", f"service.trafficDistribution={wanted}"]
    done = run("helm", "template", "gate", CHART, "--values", CHART / "ci/shared-tls-auth.yaml", *arguments)
    assert done.returncode != 0
    assert f"service.trafficDistribution: {wanted} needs Kubernetes 1.3" in done.stderr


def test_autoscaling_replaces_the_number_of_replicas() -> None:
    rendered = render(CHART / "ci/shared-autoscaling.yaml")
    (scaler,) = of_kind(rendered, "HorizontalPodAutoscaler")
    (deployment,) = of_kind(rendered, "Deployment")
    assert "replicas" not in deployment["spec"]
    assert scaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    rendered = render(CHART / "ci/shared-mesh.yaml")
    assert not of_kind(rendered, "HorizontalPodAutoscaler")
    assert of_kind(rendered, "Deployment")[0]["spec"]["replicas"] == 2


def test_names_fit_a_label() -> None:
    rendered = render(CHART / "ci/shared-ipv6.yaml")
    assert max(len(found["metadata"]["name"]) for found in rendered) <= 63
    for found in rendered:
        assert all(len(value) <= 63 for value in found["metadata"]["labels"].values())


def test_the_job_comes_before_the_replicas(values: Path) -> None:
    rendered = render(values)
    jobs = of_kind(rendered, "Job")
    serving = [one for _, pod in pods(rendered) for one in containers(pod) if one.get("args", [""])[0] == "serve"]
    migrates = {argument for one in serving for argument in one["args"] if argument.startswith("--migrate")}
    assert len(migrates) == 1
    assert len(jobs) == (migrates == {"--migrate=false"} and values.stem != "shared-ipv6")
    for job in jobs:
        annotations = job["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"
        # A hook runs before the release's ServiceAccount exists.
        assert "serviceAccountName" not in job["spec"]["template"]["spec"]


def test_settings_of_the_sidecar_win() -> None:
    rendered = render(CHART / "ci/sidecar-auth-metrics.yaml")
    (sidecar,) = [one for _, pod in pods(rendered) for one in pod.get("initContainers", [])]
    arguments = set(sidecar["args"])
    assert {"--max-calls=512", "--max-connection-age=0s", "--writers=2", "--workers=1"} <= arguments
    (server,) = [one for _, pod in pods(render(CHART / "ci/shared-autoscaling.yaml")) for one in pod["containers"]][:1]
    # Not 1e+06.
    assert {"--max-connections=1000000", "--max-calls=16384", "--max-connection-age=5m"} <= set(server["args"])


@pytest.mark.parametrize("ratio", [0.05, 0.000001, 1])
@pytest.mark.parametrize(("case", "of"), [("shared-tls-auth", "containers"), ("sidecar-example", "initContainers")])
def test_a_setting_keeps_its_fraction(case: str, of: str, ratio: float, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(json.dumps({"settings": {"trace-ratio": ratio}}))
    rendered = render(CHART / f"ci/{case}.yaml", "--values", tmp_path / "values.yaml")
    (server,) = [one for _, pod in pods(rendered) for one in pod.get(of, []) if one.get("args", [""])[0] == "serve"]
    (found,) = [argument for argument in server["args"] if argument.startswith("--trace-ratio=")]
    assert float(found.removeprefix("--trace-ratio=")) == ratio


def test_further_egress_is_that_of_every_pod(tmp_path: Path) -> None:
    """A proxy or a resolver elsewhere is in the way of the Job and of the test too."""
    rule = {"ports": [{"protocol": "TCP", "port": 4317}], "to": [{"ipBlock": {"cidr": "192.0.2.0/24"}}]}
    (tmp_path / "values.yaml").write_text(json.dumps({"networkPolicy": {"extraEgress": [rule]}}))
    rendered = render(CHART / "ci/shared-roles.yaml", "--values", tmp_path / "values.yaml")
    policies = of_kind(rendered, "NetworkPolicy")
    components = {one["metadata"]["labels"]["app.kubernetes.io/component"] for one in policies}
    assert components == {"server", "test", "migrate"}
    for one in policies:
        assert one["spec"]["egress"][-1] == rule, one["metadata"]["name"]
