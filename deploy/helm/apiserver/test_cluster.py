"""What a real kube-apiserver says of the objects of the chart and of the Kustomize base, and of its tokens."""

import copy
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chart import CHART, ROOT, Object, objects, of_kind, pods, render, run
from cluster import FOREIGN, ISSUER, Cluster
from kubelet import free_port


def of_this_cluster(values: Path) -> list[Object]:
    return [found for found in render(values) if found["kind"] not in FOREIGN]


def as_pods(rendered: list[Object]) -> Iterator[Object]:
    """What the controllers of the objects would make."""
    for found, spec in pods(rendered):
        template = found if found["kind"] == "Pod" else found["spec"]["template"]
        metadata = {"name": "one", "labels": template["metadata"]["labels"]}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": account_of_this_cluster(spec)}


def account_of_this_cluster(spec: Object) -> Object:
    """A pod needs its ServiceAccount, which a dry run has not made."""
    return {**spec, "serviceAccountName": "bots"} if "serviceAccountName" in spec else spec


def test_dry_run(values: Path, cluster: Cluster) -> None:
    """Strict: a field that the server does not know is an error. Nor does Pod Security warn of a Deployment or Job."""
    rendered = of_this_cluster(values)
    answers = [cluster.create(found, "bots", dry_run=True) for found in rendered]
    assert [answer for answer in answers if answer.status != 201 or answer.warnings] == []
    assert len(answers) == len(rendered) > 0


def test_server_side_apply(values: Path, cluster: Cluster) -> None:
    """As Helm 4, Argo CD and Flux do: lists are merged by their keys, which must be unique."""
    answers = [cluster.apply(found, "bots") for found in of_this_cluster(values)]
    assert [answer for answer in answers if answer.status != 201 or answer.warnings] == []
    assert answers


def test_restricted_admission(values: Path, cluster: Cluster) -> None:
    answers = [cluster.create(pod, "bots", dry_run=True) for pod in as_pods(render(values))]
    assert [answer for answer in answers if answer.status != 201 or answer.warnings] == []
    assert answers


def test_dry_run_is_strict(cluster: Cluster) -> None:
    (deployment,) = of_kind(copy.deepcopy(render(CHART / "ci/sidecar-example.yaml")), "Deployment")
    (sidecar,) = deployment["spec"]["template"]["spec"]["initContainers"]
    sidecar["restartPolicyy"] = sidecar.pop("restartPolicy")
    answer = cluster.create(deployment, "bots", dry_run=True)
    assert answer.status == 400
    assert 'unknown field "spec.template.spec.initContainers[0].restartPolicyy"' in repr(answer)


def test_the_kustomize_base(cluster: Cluster) -> None:
    done = run("kustomize", "build", ROOT / "deploy/kustomize/base")
    assert done.returncode == 0, done.stderr
    built = objects(done.stdout)
    answers = [cluster.create(found, "bots", dry_run=True) for found in [*built, *as_pods(built)]]
    assert [answer for answer in answers if answer.status != 201 or answer.warnings] == []
    assert len(answers) == len(built) + 1


def test_the_version_is_that_of_the_module(cluster: Cluster) -> None:
    """Without it Helm refuses the chart, and templates that ask for the minor version see none."""
    module = (ROOT / "deploy/helm/tools/apiserver/go.mod").read_text()
    (version,) = re.findall(r"^\s*k8s\.io/kubernetes (v\S+)", module, re.MULTILINE)
    said = cluster.call("GET", "/version").body
    major, minor, _ = version.removeprefix("v").split(".")
    assert (said["gitVersion"], said["major"], said["minor"]) == (version, major, minor)


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
    pod = copy.deepcopy(next(as_pods(render(CHART / "ci/shared-tls-auth.yaml"))))
    assert cluster.create(pod, "bots", dry_run=True).status == 201
    change(pod["spec"])
    answer = cluster.create(pod, "bots", dry_run=True)
    assert answer.status == 403 and "violates PodSecurity" in repr(answer) and message in repr(answer), answer


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
