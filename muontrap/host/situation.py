"""What a command inherits from its host, and with which privileges the host acts, at this moment."""

from __future__ import annotations

import os
import resource

from muontrap.containment.processes import read
from muontrap.logic.procfs import parse_status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muontrap.logic.steps import Step

_PRIVILEGES = (b"Uid", b"Gid", b"Groups", b"CapPrm", b"CapEff", b"CapBnd", b"NoNewPrivs", b"Seccomp")
_NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid_for_children", "time_for_children", "user", "uts")
_RLIMITS = [number for number in range(16) if number != 10]  # RLIMIT_LOCKS is the tag


class Situation:
    """The calling thread's, once: credentials belong to threads in Linux."""

    def __init__(self) -> None:
        status = parse_status(read("/proc/thread-self/status"))
        self.privileges = [status.get(name) for name in _PRIVILEGES]
        self.namespaces = [_link(f"/proc/thread-self/ns/{name}") for name in _NAMESPACES]
        self.umask = int(status[b"Umask"], 8)
        self.rlimits = {number: resource.getrlimit(number) for number in _RLIMITS}
        self.nice = os.getpriority(os.PRIO_PROCESS, 0)
        self.affinity = os.sched_getaffinity(0)

    def may_use_guard_of(self, other: Situation) -> bool:
        """Tell whether a guard started in the other situation has just this one's privileges."""
        return self.privileges == other.privileges and self.namespaces == other.namespaces

    def steps_from(self, other: Situation) -> list[Step]:
        """Return the steps that give a guard's child what it would inherit from this thread."""
        steps: list[Step] = [
            ("rlimit", (number, *limits))
            for number, limits in self.rlimits.items()
            if limits != other.rlimits[number]
        ]
        if self.nice != other.nice:
            steps.append(("nice", (self.nice,)))
        if self.affinity != other.affinity:
            steps.append(("cpu_affinity", tuple(sorted(self.affinity))))
        return steps


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except FileNotFoundError:
        return None
