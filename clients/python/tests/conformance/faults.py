"""Random faults of a testbed."""

from __future__ import annotations

import random
import threading
from concurrent.futures import Future
from typing import Any

from .history import Forced, History
from .interpreter import settle
from .testbed import Testbed

TEAM = "T1"
PAUSE_SECONDS = (0.05, 0.5)

# Cuts are frequent, and so are releases by force, of which not all find a lease.
KINDS = (
    "kill",
    "drain",
    "cut",
    "cut",
    "hold",
    "cut_before_data",
    "cut_before_data",
    "mute",
    "lose",
    "lose",
    "refuse",
)


class Faults:
    """Does random faults to one replica, one after the other, until they are stopped."""

    def __init__(
        self,
        testbed: Testbed,
        replica: int,
        chance: random.Random,
        history: History,
        sessions: list[str],
    ) -> None:
        self._testbed, self._replica, self._chance = testbed, replica, chance
        self._history, self._sessions = history, sessions
        self._stop = threading.Event()
        self.done: list[str] = []
        self._ended: Future[None] = Future()
        threading.Thread(target=settle, args=(self._ended, self._run), daemon=True).start()

    def stop(self) -> None:
        """Stops the faults, and leaves the replica sound. Raises what went wrong."""
        self._stop.set()
        self._ended.result()

    def _run(self) -> None:
        kinds: list[str] = []
        while not self._stop.wait(self._chance.uniform(*PAUSE_SECONDS)):
            if not kinds:  # so each of them happens
                kinds = self._chance.sample(KINDS, len(KINDS))
            kind = kinds.pop()
            self.done.append(kind)
            getattr(self, f"_{kind}")()
        # A cut may still be armed.
        self._do("cut")

    def _do(self, command: str, **arguments: object) -> Any:
        return self._testbed.do(command, replica=self._replica, **arguments)

    def _sleep(self, low: float, high: float) -> None:
        self._stop.wait(self._chance.uniform(low, high))

    def _kill(self) -> None:
        self._do("kill")
        self._do("restart", after_ms=self._chance.randrange(600))

    def _drain(self) -> None:
        self._do("drain")
        self._do("restart", after_ms=self._chance.randrange(600))

    def _cut(self) -> None:
        self._do("cut", side=self._chance.choice(("both", "client", "server")))

    def _hold(self) -> None:
        direction = self._chance.choice(("both", "to_client", "to_server"))
        self._do("hold", direction=direction)
        self._sleep(0.1, 1.5)
        self._do("release", direction=direction)

    def _cut_before_data(self) -> None:
        direction = self._chance.choice(("to_client", "to_server"))
        self._do("cut_before_data", direction=direction, skip=self._chance.randrange(6))

    def _mute(self) -> None:
        self._do("mute")
        self._sleep(0.1, 1.2)
        self._do("unmute")

    def _lose(self) -> None:
        session = self._chance.choice(self._sessions)
        answer = self._do("lose", team=TEAM, session=session)
        if answer["released"]:
            forced = Forced(session, answer["fence_before"] or 0, answer["fence"])
            self._history.forced.append(forced)

    def _refuse(self) -> None:
        self._do("refuse")
        self._do("cut")
        self._sleep(0.1, 1.0)
        self._do("accept")
