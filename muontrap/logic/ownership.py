"""Whose is an orphan that the guard adopted: the rule of tag and time.

Descent, the third mark, needs no rule: what hangs below a process of a command is of that command.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

NOBODY: frozenset[int] = frozenset()


def claimants(
    tag: tuple[int, int] | None, start: int, guard: int, running: Mapping[int, int]
) -> frozenset[int]:
    """Return the numbers of the running commands that an orphan may belong to.

    Args:
        tag: (guard id, command number) that the orphan carries, None for no valid tag.
        start: when the orphan started, in clock ticks since boot.
        guard: id of the guard that adopted it.
        running: command number -> when its main process started, in the same ticks.

    It has to die when the last of them ends.  No claimants: it has to die at once, as what a
    command that has ended, or a nested guard that is dead, left behind.
    """
    if tag is not None:
        return frozenset((tag[1],)) if tag[0] == guard and tag[1] in running else NOBODY
    return frozenset(number for number, began in running.items() if began <= start)
