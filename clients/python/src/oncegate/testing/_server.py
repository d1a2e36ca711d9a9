"""The real server as a child of a test process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import grpc
from google.protobuf.message import Message

from oncegate.v1 import admin_service_pb2 as admin
from oncegate.v1 import event_pb2, session_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from oncegate._delivery import Session

Answer = TypeVar("Answer", bound=Message)

# Kills the server and deletes its files as soon as the test process is gone, however that ended:
# only then does the pipe on stdin reach its end.
_WATCH = 'read -r _ || { kill -KILL "$1"; rm -rf "$2"; }'


@dataclass(frozen=True)
class RunningTurn:
    """A turn that is in progress."""

    event: str
    holder: str
    attempt: int


class Server:
    """A server with a database of its own, which ends with this process.

    Its address stays the same over restarts. The methods are synchronous and take milliseconds, so
    asynchronous tests can call them too.
    """

    def __init__(self, *arguments: str, binary: str | os.PathLike[str] | None = None) -> None:
        """Further arguments are passed to ``oncegate serve``."""
        self._binary = os.fspath(binary) if binary else find_binary()
        self._folder = Path(tempfile.mkdtemp(prefix="oncegate-"))
        self._arguments = arguments
        self._process: subprocess.Popen[str] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None
        self._drains = False
        self._channel = grpc.insecure_channel(
            self.address, options=[("grpc.use_local_subchannel_pool", 1)]
        )

    @property
    def address(self) -> str:
        """For ``Gate(server.address)`` and ``ONCEGATE_SERVER``."""
        return f"unix:{self._folder / 'socket'}"

    @property
    def log(self) -> str:
        """The log of the server so far."""
        return (self._folder / "log").read_text()

    def start(self) -> Self:
        """Starts the server, after the end of one that drains, and waits until it is ready.

        If it does not start, this deletes its database, as `stop` does.
        """
        if self._process and self._process.poll() is None and not self._drains:
            raise RuntimeError("the server runs already; restart() replaces it")
        self._wait()
        try:
            self._spawn()
        except BaseException:
            self.stop()
            raise
        return self

    def _spawn(self) -> None:
        self._drains = False
        command = [self._binary, "serve", "--listen", self.address]
        command += ["--database-url", f"sqlite://{self._folder / 'oncegate.db'}", *self._arguments]
        # Settings of the tests' own environment are for its clients.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("ONCEGATE_")}
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCH, "sh", str(self._process.pid), str(self._folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C would end it before it is needed
        )
        assert self._process.stdout
        if " listens on " not in self._process.stdout.readline():
            self._wait()
            raise RuntimeError(f"the server did not start:\n{self.log}")

    def stop(self) -> None:
        """Kills the server and deletes its database."""
        self._channel.close()
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def kill(self) -> None:
        """Ends the server by SIGKILL and waits until it is gone."""
        self._signal(signal.SIGKILL)
        self._wait()

    def restart(self) -> None:
        """Kills the server, if it runs, and starts it on the same database."""
        self.kill()
        self.start()

    def drain(self) -> None:
        """Asks the server to end, by SIGTERM. Turns stay with their holders."""
        self._drains = True
        self._signal(signal.SIGTERM)

    def mute(self) -> None:
        """Stops the server's process: its connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def unmute(self) -> None:
        """Lets the process of a muted server continue."""
        self._signal(signal.SIGCONT)

    def lose(self, session: Session) -> None:
        """Takes a held session from its holder, as an operator does by force."""
        name = session.id or f"{session.team}:{session.channel}:{session.thread_ts}"
        held = [
            found
            for found in self._sessions(session.team)
            if found.session_id == name and found.state == admin.SESSION_STATE_HELD
        ]
        if not held:
            raise LookupError(f"no session {name} of {session.team} is held")
        for found in held:
            self._call(
                "ForceReleaseSessionLease",
                admin.ForceReleaseSessionLeaseRequest(
                    session=session_pb2.SessionKey(
                        team_id=found.team_id,
                        session_id=found.session_id,
                        consumer=found.consumer,
                    ),
                    actor="test",
                    reason="lose",
                ),
                admin.ForceReleaseSessionLeaseResponse,
            )

    def turns(self, team: str = "") -> list[RunningTurn]:
        """The turns in progress: those of one tenant, or all."""
        request = admin.ListEventsRequest(team_id=team, state=event_pb2.EVENT_STATE_IN_PROGRESS)
        events: list[RunningTurn] = []
        while True:
            page = self._call("ListEvents", request, admin.ListEventsResponse)
            events += [RunningTurn(e.event_id, e.holder, e.attempt) for e in page.events]
            if not page.next_page_token:
                return events
            request.page_token = page.next_page_token

    def waiting(self, team: str = "") -> int:
        """How many callers queue for a session of this tenant, or of all."""
        request = admin.GetStatsRequest(team_id=team)
        return self._call("GetStats", request, admin.GetStatsResponse).waiters

    def _sessions(self, team: str) -> Iterator[admin.Session]:
        request = admin.ListSessionsRequest(team_id=team, page_size=250)
        while True:
            page = self._call("ListSessions", request, admin.ListSessionsResponse)
            yield from page.sessions
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _call(self, method: str, request: Message, answer: type[Answer]) -> Answer:
        call: grpc.UnaryUnaryMultiCallable[Message, Answer] = self._channel.unary_unary(
            f"/oncegate.v1.AdminService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=10, wait_for_ready=True)

    def _signal(self, number: signal.Signals) -> None:
        if self._process:
            self._process.send_signal(number)  # does nothing if the process has ended

    def _wait(self) -> None:
        if self._process:
            self._process.wait(timeout=20)
            assert self._process.stdout
            self._process.stdout.close()
            self._process = None
        if self._watcher:
            self._watcher.kill()
            self._watcher.wait()
            assert self._watcher.stdin
            self._watcher.stdin.close()
            self._watcher = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()


def find_binary() -> str:
    """The server's binary: ``ONCEGATE_BINARY``, that of the package, or the first on the PATH."""
    if named := os.environ.get("ONCEGATE_BINARY"):
        return named
    packaged = Path(sysconfig.get_path("scripts"), "oncegate")
    if packaged.is_file():
        return str(packaged)
    if found := shutil.which("oncegate"):
        return found
    raise FileNotFoundError(
        "no oncegate server here: pip install 'oncegate[server]', or set ONCEGATE_BINARY"
    )
