"""Proof that a command never forked, from the order in which the kernel numbers processes."""

from __future__ import annotations


class Ledger:
    """The unbroken run of pids, up to the latest, that the guard's own launches were given.

    A pid namespace gives numbers in a circle and skips those in use, threads counted.  So where the
    pid allocated last is the latest launch's, and all since some older launch were launches too,
    none of these commands has forked, nor made a thread: nothing of them can be anywhere, if they
    are dead.  That saves looking at every process of the machine after each `true`.
    A pid of a command that has not been reaped can't come round again.
    """

    __slots__ = ("_begin", "_end")

    def __init__(self) -> None:
        self._begin = self._end = 0

    def launched(self, pid: int) -> None:
        """Note the pid of a launch."""
        if pid != self._end + 1:
            self._begin = pid
        self._end = pid

    def never_forked(self, pid: int, last: int) -> bool:
        """Tell whether a command, not reaped yet, is proved not to have forked.

        Args:
            pid: of its main process.
            last: the pid allocated last in the namespace, read after it has died.
        """
        return self._begin <= pid <= self._end == last
