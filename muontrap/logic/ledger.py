"""Proof that a command never forked, from the order in which the kernel numbers processes."""

from __future__ import annotations


class Ledger:
    """The unbroken run of pids, up to the latest, that the guard's own launches were given.

    A pid namespace gives numbers in a circle and skips those in use, threads counted.  A command not
    reaped yet keeps its number.  So where the pid allocated last is its own, nothing was started since.
    And where all numbers from its own to the latest were launches too, none of them has forked, nor
    made a thread: unless the circle has been closed since its launch, which takes a time.
    This saves looking at every process of the machine after each `true`.
    """

    __slots__ = ("_begin", "_circle", "_end")

    def __init__(self, circle: float) -> None:
        """`circle` is the least time, in seconds, in which all numbers can be given once."""
        self._circle = circle
        self._begin = self._end = 0

    def launched(self, pid: int) -> None:
        """Note the pid of a launch."""
        if pid != self._end + 1:
            self._begin = pid
        self._end = pid

    def never_forked(self, pid: int, last: int, age: float) -> bool:
        """Tell whether a command, not reaped yet, is proved not to have forked.

        Args:
            pid: of its main process.
            last: the pid allocated last in the namespace, read after it has died.
            age: seconds from before its launch until after that.
        """
        if pid == self._end == last:
            return True
        return self._begin <= pid <= self._end == last and age < self._circle
