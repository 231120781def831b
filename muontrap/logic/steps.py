"""Steps from fork to `execve`: what there is, and the one legal order.

The host makes the list, the guard performs it.  A step is (name, ints).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Step = tuple[str, tuple[int, ...]]

# In the order of execution.  A session or a process group, which every command has, comes before all;
# the directory, which it has too, and the descriptors before the credentials change, as in `subprocess`.
NAMES = (
    "join",  # the command's cgroup: all that it forks is born there
    "nice",  # (nice value,)
    "cpu_affinity",  # CPU numbers
    "oom_score_adj",  # (value,)
    "descriptors",
    "foreground",  # (which of the descriptors is the terminal,)
    "rlimit",  # (resource, soft, hard), once for each; -1 is infinity
    "setgroups",  # group ids
    "setresgid",  # (gid,)
    "setresuid",  # (uid,)
    "no_new_privs",
    "pdeathsig",  # (signal,); a change of credentials would clear it
)
_POSITION = {name: index for index, name in enumerate(NAMES)}
_CREDENTIALS = frozenset(("setgroups", "setresgid", "setresuid"))


def in_order(steps: Iterable[Step]) -> list[Step]:
    """Return the steps as they have to be performed; `KeyError` for one that does not exist."""
    return sorted(steps, key=lambda step: _POSITION[step[0]])


def can_spawn(steps: Sequence[Step], targets: Iterable[int], *, session: bool) -> bool:
    """Tell whether no step has to be done in the child by Python.

    `posix_spawn` is for a command without steps.  `subprocess`'s C code can change credentials; it knows
    a new session (and a process group only since Python 3.11), and standard streams alone.
    """
    if not steps:
        return True
    names = {name for name, _ in steps}
    return names <= _CREDENTIALS and session and all(target <= 2 for target in targets)


def in_the_way(targets: Iterable[int], sources: Iterable[int]) -> set[int]:
    """Return the sources that first have to be duplicated to numbers above all targets.

    A source whose number is also a target would be overwritten, or, when it is its own target,
    would stay close-on-exec.
    """
    return set(targets).intersection(sources)
