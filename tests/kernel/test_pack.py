"""Processes that are held together: as many as there are descriptors for, none let go of too soon."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import resource
import subprocess
from collections.abc import Iterator

import pytest

from muontrap.containment.groups import Group
from muontrap.containment.processes import Held, Pack, children, descendants, room


@pytest.fixture
def tree() -> Iterator[list[int]]:
    """The pids of a process, its child, and its grandchild."""
    script = "sh -c 'sleep 1000 & echo; wait' & wait"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE) as root:
        assert root.stdout
        root.stdout.readline()
        (child,) = children(root.pid)
        (grandchild,) = children(child)
        yield [root.pid, child, grandchild]
        for pid in root.pid, child, grandchild:  # each waits for the next, and is there till then
            os.kill(pid, 9)


def test_what_is_a_root_and_below_another_stays_open(
    tree: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a parent of the rest it is asked whether it has been reaped, by its descriptor."""
    asked: list[str] = []
    is_unreaped = Held.is_unreaped

    def ask(held: Held) -> bool:
        with open(f"/proc/self/fdinfo/{held.fd}", encoding="ascii") as info:
            asked.append(next(line for line in info if line.startswith("Pid:")).split()[1])
        assert asked[-1] == str(held.pid)
        return is_unreaped(held)

    monkeypatch.setattr(Held, "is_unreaped", ask)
    with Pack() as pack:
        pack.take(map(Held.open, tree[:2]))
        pack.take(descendants(pack))
        assert [held.pid for held in pack] == tree
        assert not pack.lacking
    assert asked


@pytest.mark.parametrize("free", range(8))
def test_a_pack_says_what_it_lacks_and_leaves_room(tree: list[int], free: int) -> None:
    """For three processes, and two descriptors more for who looks at them."""
    gc.collect()  # no finalizer of another test is to close any in the middle
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = os.listdir("/proc/self/fd")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, files)) + 20, before[1]))
    taken: list[int] = []
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(free):
            os.close(taken.pop())
        with Pack() as pack:
            pack.take(map(Held.open, tree[:1]))
            pack.take(descendants(pack))
            pack.take(room())
            assert bool(pack.lacking) == (free < 5)
            assert len(pack) == (3 if free >= 5 else max(0, min(free - 1, 3) - 2))
            if free >= 2:
                for fd in os.pipe():
                    os.close(fd)
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert os.listdir("/proc/self/fd") == files


def test_a_pack_says_that_the_kernel_had_no_memory(tree: list[int]) -> None:
    def opened() -> Iterator[Held | None]:
        yield from map(Held.open, tree)
        raise OSError(errno.ENOMEM, "")

    with Pack() as pack:
        pack.take(opened())
        assert pack.lacking
        assert pack.lacking.errno == errno.ENOMEM
        assert [held.pid for held in pack] == tree[:1]


class Reading:
    """In the place of a group's directory: who is in it, one time after the other."""

    path = "/somewhere"

    def __init__(self, *times: set[int]) -> None:
        self._times = list(times)

    def pids(self) -> set[int]:
        return self._times.pop(0) if len(self._times) > 1 else self._times[0]


def test_who_comes_to_a_group_while_it_is_read_is_a_member(tree: list[int]) -> None:
    """A link of a chain that forks and exits: it has come, and the one that was there before is gone."""
    first, second, third = tree
    with Pack() as pack:
        pack.take(Group([Reading({first}, {second}, {second})]).members())  # type: ignore[list-item]
        assert [held.pid for held in pack] == [second]
        assert not pack.lacking
    with Pack() as pack:
        readings = [{first}, {second}, {third}] * 5
        pack.take(Group([Reading({first}, {second, third}, *readings)]).members())  # type: ignore[list-item]
        assert {held.pid for held in pack} == {first}
        assert not pack.lacking


def test_a_group_that_is_never_twice_the_same_is_not_known(tree: list[int]) -> None:
    gone = max(tree)
    times = [{gone + number} for number in range(1, 100)]
    with Pack() as pack:
        pack.take(map(Held.open, tree))
        pack.take(Group([Reading(*times)]).members())  # type: ignore[list-item]
        assert pack.lacking
        assert pack.lacking.errno == errno.EAGAIN
        assert [held.pid for held in pack] == tree
