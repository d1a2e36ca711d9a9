"""Every policy holds for everything that the chart renders, and would find what breaks it."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from chart import CHART, Object, containers, of_kind, pods, render
from policies import POLICIES


@pytest.mark.parametrize("policy", POLICIES)
def test_holds(values: Path, policy: str) -> None:
    assert POLICIES[policy](render(values)) == []


def container(change: Callable[[Object], object]) -> Callable[[list[Object]], object]:
    return lambda rendered: change(containers(next(pods(rendered))[1])[0])


def pod(change: Callable[[Object], object]) -> Callable[[list[Object]], object]:
    return lambda rendered: change(next(pods(rendered))[1])


def without(kind: str) -> Callable[[list[Object]], object]:
    return lambda rendered: rendered.remove(of_kind(rendered, kind)[0])


def security(name: str, value: object) -> Callable[[list[Object]], object]:
    return container(lambda one: one["securityContext"].update({name: value}))


# What each policy must find, planted in the least of the values.
PLANTED = [
    ("non-root", security("runAsNonRoot", False)),
    ("non-root", security("runAsUser", 0)),
    ("read-only root", security("readOnlyRootFilesystem", False)),
    ("no privileges", security("allowPrivilegeEscalation", True)),
    ("no privileges", security("privileged", True)),
    ("no capabilities", security("capabilities", {"drop": ["ALL"], "add": ["NET_ADMIN"]})),
    ("seccomp", security("seccompProfile", {"type": "Unconfined"})),
    ("pinned image", container(lambda one: one.update(image="registry.example:5000/oncegate"))),
    ("pinned image", container(lambda one: one.update(image="oncegate:latest"))),
    ("resources", container(lambda one: one.pop("resources"))),
    ("no secret in the open", container(lambda one: one["args"].append("--database-url=postgres://u:p@host/db"))),
    ("no token", pod(lambda one: one.pop("automountServiceAccountToken"))),
    ("no variables of Services", pod(lambda one: one.pop("enableServiceLinks"))),
    ("nothing of the node", pod(lambda one: one.update(hostNetwork=True))),
    ("nothing of the node", pod(lambda one: one["volumes"].append({"name": "x", "hostPath": {"path": "/"}}))),
    ("probes", container(lambda one: one.pop("readinessProbe"))),
    ("disruption budget", without("PodDisruptionBudget")),
    ("spread", pod(lambda one: one["topologySpreadConstraints"].pop())),
    ("time to drain", pod(lambda one: one.update(terminationGracePeriodSeconds=15))),
]


@pytest.mark.parametrize(("policy", "plant"), PLANTED)
def test_finds(policy: str, plant: Callable[[list[Object]], object]) -> None:
    rendered = copy.deepcopy(of_kind(everything := render(CHART / "ci/shared-tls-auth.yaml"), "Deployment"))
    rendered += of_kind(everything, "PodDisruptionBudget")
    assert POLICIES[policy](rendered) == []
    plant(rendered)
    assert len(POLICIES[policy](rendered)) == 1


def test_each_policy_is_planted_against() -> None:
    assert {policy for policy, _ in PLANTED} == set(POLICIES)


def test_the_sidecar_is_native(values: Path) -> None:
    rendered = render(values)
    found = [one for _, pod in pods(rendered) for one in pod.get("initContainers", [])]
    if "sidecar" not in values.stem:
        assert not found
        return
    (sidecar,) = found
    assert sidecar["restartPolicy"] == "Always"
    assert {"startupProbe", "livenessProbe"} <= set(sidecar)
    ((_, pod),) = [(owner, one) for owner, one in pods(rendered) if owner["kind"] == "Deployment"]
    (listen,) = [one.partition("=")[2] for one in sidecar["args"] if one.startswith("--listen=")]
    (bot,) = pod["containers"]
    # The bot is told where the server listens, and both see that folder, in memory.
    assert {"name": "ONCEGATE_SERVER", "value": listen} in bot["env"]
    folders = [next(one for one in each["volumeMounts"] if one["name"] == "oncegate-socket") for each in (sidecar, bot)]
    assert all(listen.startswith(f"unix:{folder['mountPath']}/") for folder in folders)
    (volume,) = [one for one in pod["volumes"] if one["name"] == "oncegate-socket"]
    assert volume["emptyDir"]["medium"] == "Memory"
    # Secrets of the server are not for the bot.
    assert [one["name"] for one in bot["volumeMounts"]] == ["oncegate-socket"]
    assert pod["securityContext"]["fsGroup"] == 65532
    assert bot["securityContext"]["runAsUser"] != sidecar["securityContext"]["runAsUser"]


def test_a_network_policy_for_each_pod(values: Path) -> None:
    rendered = render(values)
    policies = of_kind(rendered, "NetworkPolicy")
    if values.stem == "shared-mesh":
        assert not policies
        return
    components = {one["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: one for one in policies}
    wanted = {"server"} if "shared" in values.stem else set()
    if of_kind(rendered, "Job"):
        wanted.add("migrate")
    if of_kind(rendered, "Pod"):
        wanted.add("test")
    assert set(components) == wanted
    for one in policies:
        assert one["spec"]["policyTypes"] == ["Ingress", "Egress"]
    if "test" in wanted:
        _, call, *further = components["test"]["spec"]["egress"]
        assert len(further) == (1 if values.stem == "shared-autoscaling" else 0)
        assert further == components["server"]["spec"]["egress"][-1:][: len(further)]
        assert call["to"] == [{"podSelector": components["server"]["spec"]["podSelector"]}]
        (service, _) = of_kind(rendered, "Service")
        assert [port["port"] for port in call["ports"]] == [service["spec"]["ports"][0]["port"]]
    if "server" in wanted:
        rules = components["server"]["spec"]["ingress"]
        # Calls always have a rule, and never one for everybody.
        assert rules[0]["ports"] == [{"protocol": "TCP", "port": "grpc"}]
        assert all(rule["from"] for rule in rules)
        if values.stem != "shared-autoscaling":
            assert rules[0]["from"] == [{"podSelector": {}}]
        assert len(rules) == (2 if values.stem == "shared-autoscaling" else 1)
