"""The last of a daemon's output, over all its runs."""

from __future__ import annotations

import os
import threading

# Of all of them: each holds it for microseconds, and a lock of its own would be dearer than the rest of it.
# A signal's handler may read as well.
_lock = threading.RLock()


class Recent:
    """Keeps the last `room` bytes that it was given, and counts them all. For any thread."""

    __slots__ = ("_kept", "_room", "count")

    def __init__(self, room: int) -> None:
        self._room = room
        self._kept: bytearray | None = None
        self.count: int = 0

    def take(self, data: bytes) -> None:
        """Have some more."""
        with _lock:
            self.count += len(data)
            if self._room:
                if self._kept is None:
                    self._kept = bytearray()
                self._kept += data[-self._room :]
                if len(self._kept) > self._room:
                    del self._kept[: -self._room]

    def finish(self) -> None:
        """Nothing is held back at the end of a run."""

    def read(self) -> tuple[bytes, int]:
        """Return what is kept, and the count."""
        with _lock:
            return bytes(self._kept or b""), self.count


def _renew_in_child() -> None:
    """In a forked child, nobody may be there to release it."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_in_child)
