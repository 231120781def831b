"""Processes found by their tag, wherever they hang."""

from __future__ import annotations

import errno
import os
import time
from _functools import partial  # type: ignore[import-not-found]  # `functools` itself imports much more

from muontrap.containment.processes import GONE, Held, Pack, descendants, living, pids, read, send
from muontrap.kernel.process import RLIM_INFINITY, RLIMIT_LOCKS, get_limit, get_soft_limit, set_limit
from muontrap.logic.procfs import parse_soft_limit
from muontrap.logic.tags import NARROW, WIDE, Format

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterator

_SIGKILL = 9


def usable_format() -> Format | None:
    """Return the widest tag format that this process can put on itself, None if it can't at all.

    A 32-bit kernel cuts values to 32 bits, a low hard limit refuses them: so it is tried out.
    """
    soft, hard = get_limit(0, RLIMIT_LOCKS)
    for form in (WIDE, NARROW):
        probe = form.encode(0, 1)
        if hard < probe:
            continue
        try:
            set_limit(RLIMIT_LOCKS, probe, hard)
            if get_limit(0, RLIMIT_LOCKS)[0] == probe:
                return form
        finally:
            set_limit(RLIMIT_LOCKS, soft, hard)
    return None


class TagReader:
    """Reads the tags of other processes, in one format; None reads nothing."""

    def __init__(self, form: Format | None) -> None:
        self.format = form
        # pid -> inode of /proc/PID for processes whose limit had to be read the slow way and was
        # no tag of interest: the inode changes with the process, and the tag comes by birth alone.
        self._uninteresting: dict[int, int] = {}

    def tag_of(self, pid: int) -> tuple[int, int] | None:
        """Return (guard id, number), None for a process without a tag or without life."""
        if self.format is None:
            return None
        try:
            value = get_soft_limit(pid, RLIMIT_LOCKS)
            if value is None:
                return self._read_slowly(pid)
        except GONE:
            return None
        return None if value == RLIM_INFINITY else self.format.decode(value)

    def all(
        self, guard: int, number: int | None = None, *, but: Container[int] = ()
    ) -> Iterator[Held | None]:
        """Yield, opened, all processes that carry the tag of this guard (and command), but for some pids.

        The newest come first: they fork and exit soonest.
        """
        for pid in reversed(self._pids()):
            if pid not in but and self._matches(pid, guard, number):
                yield self.still(pid, guard, number)

    def still(self, pid: int, guard: int, number: int | None) -> Held | None:
        """Return, opened, a process that was found before, if it still is one with that tag."""
        return Held.open_if(pid, partial(self._matches, pid, guard, number))

    def numbers(self, guard: int) -> dict[int, list[int]]:
        """Return the numbers of this guard's commands that any process carries, with the pids."""
        found: dict[int, list[int]] = {}
        for pid in self._pids():
            tag = self.tag_of(pid)
            if tag is not None and tag[0] == guard:
                found.setdefault(tag[1], []).append(pid)
        return found

    def _pids(self) -> list[int]:
        found = pids() if self.format else []
        if len(self._uninteresting) > 2 * len(found):  # most have gone
            there = self._uninteresting.keys() & found
            self._uninteresting = {pid: self._uninteresting[pid] for pid in there}
        return found

    def _matches(self, pid: int, guard: int, number: int | None) -> bool:
        tag = self.tag_of(pid)
        return tag is not None and tag[0] == guard and number in (None, tag[1])

    def _read_slowly(self, pid: int) -> tuple[int, int] | None:
        """Read /proc/PID/limits, 64 us, as prlimit(2) is refused for another user's process."""
        inode = os.stat(f"/proc/{pid}").st_ino
        if self._uninteresting.get(pid) == inode:
            return None
        value = parse_soft_limit(read(f"/proc/{pid}/limits"), b"Max file locks")
        tag = self.format.decode(value) if self.format and value is not None else None
        if tag is None:
            self._uninteresting[pid] = inode
        return tag


def kill_guardless(reader: TagReader, guard: int, bound: float) -> tuple[int, ...]:
    """Kill all that carries a guard's tag, and what hangs below it, for at most `bound` s.

    Returns:
        The pids that could not be killed; normally none.

    Raises:
        OSError: whether anything is left can't be seen: there are too few descriptors, or no
            memory (`EMFILE`, `ENFILE`, `ENOMEM`), or it forks and exits too fast (`EAGAIN`).
    """
    deadline = time.monotonic() + bound
    known_dead: set[int] | None = None
    lacking: OSError | None = None
    passed_over: set[int] = set()  # dead, but not reaped: they would take the place of others
    while True:
        with Pack() as found:
            try:
                found.take(_stopped(reader.all(guard, but=passed_over), passed_over))
                # The children of forks that were under way.
                found.take(descendants(found, set(passed_over), stop=True))
            finally:
                send(found, _SIGKILL)
            alive = living(found)
            # One that was alive when /proc was listed may have forked and died since.
            dead = {held.pid for held in found}.difference(alive)
            lacking = found.lacking or lacking if passed_over else found.lacking
            if not alive and not lacking and dead <= (known_dead or set()):
                return ()
            if known_dead is not None and time.monotonic() > deadline:
                if not alive:
                    raise lacking or OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                return tuple(alive)
            known_dead = dead
            passed_over = passed_over | dead if found.lacking else set()
            living(found, 0.01 if alive or found.lacking else 0)


def _stopped(opened: Iterator[Held | None], passed_over: set[int]) -> Iterator[Held]:
    """Yield each, and what hangs below it but for some pids, stopped as soon as it is found.

    What forks and exits all the time would be elsewhere by the time all processes of the machine
    have been looked at.
    """
    known = set(passed_over)
    for held in opened:
        if held and held.pid in known:
            held.close()
        elif held:
            yield held
            yield from descendants([held], known, stop=True)
