"""A kube-apiserver and its etcd, and the parts of controllers and kubelet that Helm waits for."""

import base64
import json
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from chart import Object
from kubelet import free_port

PATHS = {
    "ConfigMap": ("api/v1", "configmaps"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "HorizontalPodAutoscaler": ("apis/autoscaling/v2", "horizontalpodautoscalers"),
    "Job": ("apis/batch/v1", "jobs"),
    "NetworkPolicy": ("apis/networking.k8s.io/v1", "networkpolicies"),
    "Pod": ("api/v1", "pods"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "PrometheusRule": ("apis/monitoring.coreos.com/v1", "prometheusrules"),
    "Secret": ("api/v1", "secrets"),
    "Service": ("api/v1", "services"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
    "ServiceMonitor": ("apis/monitoring.coreos.com/v1", "servicemonitors"),
}
# Of the Prometheus operator, whose resources this cluster has only in `prometheus_operator`.
FOREIGN = ("ServiceMonitor", "PrometheusRule")
ISSUER = "https://kubernetes.default.svc.cluster.local"
TOKEN = "administrator"


class Answer:
    def __init__(self, status: int, body: Any, warnings: list[str]) -> None:
        self.status, self.body, self.warnings = status, body, warnings

    def __repr__(self) -> str:
        message = self.body.get("message", "") if isinstance(self.body, dict) else self.body
        return f"{self.status} {message} {self.warnings}"


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[subprocess.Popen[bytes]] = []
        self.url = f"https://127.0.0.1:{free_port()}"

    def start(self) -> None:
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self.run("etcd", f"--data-dir={self.folder / 'etcd'}", f"--listen-client-urls={client}",
                 f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}")  # fmt: skip
        key = self.folder / "service-accounts.key"
        subprocess.run(["openssl", "genrsa", "-out", key, "2048"], check=True, capture_output=True)
        tokens = self.folder / "tokens.csv"
        tokens.write_text(f'{TOKEN},administrator,1,"system:masters"\n')
        self.run("kube-apiserver", f"--etcd-servers={client}", "--bind-address=127.0.0.1",
                 f"--secure-port={self.url.rpartition(':')[2]}", f"--cert-dir={self.folder}",
                 f"--service-account-issuer={ISSUER}", f"--service-account-key-file={key}",
                 f"--service-account-signing-key-file={key}", f"--api-audiences={ISSUER}",
                 "--authorization-mode=RBAC", f"--token-auth-file={tokens}",
                 "--service-cluster-ip-range=10.0.0.0/24")  # fmt: skip
        until = time.monotonic() + 120
        while not self.is_ready():
            assert all(process.poll() is None for process in self.processes), self.logs()
            assert time.monotonic() < until, self.logs()
            time.sleep(0.2)
        self.kubeconfig().chmod(0o600)

    def run(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.log").open("wb") as log:
            self.processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder))

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(timeout=60)

    def logs(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.folder.glob("*.log"))

    def is_ready(self) -> bool:
        try:
            return self.call("GET", "/readyz").status == 200
        except OSError:
            return False

    def kubeconfig(self) -> Path:
        file = self.folder / "kubeconfig"
        cluster = {"server": self.url, "certificate-authority": str(self.folder / "apiserver.crt")}
        context = {"cluster": "here", "user": "administrator"}
        file.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "here",
                    "clusters": [{"name": "here", "cluster": cluster}],
                    "users": [{"name": "administrator", "user": {"token": TOKEN}}],
                    "contexts": [{"name": "here", "context": context}],
                }
            )
        )
        return file

    def call(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Answer:
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Authorization", f"Bearer {TOKEN}")
        data = None
        if body is not None:
            request.add_header("Content-Type", kind)
            data = json.dumps(body).encode()
        trusted = self.folder / "apiserver.crt"
        if not trusted.exists():
            raise OSError("no certificate yet")
        context = ssl.create_default_context(cafile=str(trusted))
        try:
            with urllib.request.urlopen(request, data, timeout=30, context=context) as answer:
                return self.answer(answer.status, answer)
        except urllib.error.HTTPError as error:
            return self.answer(error.code, error)

    def answer(self, status: int, response: Any) -> Answer:
        text = response.read().decode()
        warnings = response.headers.get_all("Warning") or []
        try:
            return Answer(status, json.loads(text), warnings)
        except json.JSONDecodeError:
            return Answer(status, text, warnings)

    def path(self, kind: str, namespace: str, name: str = "") -> str:
        group, plural = PATHS[kind]
        return f"/{group}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")

    def create(self, found: Object, namespace: str, dry_run: bool = False) -> Answer:
        query = "?fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        return self.call("POST", self.path(found["kind"], namespace) + query, found)

    def apply(self, found: Object, namespace: str) -> Answer:
        """A server-side apply, as a dry run."""
        path = self.path(found["kind"], namespace, found["metadata"]["name"])
        query = "?fieldManager=test&fieldValidation=Strict&dryRun=All"
        return self.call("PATCH", path + query, found, "application/apply-patch+yaml")

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        answer = self.call("GET", self.path(kind, namespace, name))
        return answer.body if answer.status == 200 else None

    def list_of(self, kind: str, namespace: str) -> list[Object]:
        """Empty too if the cluster has no such kind."""
        answer = self.call("GET", self.path(kind, namespace))
        assert answer.status == 200 or (answer.status == 404 and kind in FOREIGN), answer
        return list(answer.body["items"]) if answer.status == 200 else []

    def names(self, namespace: str) -> set[str]:
        return {f"{kind} {one['metadata']['name']}" for kind in PATHS for one in self.list_of(kind, namespace)}

    def make_namespace(self, name: str, level: str = "") -> None:
        labels = {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "warn") if level}
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
        made = self.call("POST", "/api/v1/namespaces", body)
        assert made.status == 201, made
        # A controller does so in a whole cluster.
        for account in ("default", "bots"):
            made = self.create({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": account}}, name)
            assert made.status == 201, made

    def patch_status(self, kind: str, namespace: str, name: str, status: Object) -> Answer:
        path = self.path(kind, namespace, name) + "/status"
        return self.call("PATCH", path, {"status": status}, "application/merge-patch+json")

    def scale(self, namespace: str, deployment: str, replicas: int) -> None:
        """As an autoscaler does."""
        path = self.path("Deployment", namespace, deployment) + "/scale"
        answer = self.call("PATCH", path, {"spec": {"replicas": replicas}}, "application/merge-patch+json")
        assert answer.status == 200, answer

    def token(self, namespace: str, account: str, audience: str) -> str:
        spec = {"audiences": [audience], "expirationSeconds": 3600}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        made = self.call("POST", self.path("ServiceAccount", namespace, account) + "/token", body)
        assert made.status == 201, made
        claims = json.loads(base64.urlsafe_b64decode(made.body["status"]["token"].split(".")[1] + "=="))
        assert claims["aud"] == [audience]
        return str(made.body["status"]["token"])

    def call_until(self, status: int, method: str, path: str) -> None:
        until = time.monotonic() + 30
        while (answer := self.call(method, path)).status != status:
            assert time.monotonic() < until, answer
            time.sleep(0.1)


@contextmanager
def prometheus_operator(cluster: Cluster) -> Iterator[None]:
    """Its kinds, without their schemas: deploy/helm/test reads what the chart renders with the operator's types."""
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    free = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    names = {kind: PATHS[kind][1] for kind in FOREIGN}
    for kind, plural in names.items():
        version = {"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": free}}
        spec = {
            "group": "monitoring.coreos.com",
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [version],
        }
        metadata = {"name": f"{plural}.monitoring.coreos.com"}
        body = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition"}
        made = cluster.call("POST", definitions, {**body, "metadata": metadata, "spec": spec})
        assert made.status == 201, made
    for kind in names:
        cluster.call_until(200, "GET", cluster.path(kind, "bots"))
    try:
        yield
    finally:
        for kind, plural in names.items():
            cluster.call("DELETE", f"{definitions}/{plural}.monitoring.coreos.com")
            cluster.call_until(404, "GET", cluster.path(kind, "bots"))


class Finisher(threading.Thread):
    """Ends each Job or each Pod of a namespace, as its controller or the kubelet would."""

    def __init__(self, cluster: Cluster, kind: str, namespace: str, succeeds: bool = True) -> None:
        super().__init__(daemon=True)
        self.cluster, self.kind, self.namespace, self.succeeds = cluster, kind, namespace, succeeds
        self.ended: list[str] = []
        self.refused: Answer | None = None
        # What else there was meanwhile.
        self.beside: set[str] = set()
        self.stopped = threading.Event()

    def __enter__(self) -> "Finisher":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.join()

    def run(self) -> None:
        while not self.stopped.wait(0.1):
            for found in self.cluster.list_of(self.kind, self.namespace):
                if found["metadata"]["uid"] not in self.ended:
                    self.end(found["metadata"])

    def end(self, metadata: Object) -> None:
        names = self.cluster.names(self.namespace)
        self.beside |= {name for name in names if not name.startswith((f"{self.kind} ", "Secret sh.helm.release."))}
        answer = self.cluster.patch_status(self.kind, self.namespace, metadata["name"], self.status())
        if answer.status == 200:
            self.ended.append(metadata["uid"])
        elif answer.status != 404:
            self.refused = answer

    def status(self) -> Object:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self.kind == "Pod":
            return {"phase": "Succeeded" if self.succeeds else "Failed"}
        types = ["SuccessCriteriaMet", "Complete"] if self.succeeds else ["FailureTarget", "Failed"]
        conditions = [{"type": one, "status": "True", "lastTransitionTime": now, "reason": "Test"} for one in types]
        status = {"startTime": now, "conditions": conditions}
        return status | ({"completionTime": now, "succeeded": 1} if self.succeeds else {"failed": 1})
