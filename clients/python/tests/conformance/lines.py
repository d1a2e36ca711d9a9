"""A child process that is asked, and answers, in lines of JSON."""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

ANSWER_TIMEOUT = 120.0


class ProcessError(Exception):
    """A request failed, or its process has ended."""


class LineProcess:
    """Sends `{"id", "do", …}`, and receives `{"id", "ok"}` or `{"id", "error"}`.

    Its first line is its greeting. It ends when its stdin closes, so it does not outlive this
    process."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> None:
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=env,
        )
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        greeting = self._output.readline()
        if not greeting:
            self._process.wait()
            raise ProcessError(f"{command[0]} did not start:\n{self.log()}")
        self.greeting = json.loads(greeting)
        self._ids = itertools.count(1)
        self._answers: dict[int, Future[Any]] = {}
        self._has_ended = False
        self._lock = threading.Lock()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, what: str, **arguments: Any) -> Any:
        """Sends one request, and waits for its answer. Those of several threads run side by
        side."""
        answer: Future[Any] = Future()
        with self._lock:
            if self._has_ended:
                raise ProcessError("the process has ended")
            number = next(self._ids)
            self._answers[number] = answer
            try:
                self._input.write(json.dumps({"id": number, "do": what, **arguments}) + "\n")
                self._input.flush()
            except OSError as error:
                raise ProcessError("the process has ended") from error
        return answer.result(ANSWER_TIMEOUT)

    def log(self) -> str:
        """The end of what it wrote to stderr."""
        self._log.seek(0)
        return self._log.read()[-4000:]

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        finally:
            self._log.close()

    def _read(self) -> None:
        with self._output:
            for line in self._output:
                answer = json.loads(line)
                future = self._answers.pop(answer["id"])
                if "error" in answer:
                    future.set_exception(ProcessError(answer["error"]))
                else:
                    future.set_result(answer["ok"])
        with self._lock:
            self._has_ended = True
        for future in self._answers.values():
            future.set_exception(ProcessError("the process has ended"))
