"""The exceptions of muontrap, each a condition that callers branch on.

A launch that the kernel refuses raises the `OSError` subclass that `subprocess` raises; bad
input raises `TypeError` or `ValueError` before anything is started.
"""

from __future__ import annotations


class MuontrapError(Exception):
    """Base of the exceptions that are muontrap's alone."""


class ProtocolError(MuontrapError):
    """Bytes between host and guard were not a record: a bug, or somebody else wrote them."""


class ContainmentError(MuontrapError):
    """Raised before anything is started: a layer or a limit that was asked for can't be had here.

    The message says what is missing, where, and the command that would change it.
    """


class GuardError(MuontrapError):
    """Raised when the guard could not be started; the message has what it said, and what to do."""


class SupervisorFailed(MuontrapError):
    """Raised when a supervisor gave up, or its essential child has failed; nothing of it is left.

    Attributes:
        story: the failures that led to it, the last at the end.
    """

    def __init__(self, message: str, story: tuple[str, ...] = ()) -> None:
        super().__init__(message, story)
        self.story = story

    def __str__(self) -> str:
        return "\n  ".join((self.args[0], *self.story))


class GuardDied(MuontrapError):
    """Raised when the guard was killed under a command; the command has been killed.

    Attributes:
        reason: always "guard-died".
        pids: processes of the command that were still alive when the host gave up waiting for
            them; normally empty.
    """

    reason = "guard-died"

    def __init__(self, message: str, pids: tuple[int, ...] = ()) -> None:
        super().__init__(message, pids)
        self.pids = pids

    def __str__(self) -> str:
        left = f" (still alive: {', '.join(map(str, self.pids))})" if self.pids else ""
        return f"{self.args[0]}{left}"
