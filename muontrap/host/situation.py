"""What a command inherits from its host, and where the host is, at this moment."""

from __future__ import annotations

import os
import resource

from muontrap.errors import GuardError
from muontrap.kernel.identity import securebits
from muontrap.kernel.process import mount_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muontrap.logic.steps import Step

# To open one for what is in it, and not to read it.
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FOLDER = b"/proc/thread-self/ns"
# A child of this thread has "pid_for_children" and "time_for_children".
_KINDS = (b"cgroup", b"ipc", b"mnt", b"net", b"pid_for_children", b"time_for_children", b"user", b"uts")
# One by one: whoever has changed its ids may not list the folder (not "dumpable", prctl(2)).
_NAMESPACES = tuple(kind for kind in _KINDS if os.path.lexists(b"/proc/self/ns/" + kind))
# What kills who takes too long: a guard has no such limit, as far as it may.
_TIMES = [resource.RLIMIT_CPU, resource.RLIMIT_RTTIME]
_NONE = [(resource.RLIM_INFINITY, resource.RLIM_INFINITY)] * 2
_RLIMITS = [number for number in range(16) if number not in (*_TIMES, 10)]  # RLIMIT_LOCKS is the tag


class Situation:
    """The calling thread's, once. The rest of its privileges, and umask, are for the guard to read."""

    def __init__(self) -> None:
        root = os.stat("/")
        self.place: list[object] = [root.st_dev, root.st_ino, mount_id(b"/"), securebits(), *_namespaces()]
        self.times: list[tuple[int, int]] = list(map(resource.getrlimit, _TIMES))
        self.rlimits: list[tuple[int, int]] = list(map(resource.getrlimit, _RLIMITS))
        self.nice: int = os.getpriority(os.PRIO_PROCESS, 0)
        self.affinity: set[int] = os.sched_getaffinity(0)

    def steps_from(self, other: Situation) -> list[Step]:
        """Return the steps that give a guard's child what it would inherit from this thread."""
        steps: list[Step] = []
        if self.times != _NONE:
            steps += [
                ("rlimit", (number, *limits)) for number, limits in zip(_TIMES, self.times, strict=True)
            ]
        if self.rlimits != other.rlimits:
            steps += [
                ("rlimit", (number, *limits))
                for number, limits, before in zip(_RLIMITS, self.rlimits, other.rlimits, strict=True)
                if limits != before
            ]
        if self.nice != other.nice:
            steps.append(("nice", (self.nice,)))
        if self.affinity != other.affinity:
            steps.append(("cpu_affinity", tuple(sorted(self.affinity))))
        return steps


def environment() -> dict[bytes, bytes]:
    """Return the environment of this process; not to be changed."""
    # The public way decodes and encodes each variable again, at each launch.
    data: dict[bytes, bytes] = getattr(os.environb, "_data", None) or dict(os.environb)
    return data


def sees_its_children() -> bool:
    """Tell whether /proc is that of the PID namespace in which this thread's children are."""
    own, theirs = (b"%s/%s" % (_FOLDER, name) for name in (b"pid", b"pid_for_children"))
    try:
        is_theirs = not os.path.lexists(theirs) or os.readlink(own) == os.readlink(theirs)
    except FileNotFoundError:  # a new one, without a first process (F62)
        return False
    return is_theirs and os.readlink("/proc/self") == str(os.getpid())


def _namespaces() -> list[bytes]:
    try:
        folder = os.open(_FOLDER, DIRECTORY)
    except FileNotFoundError as error:
        raise GuardError(f"there is no {os.fsdecode(_FOLDER)}: /proc has to be mounted here") from error
    try:
        return [os.readlink(name, dir_fd=folder) for name in _NAMESPACES]
    except FileNotFoundError:
        return []  # as above: no guard is there
    finally:
        os.close(folder)
