"""Runs the containers of a pod as a kubelet would, as far as a process allows: their volumes, variables, users and
probes. Folders of the pod stand in a folder here, so arguments that name them are changed, and ports too."""

import os
import re
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from chart import Object, containers

Secrets = dict[str, dict[str, bytes]]
IS_ROOT = os.getuid() == 0


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Pod:
    def __init__(self, spec: Object, secrets: Secrets, folder: Path, binary: Path) -> None:
        self.spec = spec
        self.binary = binary
        self.folder = folder
        self.ports: dict[int, int] = {}
        self.volumes = {one["name"]: self.make_volume(one, secrets) for one in spec.get("volumes", [])}

    def make_volume(self, volume: Object, secrets: Secrets) -> Path:
        """As the kubelet does: for the group of the pod, and only with what the Secret has."""
        path = self.folder / str(volume["name"])
        path.mkdir(parents=True)
        group = self.spec["securityContext"]["fsGroup"]
        if "emptyDir" in volume:
            if IS_ROOT:
                os.chown(path, 0, group)
            path.chmod(0o2777)
            return path
        kind = "secret" if "secret" in volume else "configMap"
        source = volume[kind]
        data = secrets[source.get("secretName") or source["name"]]
        for item in source.get("items", [{"key": key, "path": key} for key in data]):
            file = path / item["path"]
            file.write_bytes(data[item["key"]])
            if IS_ROOT:
                os.chown(file, 0, group)
            file.chmod(source.get("defaultMode", 0o644))
        return path

    def translated(self, container: Object, text: str) -> str:
        for mount in container.get("volumeMounts", []):
            text = text.replace(mount["mountPath"], str(self.volumes[mount["name"]]))
        for port in container.get("ports", []):
            here = self.ports.setdefault(port["containerPort"], free_port())
            text = re.sub(rf":{port['containerPort']}$", f":{here}", text)
        return text

    def command(self, container: Object, command: list[str]) -> list[str]:
        assert command[0] == "/oncegate", command
        return [str(self.binary), *(self.translated(container, one) for one in command[1:])]

    def options(self, container: Object) -> dict[str, Any]:
        """The variables are those of the pod only, and the user is that of the container."""
        variables = {
            one["name"]: self.translated(container, one["value"]) for one in container.get("env", []) if "value" in one
        }
        options: dict[str, Any] = {"env": {"KUBERNETES_SERVICE_HOST": "10.0.0.1", **variables}, "cwd": "/"}
        if IS_ROOT:
            context = {**self.spec["securityContext"], **container["securityContext"]}
            options |= {
                "user": context["runAsUser"],
                "group": context["runAsGroup"],
                "extra_groups": [context["fsGroup"]],
            }
        return options

    def start(self, container: Object, log: Path) -> subprocess.Popen[str]:
        command = self.command(container, [*container["command"], *container["args"]])
        with log.open("w") as file:
            return subprocess.Popen(command, stdout=file, stderr=file, text=True, **self.options(container))

    def run(self, container: Object, command: list[str] | None = None) -> subprocess.CompletedProcess[str]:
        wanted = command or [*container["command"], *container["args"]]
        return subprocess.run(
            self.command(container, wanted), capture_output=True, text=True, timeout=60, **self.options(container)
        )

    def probe(self, container: Object, kind: str) -> bool:
        probe = container[kind]
        if "exec" in probe:
            return self.run(container, probe["exec"]["command"]).returncode == 0
        get = probe["httpGet"]
        (port,) = [one["containerPort"] for one in container["ports"] if one["name"] == get["port"]]
        try:
            with urllib.request.urlopen(f"http://localhost:{self.ports[port]}{get['path']}", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def await_probe(self, container: Object, kind: str, process: subprocess.Popen[str]) -> None:
        until = time.monotonic() + 60
        while not self.probe(container, kind):
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < until, f"{kind} fails"
            time.sleep(0.1)

    def container(self, name: str) -> Object:
        (found,) = [one for one in containers(self.spec) if one["name"] == name]
        return found
