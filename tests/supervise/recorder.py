"""What the tests of supervision share: a record of what happened in a tree, and words for commands."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from arena import BOUND, PROGRAMS

from muontrap import Backoff, SupervisorEvent

AT_ONCE = Backoff(initial=0, jitter=0)
STAYS = ["/bin/sleep", "1000"]


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def program(name: str, *arguments: object) -> list[str]:
    """The command line of one of tests/programs that needs no arena."""
    return [sys.executable, "-S", "-E", str(PROGRAMS / name), *map(str, arguments)]


def wait_until(what: Callable[[], bool]) -> None:
    """Wait for what nothing tells of."""
    deadline = time.monotonic() + 2 * BOUND
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class Recorder:
    """Takes the events of a tree (`on_event`), and waits for them."""

    def __init__(self) -> None:
        self.events: list[SupervisorEvent] = []
        self._changed = threading.Condition()

    def __call__(self, event: SupervisorEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait(self, kind: str, name: str, count: int = 1) -> SupervisorEvent:
        """Wait until that has happened so often; return the last such event."""
        with self._changed:
            came = self._changed.wait_for(lambda: len(self.of(kind, name)) >= count, 2 * BOUND)
            assert came, f"{name} {kind} x {count} is not in {self.events}"
            return self.of(kind, name)[-1]

    def of(self, kind: str, name: str) -> list[SupervisorEvent]:
        return [event for event in self.events if (event.kind, event.name) == (kind, name)]

    def words(self) -> list[str]:
        return [f"{event.name} {event.kind}" for event in self.events]
