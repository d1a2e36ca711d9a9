"""Helm at a real kube-apiserver: what a release leaves, changes and says, also when something fails on the way."""

import copy
import subprocess
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml
from chart import CHART, Object, of_kind, render
from cluster import FOREIGN, Cluster, Finisher, prometheus_operator

LEAST = CHART / "ci/shared-tls-auth.yaml"
DIGEST = "sha256:" + "f" * 64
DEPLOYMENT = "gate-oncegate"


def helm(cluster: Cluster, namespace: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["helm", *map(str, arguments), "--namespace", namespace, "--kubeconfig", str(cluster.kubeconfig())]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def warnings(text: str) -> list[str]:
    """What Helm and the API server say, without Helm's watch of the hooks, which may end and is begun again."""
    return [line for line in text.splitlines() if " reflector.go:" not in line]


class Release:
    """In a namespace of its own."""

    def __init__(self, cluster: Cluster, namespace: str, values: Path = LEAST, name: str = "gate") -> None:
        self.cluster, self.namespace, self.values, self.name = cluster, namespace, values, name

    def helm(self, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        if command in ("install", "upgrade"):
            arguments = (CHART, "--values", self.values, *arguments)
        return helm(self.cluster, self.namespace, command, self.name, *arguments)

    def done(self, command: str, *arguments: str | Path) -> str:
        done = self.helm(command, *arguments)
        assert (done.returncode, warnings(done.stderr)) == (0, []), done.stderr
        return done.stdout

    def refused(self, command: str, *arguments: str | Path) -> str:
        done = self.helm(command, *arguments)
        assert done.returncode != 0, done.stdout
        return done.stderr

    def deployments(self) -> list[Object]:
        return self.cluster.list_of("Deployment", self.namespace)

    def images(self) -> set[str]:
        specs = [one["spec"]["template"]["spec"] for one in self.deployments()]
        containers = [
            container for spec in specs for container in (*spec.get("initContainers", []), *spec["containers"])
        ]
        return {str(one["image"]) for one in containers if "oncegate" in one["image"]}

    def replicas(self) -> int:
        (deployment,) = self.deployments()
        return int(deployment["spec"]["replicas"])


@pytest.fixture
def namespace(cluster: Cluster) -> str:
    """With nothing in it but its accounts."""
    name = f"release-{uuid.uuid4().hex[:8]}"
    cluster.make_namespace(name, "restricted")
    return name


def test_life_of_a_release(values: Path, cluster: Cluster, namespace: str) -> None:
    release = Release(cluster, namespace, values)
    rendered = render(values)
    before = cluster.names(namespace)
    with ExitStack() as stack:
        if any(one["kind"] in FOREIGN for one in rendered):
            stack.enter_context(prometheus_operator(cluster))
        job, pod = (stack.enter_context(Finisher(cluster, kind, namespace)) for kind in ("Job", "Pod"))
        jobs = len(of_kind(rendered, "Job"))

        release.done("install")
        assert len(job.ended) == jobs, job.refused
        # While the Job ran there was nothing of the release, but what the Job itself needs.
        assert {one for one in job.beside - before if not one.endswith("-migrate")} == set()
        (first,) = [one["spec"] for one in release.deployments()]
        made = {f"{one['kind']} {one['metadata']['name']}" for one in rendered if not is_hook(one)}
        assert {one for one in cluster.names(namespace) - before if "sh.helm.release" not in one} == made

        release.done("test")
        assert len(pod.ended) == len(of_kind(rendered, "Pod")), pod.refused

        release.done("upgrade", "--set", f"image.digest={DIGEST}")
        assert len(job.ended) == 2 * jobs, job.refused
        assert {image.partition("@")[2] for image in release.images()} == {DIGEST}

        # The older binary works with the newer schema, or says why not.
        release.done("rollback", "1")
        assert len(job.ended) == 2 * jobs
        assert [one["spec"] for one in release.deployments()] == [first]

        release.done("uninstall")
        assert cluster.names(namespace) == before


def is_hook(found: Object) -> bool:
    return "helm.sh/hook" in found["metadata"].get("annotations", {})


def test_warnings_are_seen(cluster: Cluster, namespace: str, tmp_path: Path) -> None:
    """Of Pod Security, for a Deployment that it would take."""
    (deployment,) = of_kind(copy.deepcopy(render(LEAST)), "Deployment")
    deployment["metadata"].pop("namespace")
    deployment["spec"]["template"]["spec"]["hostNetwork"] = True
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/deployment.yaml").write_text(yaml.safe_dump(deployment))
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: bad\nversion: 0.1.0\n")
    done = helm(cluster, namespace, "install", "bad", tmp_path)
    assert done.returncode == 0, done.stderr
    (warning,) = warnings(done.stderr)
    assert "would violate PodSecurity" in warning


def test_a_test_that_fails(cluster: Cluster, namespace: str) -> None:
    release = Release(cluster, namespace)
    with Finisher(cluster, "Job", namespace):
        release.done("install")
    with Finisher(cluster, "Pod", namespace, succeeds=False) as pod:
        assert "failed" in release.refused("test")
    assert len(pod.ended) == 1, pod.refused
    # It is kept, for its log.
    assert f"Pod {DEPLOYMENT}-test" in cluster.names(namespace)


def test_a_failed_migration_stops_the_install(cluster: Cluster, namespace: str) -> None:
    release = Release(cluster, namespace)
    with Finisher(cluster, "Job", namespace, succeeds=False):
        assert "failed pre-install" in release.refused("install")
    assert release.deployments() == []
    # It is kept, for its log. As docs/operations/kubernetes.md says, an upgrade makes a new one.
    assert f"Job {DEPLOYMENT}-migrate" in cluster.names(namespace)
    with Finisher(cluster, "Job", namespace) as job:
        release.done("upgrade")
    assert len(job.ended) == 1, job.refused
    assert release.replicas() == 3


def test_a_failed_migration_changes_no_replica(cluster: Cluster, namespace: str) -> None:
    release = Release(cluster, namespace)
    with Finisher(cluster, "Job", namespace):
        release.done("install")
    (before,) = release.deployments()
    change = ["--set", f"image.digest={DIGEST}", "--set", "service.port=7000"]
    with Finisher(cluster, "Job", namespace, succeeds=False):
        assert "pre-upgrade hooks failed" in release.refused("upgrade", *change)
    (after,) = release.deployments()
    assert after["metadata"]["generation"] == before["metadata"]["generation"] and after["spec"] == before["spec"]
    with Finisher(cluster, "Job", namespace):
        release.done("upgrade", *change)
    assert DIGEST in "".join(release.images())


def test_a_migration_that_takes_too_long_for_helm(cluster: Cluster, namespace: str) -> None:
    """Nobody ends the Job. It goes on, and the next upgrade replaces it."""
    release = Release(cluster, namespace)
    assert "timed out" in release.refused("install", "--timeout", "2s")
    assert release.deployments() == []
    with Finisher(cluster, "Job", namespace):
        release.done("upgrade")
    assert release.replicas() == 3


def test_autoscaling_takes_over_from_one_replica(cluster: Cluster, namespace: str) -> None:
    """As docs/operations/kubernetes.md warns: there is no number in the manifest any more, and Kubernetes' default is 1
    until the autoscaler has looked. Later upgrades keep what the autoscaler has set."""
    release = Release(cluster, namespace)
    with Finisher(cluster, "Job", namespace):
        release.done("install")
        scaled = ["--set", "autoscaling.enabled=true"]
        release.done("upgrade", *scaled)
        assert release.replicas() == 1
        cluster.scale(namespace, DEPLOYMENT, 7)
        release.done("upgrade", *scaled, "--set", f"image.digest={DIGEST}")
        assert release.replicas() == 7
        release.done("rollback", "2")
        assert release.replicas() == 7
        release.done("rollback", "1")
        assert release.replicas() == 3


def test_without_the_prometheus_operator(cluster: Cluster, namespace: str) -> None:
    """It is refused before the migration."""
    before = cluster.names(namespace)
    said = Release(cluster, namespace, CHART / "ci/shared-autoscaling.yaml").refused("install")
    assert 'no matches for kind "ServiceMonitor"' in said and "ensure CRDs are installed first" in said
    assert {one for one in cluster.names(namespace) - before if "sh.helm.release" not in one} == set()


def test_two_releases_share_a_namespace(cluster: Cluster, namespace: str) -> None:
    """What selects pods selects those of its own release."""
    with Finisher(cluster, "Job", namespace):
        for name in ("one", "two"):
            Release(cluster, namespace, name=name).done("install")
    labels = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in cluster.list_of("Deployment", namespace)
    }
    assert len(labels) == 2
    selected = {}
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        for found in cluster.list_of(kind, namespace):
            selector = found["spec"].get("podSelector") or found["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            names = [name for name, has in labels.items() if wanted.items() <= has.items()]
            selected[f"{kind} {found['metadata']['name']}"] = names
    assert selected == {
        f"{kind} {name}{suffix}": [] if suffix == "-test" else [name]
        for name in labels
        for kind, suffix in (
            ("Service", ""),
            ("Service", "-headless"),
            ("PodDisruptionBudget", ""),
            ("NetworkPolicy", ""),
            ("NetworkPolicy", "-test"),
        )
    }


def test_the_longest_name(cluster: Cluster, namespace: str) -> None:
    release = Release(cluster, namespace, name="a" * 53)
    with Finisher(cluster, "Job", namespace), Finisher(cluster, "Pod", namespace):
        release.done("install", "--set", "dashboards.enabled=true")
        release.done("test")
        release.done("uninstall")


def test_a_name_that_no_service_may_have(cluster: Cluster, namespace: str) -> None:
    """Helm takes a dot, and Kubernetes would refuse the Services when the migration has run. Nor may a name begin with
    a digit in versions before this one."""
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "gate.bots-oncegate"}}
    answer = cluster.create({**service, "spec": {"ports": [{"port": 1}]}}, namespace, dry_run=True)
    assert answer.status == 422 and "metadata.name" in repr(answer), answer
    before = cluster.names(namespace)
    release = Release(cluster, namespace, name="gate.bots")
    assert "set fullnameOverride" in release.refused("install")
    assert cluster.names(namespace) == before
    with Finisher(cluster, "Job", namespace):
        release.done("install", "--set", "fullnameOverride=gate")
