"""What happens in a tree, as it is told."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from queue import SimpleQueue


class SupervisorEvent:
    """Something that happened in a tree.

    Attributes:
        kind: "started", "ready", "exited", "restarted" or "gave-up".
        name: whose: names from below the root on, with slashes between.
        why: why it exited, or was given up; else "".
        when: seconds since the epoch.
    """

    def __init__(self, kind: str, name: str, why: str) -> None:
        self.kind: str = kind
        self.name: str = name
        self.why: str = why
        self.when: float = time.time()

    def __repr__(self) -> str:
        return f"<SupervisorEvent {self.name} {self.kind}{self.why and f': {self.why}'}>"


class Events:
    """An iterator over events, which waits for the next one; ends with the tree.

    The tree does not keep it: what comes when nobody has it any more is for nobody.
    """

    def __init__(self) -> None:
        from queue import SimpleQueue

        self._queue: SimpleQueue[SupervisorEvent | None] = SimpleQueue()
        self._is_over = False

    def put(self, event: SupervisorEvent | None) -> None:
        """Add one; None is the end."""
        self._queue.put(event)

    def __iter__(self) -> Events:
        return self

    def __next__(self) -> SupervisorEvent:
        event = None if self._is_over else self._queue.get()
        if event is None:
            self._is_over = True
            raise StopIteration
        return event
