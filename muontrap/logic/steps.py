"""Steps from fork to `execve`: what there is, and the one legal order.

The host makes the list, the guard performs it.  A step is (name, ints).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Step = tuple[str, tuple[int, ...]]

# (name, may be done on the spawn way: by posix_spawn or CPython's own C code between fork and `execve`,
# or by the guard for itself before and undone after).  The order is that of execution; the directory
# and the descriptors, which every command has, come between "oom_score_adj" and "umask": before the
# credentials change, as in `subprocess`.
ORDER = (
    ("setsid", True),
    ("setpgid", True),
    ("join", False),  # the command's cgroup: all that it forks is born there
    ("nice", False),  # (nice value,)
    ("cpu_affinity", False),  # CPU numbers
    ("oom_score_adj", False),  # (value,)
    ("chdir", True),
    ("descriptors", True),
    ("foreground", False),  # (which of the descriptors is the terminal,)
    ("umask", True),  # (mask,)
    ("rlimit", False),  # (resource, soft, hard), once for each; -1 is infinity
    ("setgroups", True),  # group ids
    ("setresgid", True),  # (gid,)
    ("setresuid", True),  # (uid,)
    ("no_new_privs", False),
    ("pdeathsig", False),  # (signal,); a change of credentials would clear it
)
NAMES = tuple(name for name, _ in ORDER)
_POSITION = {name: index for index, name in enumerate(NAMES)}
_SPAWNABLE = frozenset(name for name, spawnable in ORDER if spawnable)
CREDENTIALS = frozenset(("setgroups", "setresgid", "setresuid"))


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Return the steps as they have to be performed; `KeyError` for one that does not exist."""
    return sorted(steps, key=lambda step: _POSITION[step[0]])


def can_spawn(steps: Iterable[Step], targets: Iterable[int]) -> bool:
    """Tell whether no step has to be done in the child by Python.

    Where credentials change, it is `subprocess`'s C code that makes the child: it knows a new session
    (and a process group only since Python 3.11), and standard streams alone.
    """
    names = {name for name, _ in steps}
    if names.isdisjoint(CREDENTIALS):
        return names <= _SPAWNABLE
    return names <= _SPAWNABLE and "setsid" in names and all(target <= 2 for target in targets)


def in_the_way(targets: Iterable[int], sources: Iterable[int]) -> set[int]:
    """Return the sources that first have to be duplicated to numbers above all targets.

    A source whose number is also a target would be overwritten, or, when it is its own target,
    would stay close-on-exec.
    """
    return set(targets).intersection(sources)
