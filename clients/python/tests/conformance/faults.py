"""Random faults of a testbed, and of this process."""

from __future__ import annotations

import ctypes
import random
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from .history import Forced, History
from .interpreter import settle
from .testbed import Testbed

TEAM = "T1"

# A fault of one group overlaps those of the others. Cuts are frequent, and so are releases by
# force, of which not all find a lease.
NETWORK = ("cut", "cut", "hold", "hold", "cut_before_data", "cut_before_data", "refuse")
SERVER = ("kill", "drain", "mute", "lose", "lose")
PROCESS = ("pause",)
KINDS = (*NETWORK, *SERVER, *PROCESS)

BETWEEN_SECONDS = (0.2, 2.0)
BETWEEN_PAUSES_SECONDS = (2.0, 5.0)


class Faults:
    """Does random faults of one group, one after the other, until they are stopped."""

    def __init__(
        self,
        testbed: Testbed,
        replica: int,
        kinds: tuple[str, ...],
        chance: random.Random,
        history: History,
        sessions: list[str],
    ) -> None:
        self._testbed, self._replica, self._chance = testbed, replica, chance
        self._kinds, self._history, self._sessions = kinds, history, sessions
        self._stop = threading.Event()
        self.done: list[str] = []
        self._ended: Future[None] = Future()
        threading.Thread(target=settle, args=(self._ended, self._run), daemon=True).start()

    def stop(self) -> None:
        """Ends the fault that lasts. Raises what went wrong."""
        self._stop.set()
        self._ended.result()

    def _run(self) -> None:
        kinds: list[str] = []
        between = BETWEEN_PAUSES_SECONDS if self._kinds == PROCESS else BETWEEN_SECONDS
        while not self._stop.wait(self._chance.uniform(*between)):
            if not kinds:  # so each of them happens
                kinds = self._chance.sample(self._kinds, len(self._kinds))
            kind = kinds.pop()
            self.done.append(kind)
            getattr(self, f"_{kind}")()

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
        """What is held arrives late, or never."""
        direction = self._chance.choice(("both", "to_client", "to_server"))
        self._do("hold", direction=direction)
        self._sleep(0.1, 1.5)
        if self._chance.random() < 0.5:
            self._cut()
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
        self._sleep(0.1, 2.5)
        self._do("accept")

    def _pause(self) -> None:
        stand_still(self._chance.randrange(200, 2000))


def stand_still(milliseconds: int) -> None:
    """A call by way of PyDLL keeps the GIL, and so every thread of this process waits."""
    ctypes.PyDLL(None).poll(None, 0, milliseconds)


@contextmanager
def random_faults(
    testbed: Testbed,
    seed: int,
    history: History,
    sessions: list[str],
    kinds: Collection[str],
    faulty: int,
) -> Iterator[list[str]]:
    """Faults of these kinds while the block runs, in so many replicas. The list has what was done
    after it."""
    groups = [(replica, group) for replica in range(faulty) for group in (NETWORK, SERVER)]
    started = []
    for number, (replica, group) in enumerate([*groups, (0, PROCESS)]):
        chosen = tuple(kind for kind in group if kind in kinds)
        chance = random.Random(f"{seed}-{number}")
        if chosen:
            started.append(Faults(testbed, replica, chosen, chance, history, sessions))
    done: list[str] = []
    try:
        yield done
    finally:
        for faults in started:
            faults.stop()
            done += faults.done
        # A cut may still be armed.
        for replica in range(faulty):
            testbed.do("cut", replica=replica)
