"""The chart at a real kube-apiserver."""

import copy
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chart import CHART, VALUES, Object, of_kind, pods, render
from cluster import ISSUER, Cluster, Finisher
from kubelet import free_port

# Of the Prometheus operator, whose resources this cluster does not have.
FOREIGN = ("ServiceMonitor", "PrometheusRule")


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    one = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        one.start()
        one.make_namespace("bots", "restricted")
        for name in ("install", "failing"):
            one.make_namespace(name, "restricted")
        priority = {
            "apiVersion": "scheduling.k8s.io/v1",
            "kind": "PriorityClass",
            "metadata": {"name": "bots"},
            "value": 1,
        }
        made = one.call("POST", "/apis/scheduling.k8s.io/v1/priorityclasses", priority)
        assert made.status == 201, made
        yield one
    finally:
        one.stop()


def of_this_cluster(values: Path) -> list[Object]:
    return [found for found in render(values) if found["kind"] not in FOREIGN]


def as_pods(values: Path) -> Iterator[Object]:
    """What the controllers of the objects would make."""
    for found, spec in pods(render(values)):
        template = found if found["kind"] == "Pod" else found["spec"]["template"]
        metadata = {"name": "one", "labels": template["metadata"]["labels"]}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": account_of_this_cluster(spec)}


def account_of_this_cluster(spec: Object) -> Object:
    """A pod needs its ServiceAccount, which a dry run has not made."""
    return {**spec, "serviceAccountName": "bots"} if "serviceAccountName" in spec else spec


@pytest.mark.parametrize("values", VALUES, ids=[path.stem for path in VALUES])
def test_dry_run(values: Path, cluster: Cluster) -> None:
    """Strict: a field that the server does not know is an error. Nor does Pod Security warn of a Deployment or Job."""
    rendered = of_this_cluster(values)
    answers = [cluster.create(found, "bots", dry_run=True) for found in rendered]
    assert [answer for answer in answers if answer.status != 201 or answer.warnings] == []
    assert len(answers) == len(rendered) > 0


@pytest.mark.parametrize("values", VALUES, ids=[path.stem for path in VALUES])
def test_restricted_admission(values: Path, cluster: Cluster) -> None:
    answers = [cluster.create(pod, "bots", dry_run=True) for pod in as_pods(values)]
    assert [answer for answer in answers if answer.status != 201 or answer.warnings] == []
    assert answers


def test_dry_run_is_strict(cluster: Cluster) -> None:
    (deployment,) = of_kind(copy.deepcopy(render(CHART / "ci/sidecar-example.yaml")), "Deployment")
    (sidecar,) = deployment["spec"]["template"]["spec"]["initContainers"]
    sidecar["restartPolicyy"] = sidecar.pop("restartPolicy")
    answer = cluster.create(deployment, "bots", dry_run=True)
    assert answer.status == 400
    assert 'unknown field "spec.template.spec.initContainers[0].restartPolicyy"' in repr(answer)


def server(change: Callable[[Object], object]) -> Callable[[Object], object]:
    return lambda spec: change(spec["containers"][0]["securityContext"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (server(lambda one: one.update(allowPrivilegeEscalation=True)), "allowPrivilegeEscalation != false"),
        (server(lambda one: one.pop("capabilities")), "unrestricted capabilities"),
        (server(lambda one: one.update(runAsUser=0)), "runAsUser=0"),
        (server(lambda one: one.update(seccompProfile={"type": "Unconfined"})), "seccompProfile"),
        (lambda spec: spec["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "hostPath"),
        (lambda spec: spec.update(hostNetwork=True), "host namespaces"),
    ],
)
def test_admission_refuses(change: Callable[[Object], object], message: str, cluster: Cluster) -> None:
    pod = copy.deepcopy(next(as_pods(CHART / "ci/shared-tls-auth.yaml")))
    assert cluster.create(pod, "bots", dry_run=True).status == 201
    change(pod["spec"])
    answer = cluster.create(pod, "bots", dry_run=True)
    assert answer.status == 403 and "violates PodSecurity" in repr(answer) and message in repr(answer), answer


def helm(cluster: Cluster, namespace: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["helm", *map(str, arguments), "--namespace", namespace, "--kubeconfig", str(cluster.kubeconfig())]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_install_test_upgrade_rollback(cluster: Cluster) -> None:
    values: list[str | Path] = ["--values", CHART / "ci/shared-tls-auth.yaml"]
    deployment = ("Deployment", "install", "gate-oncegate")

    def replicas() -> object:
        found = cluster.get(*deployment)
        return found and found["spec"]["replicas"]

    with Finisher(cluster, "Job", "install", "gate-oncegate-migrate") as job:
        done = helm(cluster, "install", "install", "gate", CHART, *values)
        assert done.returncode == 0, (done.stderr, job.refused)
        assert len(job.ended) == 1
        assert "helm test gate --namespace install" in done.stdout
        # While the Job ran there was nothing of the release, but what the Job itself needs.
        assert job.beside == {"NetworkPolicy gate-oncegate-migrate", "ServiceAccount bots", "ServiceAccount default"}
        assert replicas() == 3

        with Finisher(cluster, "Pod", "install", "gate-oncegate-test") as test:
            done = helm(cluster, "install", "test", "gate")
            assert done.returncode == 0 and len(test.ended) == 1, (done.stderr, test.refused)

        done = helm(cluster, "install", "upgrade", "gate", CHART, *values, "--set", "replicas=4")
        assert done.returncode == 0, (done.stderr, job.refused)
        assert len(job.ended) == 2
        assert replicas() == 4

        done = helm(cluster, "install", "rollback", "gate", "1")
        assert done.returncode == 0, done.stderr
        assert len(job.ended) == 2
        assert replicas() == 3

    with Finisher(cluster, "Pod", "install", "gate-oncegate-test", succeeds=False) as test:
        done = helm(cluster, "install", "test", "gate")
        assert done.returncode != 0
        assert len(test.ended) == 1

    done = helm(cluster, "install", "uninstall", "gate")
    assert done.returncode == 0
    assert cluster.get(*deployment) is None


def test_a_failed_migration_stops_the_install(cluster: Cluster) -> None:
    with Finisher(cluster, "Job", "failing", "gate-oncegate-migrate", succeeds=False) as job:
        done = helm(cluster, "failing", "install", "gate", CHART, "--values", CHART / "ci/shared-tls-auth.yaml")
        assert done.returncode != 0 and "failed pre-install" in done.stderr, (done.stderr, job.refused)
    assert cluster.get("Deployment", "failing", "gate-oncegate") is None
    # It is kept, for its log.
    assert cluster.get("Job", "failing", "gate-oncegate-migrate") is not None


def test_sidecar_install(cluster: Cluster) -> None:
    done = helm(cluster, "install", "install", "bot", CHART, "--values", CHART / "ci/sidecar-auth-metrics.yaml")
    assert done.returncode == 0, done.stderr
    found = cluster.get("Deployment", "install", "bot-oncegate-bot")
    assert found
    assert found["spec"]["template"]["spec"]["initContainers"][0]["restartPolicy"] == "Always"


def test_tokens_of_service_accounts(cluster: Cluster, tmp_path: Path) -> None:
    """The server knows the tokens that this cluster issues, by the keys that it publishes."""
    (tmp_path / "jwks.json").write_text(json.dumps(cluster.call("GET", "/openid/v1/jwks").body))
    (tmp_path / "auth.toml").write_text(f"""
        [[principal]]
        name = "bots"
        role = "bot"
        teams = ["T1"]
        service_account = ["bots/bots"]
        [jwt.cluster]
        issuer = "{ISSUER}"
        audience = "oncegate"
        jwks = "{tmp_path}/jwks.json"
    """)
    at = f"127.0.0.1:{free_port()}"
    binary = os.environ["ONCEGATE_BINARY"]
    command = [binary, "serve", "--listen", at, "--auth", str(tmp_path / "auth.toml"), "--database-url", "memory:"]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            until = time.monotonic() + 60
            while subprocess.run([binary, "health", "--server", at], capture_output=True).returncode != 0:
                assert process.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
                time.sleep(0.1)

            def mark(account: str, audience: str) -> int:
                file = tmp_path / f"{account}-{audience}"
                file.write_text(cluster.token("bots", account, audience))
                command = [binary, "mark", "T1", "Ev1", "--server", at, "--token-file", str(file)]
                return subprocess.run(command, capture_output=True).returncode

            assert [mark("bots", "oncegate"), mark("bots", "oncegate")] == [0, 10]
            # Another account, and a token for another service.
            assert [mark("default", "oncegate"), mark("bots", "vault")] == [1, 1]
        finally:
            process.terminate()
