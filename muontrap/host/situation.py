"""What a command inherits from its host, and with which privileges the host acts, at this moment."""

from __future__ import annotations

import os
import resource

from muontrap.containment.processes import read
from muontrap.logic.procfs import privileges

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muontrap.logic.steps import Step

_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid_for_children", "time_for_children", "user", "uts")
_RLIMITS = [number for number in range(16) if number != 10]  # RLIMIT_LOCKS is the tag


class Situation:
    """The calling thread's, once: credentials belong to threads in Linux."""

    def __init__(self) -> None:
        status = read("/proc/thread-self/status")
        self.privileges: tuple[bytes, ...] = privileges(status)
        self.namespaces: list[str | None] = _namespaces()
        root = os.stat("/")
        self.root: tuple[int, int] = (root.st_dev, root.st_ino)
        self.umask: int = int(status.partition(b"Umask:")[2][:6], 8)
        self.rlimits: list[tuple[int, int]] = [resource.getrlimit(number) for number in _RLIMITS]
        self.nice: int = os.getpriority(os.PRIO_PROCESS, 0)
        self.affinity: set[int] = os.sched_getaffinity(0)

    def may_use_guard_of(self, other: Situation) -> bool:
        """Tell whether a guard started in the other situation has just this one's privileges and files."""
        return (
            self.privileges == other.privileges
            and self.namespaces == other.namespaces
            and self.root == other.root
        )

    def steps_from(self, other: Situation) -> list[Step]:
        """Return the steps that give a guard's child what it would inherit from this thread."""
        steps: list[Step] = [
            ("rlimit", (number, *limits))
            for number, limits, before in zip(_RLIMITS, self.rlimits, other.rlimits, strict=True)
            if limits != before
        ]
        if self.nice != other.nice:
            steps.append(("nice", (self.nice,)))
        if self.affinity != other.affinity:
            steps.append(("cpu_affinity", tuple(sorted(self.affinity))))
        return steps


def _namespaces() -> list[str | None]:
    folder = os.open("/proc/thread-self/ns", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return [_link(name, folder) for name in _NAMESPACES]
    finally:
        os.close(folder)


def _link(name: str, folder: int) -> str | None:
    try:
        return os.readlink(name, dir_fd=folder)
    except FileNotFoundError:
        return None  # a kernel without this kind
