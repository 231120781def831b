"""The guard's children: whose they are when numbers, and pids, are used again."""

from __future__ import annotations

from typing import Any

import pytest
from arena import Arena
from hostlib import os, say, signal


def host(*, is_the_same: bool) -> None:
    """A process of command 2; command 1 was not permitted to signal one that has, or had, its pid."""
    from muontrap.containment.processes import Held, stat
    from muontrap.guard.family import Family

    def child() -> int:
        pid = os.fork()
        if not pid:
            signal.pause()
        return pid

    mains = [child(), child()]
    orphan = child()

    class Tags:
        def tag_of(self, _: int) -> tuple[int, int]:
            return (7, 2)

    tags: Any = Tags()
    family = Family(7, tags)
    for number, main in enumerate(mains, 1):
        held = Held.open(main)
        assert held
        family.add(number, held, None)
    family.has_news = True
    family.reap()
    seen = stat(orphan)
    assert seen
    heirs = [orphan in family._heirs(2)]
    family.remove(1, spare=False, not_permitted={orphan: seen[2] + (not is_the_same)})
    heirs.append(orphan in family._heirs(2))
    say(heirs=heirs)
    for pid in (*mains, orphan):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("is_the_same", [True, False])
def test_a_pid_that_was_not_permitted_may_be_anothers(arena: Arena, is_the_same: bool) -> None:
    assert arena.host(host, is_the_same=is_the_same).hear() == {"heirs": [True, not is_the_same]}
    arena.wait_left()
