"""Processes that are held by a pidfd, and what /proc says of them."""

from __future__ import annotations

import errno
import os
import select
from _functools import partial  # type: ignore[import-not-found]  # `functools` itself imports much more

from muontrap.errors import ProtocolError
from muontrap.kernel.process import pidfd_open_if_there, pidfd_send_signal
from muontrap.logic.procfs import parse_children, parse_stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

# What a file below /proc/PID says when its process has gone, on opening or on reading; and where hidepid=1
# hides one of another user, which is found as long as its parent is not: then it is the guard's child.
GONE = (FileNotFoundError, ProcessLookupError, PermissionError)
_READ_SIZE = 8192
_SIGSTOP = 19
# This process can have no more descriptors, or no process can; or the kernel has no memory.
NO_MORE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
# For who looks at those that are held: a file of /proc, and one more.
_SPARE = 2
_HAS_CHILDREN_FILE = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


class Held:
    """A process that can't be confused with another: its pidfd was open before it was looked at."""

    __slots__ = ("fd", "pid")

    def __init__(self, pid: int, fd: int) -> None:
        self.pid: int = pid
        self.fd: int = fd

    @classmethod
    def open(cls, pid: int) -> Held | None:
        """Return process `pid`, None when there is none."""
        fd = pidfd_open_if_there(pid)
        return None if fd is None else cls(pid, fd)

    @classmethod
    def open_if(cls, pid: int, is_meant: Callable[[], bool]) -> Held | None:
        """Return process `pid` if it is the one that is meant now, when the pid can't become another's."""
        held = cls.open(pid)
        if held:
            try:
                if is_meant():
                    return held
            except BaseException:
                held.close()
                raise
            held.close()
        return None

    def is_unreaped(self) -> bool:
        """Tell whether its pid is still its own."""
        try:
            return pidfd_send_signal(self.fd, 0)
        except PermissionError:
            return True

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)


class Pack(list[Held]):
    """Processes held together, and let go of together.

    Attributes:
        lacking: None if these are all that were looked for; else why not: there were too few descriptors
            (when those that are held are dead, and let go of, the next look finds more), they forked
            and exited too fast (`EAGAIN`), or the kernel had no memory.
    """

    lacking: OSError | None = None

    def take(self, opened: Iterable[Held | None]) -> None:
        """Take in what an iterator opens, but for what is here already."""
        here = {held.pid for held in self}
        try:
            for held in opened:
                if held and held.pid in here:
                    held.close()
                elif held:
                    here.add(held.pid)
                    self.append(held)
        except OSError as error:
            if error.errno not in (*NO_MORE, errno.EAGAIN):
                raise
            self.lacking = error
            if error.errno in NO_MORE:
                for held in self[-_SPARE:]:
                    held.close()
                del self[-_SPARE:]

    def __enter__(self) -> Pack:
        return self

    def __exit__(self, *_: object) -> None:
        for held in self:
            held.close()


def room() -> Iterator[None]:
    """Open nothing, but fail like what does, unless there is room for whoever looks at what is held."""
    for fd in os.pipe2(os.O_CLOEXEC):
        os.close(fd)
    yield None


def read(path: str) -> bytes:
    """Return a file of /proc that the kernel writes in one piece: all but lists of processes."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_from(fd)
    finally:
        os.close(fd)


def read_from(fd: int) -> bytes:
    """Return the same, of one that is open, from its beginning."""
    text = chunk = os.pread(fd, _READ_SIZE, 0)
    while len(chunk) == _READ_SIZE:
        chunk = os.pread(fd, _READ_SIZE, len(text))
        text += chunk
    return text


def stat(pid: int) -> tuple[str, int, int] | None:
    """Return (state, parent's pid, start in ticks since boot), None for a process that has gone."""
    try:
        return parse_stat(read(f"/proc/{pid}/stat"))
    except (*GONE, ProtocolError):
        return None


# Of a process that /proc hides: later than all, so that it may be any command's.
_HIDDEN = 2**64


def start_of(pid: int) -> int:
    """Return when a process began, in ticks since boot; the highest number if it is hidden, or gone."""
    seen = stat(pid)
    return seen[2] if seen else _HIDDEN


def is_same(pid: int, start: int) -> bool:
    """Tell whether a pid is still that of the process that began at that time."""
    return start_of(pid) == start


def pids() -> list[int]:
    """Return the pids of all processes that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def children(pid: int) -> list[int]:
    """Return the children of all threads of `pid`: a zombie leader's hang on its other threads."""
    try:
        if _HAS_CHILDREN_FILE:
            threads = os.listdir(f"/proc/{pid}/task")
            return [child for thread in threads for child in _children_of_thread(pid, thread)]
    except GONE:
        return []
    return [other for other in pids() if (stat(other) or ("", 0, 0))[1] == pid]


def _children_of_thread(pid: int, thread: str) -> list[int]:
    try:
        fd = os.open(f"/proc/{pid}/task/{thread}/children", os.O_RDONLY | os.O_CLOEXEC)
    except GONE:
        return []
    try:
        return read_children(fd)
    except GONE:
        return []
    finally:
        os.close(fd)


# The kernel gives as many whole lines as fit a page (seq_file): with less, they were all (F59).
_WHOLE = 4000


def read_children(fd: int) -> list[int]:
    """Return the pids in an open /proc/PID/task/TID/children, which comes in pages."""
    text = chunk = os.pread(fd, 65536, 0)
    while len(chunk) > _WHOLE:
        chunk = os.pread(fd, 65536, len(text))
        text += chunk
    return parse_children(text)


def descendants(
    roots: Iterable[Held], known: set[int] | None = None, *, stop: bool = False
) -> Iterator[Held]:
    """Yield what hangs below the roots, opened; without them.

    A pid from a list of children may be another's by the time it is opened: it counts only if it
    is then a child of a parent that has not been reaped.  Otherwise it was adopted meanwhile, and
    the next pass finds it.

    Args:
        roots: where to begin.
        known: pids that are passed over; those that are found are added.
        stop: send SIGSTOP to each before its children are listed: then it is there to the end, and
            forks no more, but for a fork(2) that is under way (F63).
    """
    parents = list(roots)
    known = set() if known is None else known
    known.update(held.pid for held in parents)
    while parents:
        parent = parents.pop()
        if stop:
            send([parent], _SIGSTOP)
        for pid in children(parent.pid):
            child = None if pid in known else Held.open_if(pid, partial(_is_child, pid, parent))
            if child:
                known.add(pid)
                parents.append(child)
                yield child


def _is_child(pid: int, parent: Held) -> bool:
    seen = stat(pid)
    return seen is not None and seen[1] == parent.pid and parent.is_unreaped()


def send(found: Iterable[Held], *signums: int) -> list[int]:
    """Send signals, in order, to each; return the pids that this process may not signal."""
    refused = []
    for held in found:
        try:
            for signum in signums:
                pidfd_send_signal(held.fd, signum)
        except PermissionError:
            refused.append(held.pid)
    return refused


def living(found: Iterable[Held], timeout: float = 0) -> list[int]:
    """Return the pids of those with a living thread, after at most `timeout` s in which none dies."""
    pids_by_fd = {held.fd: held.pid for held in found}
    poll = select.poll()
    for fd in pids_by_fd:
        poll.register(fd, select.POLLIN)
    for fd, _ in poll.poll(int(timeout * 1000)):
        del pids_by_fd[fd]
    return list(pids_by_fd.values())
