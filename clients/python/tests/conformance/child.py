"""A client in a process of its own, which can be killed, and can fork."""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from .lines import LineProcess
from .scenario import Json, Step


class ChildClient:
    """Sends its verbs to a child process that runs this module."""

    def __init__(self, form: str, name: str, address: str, options: dict[str, Json]) -> None:
        arguments = json.dumps([form, name, address, options])
        tests = str(Path(__file__).resolve().parents[1])
        self._process = LineProcess(
            [sys.executable, "-m", __name__, arguments],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([tests, *filter(None, sys.path)])},
        )
        self._is_alive = True

    def do(self, step: Step) -> Json:
        if "die" in step:
            self._process.kill()
            self._is_alive = False
            return None
        return self._process.ask("step", step=step)

    def close(self) -> None:
        if self._is_alive:
            self._process.ask("close")
        self._process.close()


def main() -> None:
    from .forms import make_here

    client = make_here(*json.loads(sys.argv[1]))
    output = sys.stdout
    lock = threading.Lock()

    def answer(request: dict[str, Any]) -> None:
        result = None
        if request["do"] == "step":
            result = client.do(request["step"])
        else:
            client.close()
        with lock:
            print(json.dumps({"id": request["id"], "ok": result}), file=output, flush=True)

    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        threading.Thread(target=answer, args=(json.loads(line),), daemon=True).start()


if __name__ == "__main__":
    main()
