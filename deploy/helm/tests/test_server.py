"""The real server accepts what the templates give its containers, on PostgreSQL, with the files and the user that a
kubelet would give them. A flag that does not exist, or a file that no Secret has, fails here."""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from chart import CHART, NAMESPACE, ROOT, Object, of_kind, render
from kubelet import Pod, Secrets
from psycopg import sql

DATABASE_URL = os.environ["ONCEGATE_TEST_DATABASE_URL"]
TOKEN = "once_" + "a" * 43


@pytest.fixture(scope="session")
def binary(work: Path) -> Path:
    """Where every user may run it."""
    for one in (work, *work.parents):
        if one.stat().st_uid == os.getuid() and one != Path("/"):
            one.chmod(one.stat().st_mode | 0o055)
    return Path(shutil.copy(os.environ["ONCEGATE_BINARY"], work / "oncegate"))


@pytest.fixture
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a new database."""
    name = "chart_" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    drop = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
    with psycopg.connect(DATABASE_URL, autocommit=True) as connection:
        connection.execute(drop)
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield f"{DATABASE_URL.partition('?')[0].rpartition('/')[0]}/{name}?sslmode=disable"
        connection.execute(drop)


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


@pytest.fixture(scope="session")
def certificates(work: Path) -> Secrets:
    """An authority, and what it signs: the server's certificate for the names that bots use, and a client's."""
    folder = work / "certificates"
    folder.mkdir()
    key, ca = folder / "ca.key", folder / "ca.crt"
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl("req", "-x509", *curve, "-days", "2", "-subj", "/CN=bots", "-keyout", key, "-out", ca)
    names = ",".join(f"DNS:{name}.{NAMESPACE}.svc" for name in service_names())
    for name, san, usage in (("server", names, "serverAuth"), ("client", "URI:spiffe://prod/test", "clientAuth")):
        extensions = ["basicConstraints=CA:FALSE", f"subjectAltName={san}", f"extendedKeyUsage={usage}"]
        openssl("req", "-x509", *curve, "-days", "2", "-CA", ca, "-CAkey", key, "-subj", f"/CN={name}",
                *(part for one in extensions for part in ("-addext", one)),
                "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt")  # fmt: skip
    return {
        name: {
            "ca.crt": ca.read_bytes(),
            "tls.crt": (folder / f"{name}.crt").read_bytes(),
            "tls.key": (folder / f"{name}.key").read_bytes(),
        }
        for name in ("server", "client")
    }


def service_names() -> list[str]:
    rendered = [
        one for path in sorted((CHART / "ci").glob("shared-*.yaml")) for one in of_kind(render(path), "Service")
    ]
    return sorted({one["metadata"]["name"] for one in rendered})


AUTH = f"""
[[principal]]
name = "bots"
role = "bot"
teams = ["T1"]
token_sha256 = ["{hashlib.sha256(TOKEN.encode()).hexdigest()}"]
unix_uid = [1000]
"""


def secrets(values: Path, url: str, certificates: Secrets) -> Secrets:
    """Those that the files in ci/ name."""
    as_role = {
        role: {"uri": re.sub("://[^@/]*@", f"://oncegate_{role}@", url).encode(), "password": b"secret"}
        for role in ("owner", "service")
    }
    return {
        "oncegate-tls": certificates["server"],
        "oncegate-clients": {"ca.crt": certificates["server"]["ca.crt"]},
        "oncegate-test-client": certificates["client"],
        "oncegate-auth": {"principals.toml" if values.stem == "shared-mutual-tls" else "auth.toml": AUTH.encode()},
        "oncegate-database": {"url": url.encode()},
        "oncegate-owner": as_role["owner"],
        "oncegate-service": as_role["service"],
        "postgres-ca": {"ca.crt": certificates["server"]["ca.crt"]},
        "issuers": {"jwks.json": b"{}"},
    }


def documented_roles() -> str:
    text = (ROOT / "docs/operations/kubernetes.md").read_text()
    return text.split("<!-- kubernetes: roles -->\n\n```sql\n", 1)[1].split("```", 1)[0]


def prepare(values: Path, url: str, binary: Path) -> None:
    """What an operator does before the release is installed."""
    if values.stem == "shared-roles":
        with psycopg.connect(url, autocommit=True) as connection:
            for role in ("owner", "service"):
                if not connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [f"oncegate_{role}"]).fetchone():
                    connection.execute(f"CREATE ROLE oncegate_{role} LOGIN".encode())
            connection.execute(documented_roles().encode())
    if values.stem == "shared-ipv6":
        subprocess.run([binary, "migrate", "--database-url", url], check=True, capture_output=True)


def ended(process: subprocess.Popen[str]) -> int:
    """The second SIGTERM ends the lame-duck period."""
    for _ in range(100):
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=0.5)
    raise AssertionError("the server does not end")


@contextmanager
def running(pod: Pod, container: Object, log: Path) -> Iterator[None]:
    process = pod.start(container, log)
    try:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if probe in container:
                pod.await_probe(container, probe, process)
        yield
        assert ended(process) == 0
    except AssertionError as error:
        raise AssertionError(f"{error}\n{log.read_text()}") from error
    finally:
        process.kill()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, since the path of a socket may not be long."""
    with tempfile.TemporaryDirectory(prefix="pod-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_the_server_runs(values: Path, binary: Path, certificates: Secrets, database: str, folder: Path) -> None:
    given = secrets(values, database, certificates)
    rendered = render(values)
    (deployment,) = of_kind(rendered, "Deployment")
    pod = Pod(deployment["spec"]["template"]["spec"], given, folder / "server", binary)
    server = pod.container("oncegate")
    prepare(values, database, binary)
    for job in of_kind(rendered, "Job"):
        migrate = Pod(job["spec"]["template"]["spec"], given, folder / "migrate", binary)
        done = migrate.run(migrate.container("migrate"))
        assert done.returncode == 0, done.stderr
    with running(pod, server, folder / "log"):
        if "sidecar" in values.stem:
            call_from_the_bot(pod)
        for test in of_kind(rendered, "Pod"):
            call_as_helm_test(pod, Pod(test["spec"], given, folder / "test", binary))
    log = (folder / "log").read_text()
    assert "world-writable" not in log
    assert ("--insecure" in log) == (values.stem == "shared-mesh"), log


def call_from_the_bot(pod: Pod) -> None:
    """Another user than the server's, by the socket that the bot is told of."""
    bot = pod.container("bot")
    (server,) = [one["value"] for one in bot["env"] if one["name"] == "ONCEGATE_SERVER"]
    mark = ["/oncegate", "mark", "T1", "Ev1", f"--server={server}"]
    assert [pod.run(bot, mark).returncode for _ in range(2)] == [0, 10]


def call_as_helm_test(server: Pod, test: Pod) -> None:
    """Its own arguments, but no DNS: the address is given, and the name is checked all the same."""
    container = test.container("test")
    (argument,) = [one for one in container["args"] if one.startswith("--server=")]
    host, _, port = argument.removeprefix("--server=").removeprefix("https://").rpartition(":")
    here = argument.replace(f"{host}:{port}", f"127.0.0.1:{server.ports[int(port)]}")
    name = [f"--tls-server-name={host}"] if "https" in argument else []
    arguments = [here if one == argument else one for one in container["args"]]
    done = test.run(container, [*container["command"], *arguments, *name])
    assert done.returncode == 0, done.stderr
