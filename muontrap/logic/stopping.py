"""Whether a process is asked to stop for the first time."""

from __future__ import annotations

SAME_WITHIN = 0.3  # s


class Stops:
    """The signals that ask for it.

    The same one twice at once is one: timeout(1) sends it to its child, and then to its child's group.
    """

    def __init__(self) -> None:
        self._first: tuple[int, float] | None = None

    def is_second(self, signum: int, now: float) -> bool:
        """Take one; tell whether another has asked before."""
        if self._first is None:
            self._first = signum, now
        first, when = self._first
        return signum != first or now - when > SAME_WITHIN
