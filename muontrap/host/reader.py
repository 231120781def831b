"""A command's output read piece by piece, in the thread of who handles it."""

from __future__ import annotations

import os
import time
from functools import partial
from itertools import chain
from operator import itemgetter

from muontrap.errors import GuardDied
from muontrap.host.link import poll_for, poll_ms
from muontrap.host.sinks import make_splitter
from muontrap.host.streams import CHUNK, left_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    import select
    from collections.abc import Iterable, Iterator
    from typing import Any

    from muontrap.host.status import Status
    from muontrap.host.streams import Pipes
    from muontrap.logic.command import Command
    from muontrap.logic.lines import LineSplitter, TextSplitter

# Who asks for a window as large as that has lines 10 % faster than in pieces of CHUNK.
_MOST = 2 * CHUNK
# Between two looks at whether the command is gone, and others hold the pipe.
_READS = 64


def chunks(
    command: Command, pipes: Pipes, status: Status, targets: tuple[int, ...]
) -> Iterator[tuple[int, bytes]]:
    """Yield (target, bytes), no more at once than the window, until end of file or of the command.

    What was yielded is handled when the next is asked for: between two, nothing is read.
    """
    with status.use():
        if status.is_closed:
            raise _closed(status)
        # Descriptors of our own: another thread may close the process, and open others under their numbers.
        own = {os.dup(fd): target for target in targets if (fd := pipes.fd(target)) is not None}
    fds, size = dict(own), min(pipes.window, _MOST)
    for fd, target in own.items():
        pipes.iterated[fd] = target
        os.set_blocking(fd, False)
    try:
        yield from _pieces(command, pipes, status, fds, size)
    except GuardDied:
        yield from _rest(pipes, status, fds, size)
        raise
    finally:
        for fd, target in own.items():
            del pipes.iterated[fd]
            if target not in pipes.iterated.values():  # which would block as well
                os.set_blocking(fd, True)
            os.close(fd)


def _pieces(
    command: Command, pipes: Pipes, status: Status, fds: dict[int, int], size: int
) -> Iterator[tuple[int, bytes]]:
    poll, read, open_fds = poll_for([status.fileno(), *fds]), os.read, pipes.fds
    reads = _READS if len(fds) == 1 else 1
    while fds:
        came = False
        for fd, target in list(fds.items()):
            for _ in range(reads):  # until nothing is there: that costs less than to be woken for each write
                try:
                    data = read(fd, size)
                except BlockingIOError:
                    break
                if not data:
                    del fds[fd]
                    poll.unregister(fd)
                    break
                came = True
                yield target, data
                if target not in open_fds:
                    raise _closed(status)
        # At the end of file too: a guard's death is one.
        if _has_ended(command, status, poll, waits=bool(fds) and not came):
            yield from _rest(pipes, status, fds, size)
            return


def _has_ended(command: Command, status: Status, poll: select.poll, *, waits: bool) -> bool:
    """Wait for output, or only look; return whether nothing of the command is left."""
    now = time.monotonic()
    patience = command.patience(now) if waits else None
    while True:
        deadline = patience.deadline if patience else None
        until = status.sooner(deadline if waits else now)
        with status.use():
            if status.is_closed:
                raise _closed(status)
            events = poll.poll(poll_ms(None if until is None else until - time.monotonic()))
        if status.is_closed:
            raise _closed(status)
        if any(fd == status.fileno() for fd, _ in events) and status.has_ended():
            return True
        if not waits or any(fd != status.fileno() for fd, _ in events):
            return False
        now = time.monotonic()
        status.is_late(None)
        if patience and patience.is_late(now):
            status.ask(-1.0, b"inactivity")
            patience = None


def _rest(pipes: Pipes, status: Status, fds: dict[int, int], size: int) -> Iterator[tuple[int, bytes]]:
    """Yield what the command left in the pipes: others may write on."""
    for fd, target in fds.items():
        left = left_in(fd)
        while left > 0:
            data = os.read(fd, min(size, left))
            left -= len(data)
            yield target, data
            if target not in pipes.fds:
                raise _closed(status)


def _closed(status: Status) -> ValueError:
    return ValueError(f"the output of command {status.pid} was closed while it was read")


def lines(
    command: Command, pieces: Iterator[tuple[int, bytes]], targets: tuple[int, ...], *, keepends: bool
) -> Iterator[Any]:
    """Return the lines of the streams' `chunks`, with two of them (target, line)."""
    make = partial(make_splitter, command, as_text=command.is_text, keepends=keepends)
    lists = _lists_of_lines({target: make() for target in targets}, pieces)
    if len(targets) == 1:
        # Twice as fast as a generator that is gone through for each line.
        return chain.from_iterable(map(itemgetter(1), lists))
    return ((target, line) for target, found in lists for line in found)


def _lists_of_lines(
    splitters: dict[int, LineSplitter | TextSplitter], pieces: Iterator[tuple[int, bytes]]
) -> Iterator[tuple[int, Iterable[Any]]]:
    died = None
    try:
        for target, data in pieces:
            yield target, splitters[target].feed(data)
    except GuardDied as error:
        died = error
    for target, splitter in splitters.items():
        yield target, splitter.finish()
    if died:
        raise died
