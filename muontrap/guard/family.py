"""The guard's children: main processes, and the orphans it adopted as a subreaper."""

from __future__ import annotations

import os
import time

from muontrap.containment.processes import (
    Held,
    Pack,
    children,
    descendants,
    is_same,
    read,
    read_children,
    room,
    start_of,
    stat,
)
from muontrap.kernel import signals
from muontrap.kernel.process import is_dead
from muontrap.logic.ledger import Ledger
from muontrap.logic.ownership import claimants
from muontrap.logic.procfs import parse_last_pid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from muontrap.containment.groups import Group
    from muontrap.containment.tagged import TagReader
    from muontrap.logic.tags import Format


# However long it takes to look at all processes.
_LONGEST_REST = 0.02
# No machine starts four million processes a second.
_SECONDS_PER_PID = 2.5e-7


class Orphan:
    """An adopted child, with the tag and the start that it had when it was first seen."""

    __slots__ = ("refused", "spared", "start", "tag")

    def __init__(self, tag: tuple[int, int] | None, start: int) -> None:
        self.tag: tuple[int, int] | None = tag
        self.start: int = start
        self.spared: bool = False
        self.refused: bool = False  # it could not be signalled: it is tried again


class Family:
    """Who belongs to which running command.

    Attributes:
        mains: a command's number -> its main process.
        has_news: whether a child has died since all were listed.
    """

    def __init__(self, guard_id: int, reader: TagReader) -> None:
        self._pid = os.getpid()
        self._guard_id = guard_id
        self._reader = reader
        self._ledger = Ledger(int(read("/proc/sys/kernel/pid_max")) * _SECONDS_PER_PID)
        self._orphans: dict[int, Orphan] = {}
        self._starts: dict[int, int] = {}
        self._released: set[int] = set()
        # pid -> start of what ended commands were not permitted to signal, and numbers of such commands
        self._untouchable: dict[int, int] = {}
        self._marks_left: set[int] = set()
        self.mains: dict[int, Held] = {}
        self._main_pids: set[int] = set()
        self.has_news: bool = False
        # number -> pids with its tag, listed after its main process had died; to be used once
        self._listed: dict[int, list[int]] = {}
        self._rests_until = 0.0
        self._groups: dict[int, Group] = {}
        self._children = _open_own_children()
        self._loadavg = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
        # lxcfs puts a file of its own over this one.
        self._has_last_pid = os.fstat(self._loadavg).st_dev == os.stat("/proc/self").st_dev

    def next_number(self, last: int, form: Format | None) -> int:
        """Return a number that no running command has, nor what an ended one has left alone.

        Raises `BlockingIOError` when there is none.
        """
        if form is None:
            return last + 1
        try:
            left = self._released or self._marks_left
            return form.next_number(last, self._used() if left else self.mains)
        except BlockingIOError:
            found = self._reader.numbers(self._guard_id).keys()
            self._released &= found
            self._marks_left &= found
            return form.next_number(last, self._used())

    def _used(self) -> set[int]:
        return self.mains.keys() | self._released | self._marks_left

    def add(self, number: int, main: Held, group: Group | None) -> None:
        """Take in a command, which may have a cgroup."""
        self.mains[number] = main
        self._main_pids.add(main.pid)
        if group:
            self._groups[number] = group
        self._ledger.launched(main.pid)

    def remove(self, number: int, *, spare: bool, not_permitted: Mapping[int, int]) -> None:
        """Let go of a command that has ended; `spare` what is left of it, or kill it from now on.

        What it was not permitted to signal (pid -> start) is left alone, and is no other command's.
        """
        if not_permitted:
            self._untouchable.update(not_permitted)
            if not spare:
                self._marks_left.add(number)
            self.has_news = True  # its main process may be among the children for longer
            for pid in not_permitted.keys() & self._orphans.keys():
                self._orphans[pid].refused |= is_same(pid, not_permitted[pid])
        if spare:
            self._adopt()
            for orphan in self._orphans.values():
                orphan.spared |= number in self._claimants(orphan)
            self._released.add(number)
        del self.mains[number]
        # Not without this one alone: its pid, if it was reaped and is still hunted, may be another's.
        self._main_pids = {main.pid for main in self.mains.values()}
        self._listed.pop(number, None)
        self._groups.pop(number, None)
        self._starts.pop(number, None)
        if self._orphans or not_permitted:
            self.reap()

    def reap(self) -> None:
        """Reap orphans that have died, and kill those that belong to nobody."""
        if self.has_news:
            self._adopt()
        for pid in list(self._orphans):
            if os.waitpid(pid, os.WNOHANG)[0]:
                del self._orphans[pid]
        for pid, orphan in self._orphans.items():
            if not orphan.spared and (orphan.refused or not self._claimants(orphan)):
                _kill(pid, orphan)

    def left_nothing(self, number: int, launched: float) -> bool:
        """Tell whether it is proved, without a look at all processes, that a dead main process was alone.

        `launched` is the time, in seconds, before there was that process.  The order of pids is not
        enough: who may choose pids (F11) can have hidden a child, and an orphan of another command,
        without a tag, may be this one's by time.
        """
        if not self._has_last_pid:
            return False
        last = parse_last_pid(os.pread(self._loadavg, 256, 0))
        if not self._ledger.never_forked(self.mains[number].pid, last, time.monotonic() - launched):
            return False
        self._adopt()
        group = self._groups.get(number)
        return not (self._orphans and self._heirs(number)) and not (group and group.is_in_use())

    def left_of(self, number: int, strike: Callable[[list[Held]], object]) -> Pack:
        """Return, opened, all processes of a command, dead ones included, without reaping meanwhile.

        Orphans that belong to nobody count as everybody's: none may say "gone" while they die.
        Whether the main process is dead is asked first: then what it forked is among the children.
        `strike` gets these as soon as they are known: what forks and exits again and again has to be
        hit before its next fork, and to look at all processes of the machine takes longer.
        """
        main, group = self.mains[number], self._groups.get(number)
        main_is_dead = is_dead(main.fd)
        self._adopt()
        roots = ([] if main_is_dead else [main.pid]) + self._heirs(number)
        found = Pack()
        found.take(map(Held.open, roots))
        strike(found)
        found.take(descendants(found))
        found.take(self._tagged(number) if main_is_dead else self._reader.all(self._guard_id, number))
        if group:
            found.take(group.members())
        found.take(room())
        return found

    def is_better_at(self, number: int, now: float) -> float:
        """Return when to look for what an ended command has left: now, unless others just were looked for.

        Where many commands end at nearly the same time, so half of the time is left for the others to
        end as well, and then one look is for all of them.
        """
        return now if number in self._listed else max(now, self._rests_until)

    def _heirs(self, number: int) -> list[int]:
        """Return the orphans that may be a command's, or are nobody's."""
        return [
            pid
            for pid, orphan in self._orphans.items()
            if not (orphan.spared or orphan.refused) and self._claimants(orphan) <= {number}
        ]

    def _tagged(self, number: int) -> Iterator[Held | None]:
        """Yield what carries the tag of a command whose main process has died.

        Commands that end together share one look at all processes of the machine: for each, it is a
        proof as long as its main process was dead before.
        """
        if number not in self._listed:
            began = time.monotonic()
            # By descriptor: the pid of one that is reaped, and still hunted, may be another's.
            dead = [each for each, main in self.mains.items() if is_dead(main.fd)]
            found = self._reader.numbers(self._guard_id)
            self._listed.update((each, found.get(each, [])) for each in dead)
            ended = time.monotonic()
            self._rests_until = ended + min(ended - began, _LONGEST_REST)
        for pid in self._listed.pop(number, []):
            if pid != self.mains[number].pid:  # known to be dead before: no reason for another look
                yield self._reader.still(pid, self._guard_id, number)

    def _adopt(self) -> None:
        """Take in children that are new.  The list is exact: only this thread reaps."""
        self.has_news = False
        listed = children(self._pid) if self._children is None else read_children(self._children)
        for pid in set(listed).difference(self._orphans, self._main_pids):
            tag = self._reader.tag_of(pid)
            start = 0 if tag and pid not in self._untouchable else start_of(pid)
            self._orphans[pid] = orphan = Orphan(tag, start)
            orphan.refused = self._untouchable.pop(pid, None) == orphan.start
            if tag and tag[0] == self._guard_id and tag[1] in self._marks_left:
                _kill(pid, orphan)  # now: it may not be permitted either, and is no other command's

    def _claimants(self, orphan: Orphan) -> frozenset[int]:
        if orphan.tag and orphan.tag[0] == self._guard_id and orphan.tag[1] in self._released:
            return frozenset((orphan.tag[1],))
        if not orphan.tag:
            for number, main in self.mains.items():
                if number not in self._starts:
                    seen = stat(main.pid)
                    self._starts[number] = seen[2] if seen else 0
        running = dict.fromkeys(self.mains, 0) | self._starts
        return claimants(orphan.tag, orphan.start, self._guard_id, running)


def _kill(pid: int, orphan: Orphan) -> None:
    """Kill a child that was not reaped yet: the pid is its own."""
    try:
        os.kill(pid, signals.SIGKILL)
    except PermissionError:
        orphan.refused = True


def _open_own_children() -> int | None:
    """Open the list of this process's children, None for a kernel without CONFIG_PROC_CHILDREN."""
    try:
        return os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
