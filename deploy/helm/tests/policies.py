"""What every pod must be, and every deployment of replicas. Each policy returns what breaks it."""

import re
from collections.abc import Callable

from chart import Object, containers, of_kind, pods

Policy = Callable[[list[Object]], list[str]]


def every_container(check: Callable[[Object, Object], bool]) -> Policy:
    """Of a check of a container and the security context of its pod."""

    def policy(rendered: list[Object]) -> list[str]:
        return [
            f"{found['kind']} {found['metadata']['name']}, container {container['name']}"
            for found, pod in pods(rendered)
            for container in containers(pod)
            if not check(container, pod.get("securityContext", {}))
        ]

    return policy


def every_pod(check: Callable[[Object], bool]) -> Policy:
    def policy(rendered: list[Object]) -> list[str]:
        return [f"{found['kind']} {found['metadata']['name']}" for found, pod in pods(rendered) if not check(pod)]

    return policy


def effective(name: str) -> Callable[[Object, Object], object]:
    return lambda container, pod: container.get("securityContext", {}).get(name, pod.get(name))


def own(container: Object, name: str) -> object:
    return container.get("securityContext", {}).get(name)


def is_pinned(container: Object, _: Object) -> bool:
    image = str(container["image"])
    return re.search(r"@sha256:[0-9a-f]{64}$", image) is not None or (
        re.search(r":[^/:]+$", image) is not None and not image.endswith(":latest")
    )


def is_probed(container: Object) -> bool:
    wanted = {"startupProbe", "livenessProbe"}
    if container.get("restartPolicy") != "Always":
        wanted.add("readinessProbe")
    return wanted <= set(container)


def unprobed(rendered: list[Object]) -> list[str]:
    """A server without its probes. The readiness of a sidecar would be that of its bot."""
    return [
        f"{found['kind']} {found['metadata']['name']}"
        for found, pod in pods(rendered)
        for container in containers(pod)
        if container.get("args", [""])[0] == "serve" and not is_probed(container)
    ]


def without_budget(rendered: list[Object]) -> list[str]:
    """A server's Deployment whose pods no PodDisruptionBudget selects, or one that blocks the drain of a node."""
    budgets = [budget["spec"] for budget in of_kind(rendered, "PodDisruptionBudget")]
    return [
        deployment["metadata"]["name"]
        for deployment in of_kind(rendered, "Deployment")
        if deployment["metadata"]["labels"]["app.kubernetes.io/component"] == "server"
        and not any(
            budget["selector"] == deployment["spec"]["selector"]
            and budget.get("maxUnavailable", 0) not in (0, "0%")
            and budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
            for budget in budgets
        )
    ]


def not_spread(rendered: list[Object]) -> list[str]:
    wanted = {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
    return [
        deployment["metadata"]["name"]
        for deployment in of_kind(rendered, "Deployment")
        if deployment["metadata"]["labels"]["app.kubernetes.io/component"] == "server"
        and wanted
        != {
            one["topologyKey"]
            for one in deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
            if one["labelSelector"] == deployment["spec"]["selector"]
        }
    ]


def killed_in_its_drain(rendered: list[Object]) -> list[str]:
    """A pod whose grace is shorter than what its server may take to end."""
    found = []
    for owner, pod in pods(rendered):
        for container in containers(pod):
            arguments = dict(one.partition("=")[::2] for one in container.get("args", []))
            if "--drain-timeout" not in arguments:
                continue
            longest = sum(int(arguments[flag].removesuffix("s")) for flag in ("--lame-duck", "--drain-timeout"))
            if pod["terminationGracePeriodSeconds"] < longest + 5:
                found.append(owner["metadata"]["name"])
    return found


def has_secret_in_the_open(container: Object, _: Object) -> bool:
    """A secret's value as a variable or an argument, where everybody can read it who may see the pod."""
    texts = [*container.get("args", []), *(str(one.get("value", "")) for one in container.get("env", []))]
    is_url = any("://" in text and "@" in text for text in texts)
    from_secret = any("secretKeyRef" in one.get("valueFrom", {}) for one in container.get("env", []))
    return is_url or from_secret


POLICIES: dict[str, Policy] = {
    "non-root": every_container(
        lambda one, pod: (
            effective("runAsNonRoot")(one, pod) is True and effective("runAsUser")(one, pod) not in (None, 0)
        )
    ),
    "read-only root": every_container(lambda one, _: own(one, "readOnlyRootFilesystem") is True),
    "no privileges": every_container(
        lambda one, _: own(one, "allowPrivilegeEscalation") is False and not own(one, "privileged")
    ),
    "no capabilities": every_container(lambda one, _: own(one, "capabilities") == {"drop": ["ALL"]}),
    "seccomp": every_container(lambda one, pod: effective("seccompProfile")(one, pod) == {"type": "RuntimeDefault"}),
    "pinned image": every_container(is_pinned),
    "resources": every_container(lambda one, _: {"cpu", "memory"} <= set(one.get("resources", {}).get("requests", {}))),
    "no secret in the open": every_container(lambda one, pod: not has_secret_in_the_open(one, pod)),
    "no token": every_pod(lambda pod: pod.get("automountServiceAccountToken") is False),
    "no variables of Services": every_pod(lambda pod: pod.get("enableServiceLinks") is False),
    "nothing of the node": every_pod(
        lambda pod: (
            not any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC"))
            and not any("hostPath" in volume for volume in pod.get("volumes", []))
        )
    ),
    "probes": unprobed,
    "disruption budget": without_budget,
    "spread": not_spread,
    "time to drain": killed_in_its_drain,
}
