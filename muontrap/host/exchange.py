"""Input and output of a command moved at the same time, until its end: not until end of file."""

from __future__ import annotations

import os
import select
import time

from muontrap.errors import GuardDied
from muontrap.host.kept import Kept
from muontrap.host.link import poll_for, poll_ms
from muontrap.host.streams import CHUNK, encoded, left_in, written_ahead

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol

    from muontrap.host.status import Status
    from muontrap.host.streams import Pipes
    from muontrap.logic.command import Command
    from muontrap.logic.window import Cap, Inactivity

    class Sink(Protocol):
        """Where a stream's bytes go; one that has returned has handled them."""

        def take(self, data: bytes) -> None: ...
        def finish(self) -> None: ...


class TooLate(Exception):
    """Raised by a sink's tick: lines are still to be delivered, and there is no time left."""


class Exchange:
    """What is still to be written, and what is read, in the thread of who waits for the end."""

    _is_stopped = False
    _is_too_late = False
    _input: memoryview | None = None
    _patience: Inactivity | None = None

    def __init__(
        self,
        command: Command,
        pipes: Pipes,
        status: Status,
        sinks: dict[int, Sink] | None = None,
        cap: Cap | None = None,
    ) -> None:
        self._command = command
        self._pipes = pipes
        self._status = status
        self._cap = cap
        self._sinks: dict[int, Sink] = sinks or {}
        self._kept: dict[int, Kept] = {}  # by target: what has no sink, and is returned
        self._open: dict[int, Callable[[bytes], object]] = {}  # by descriptor: what takes the bytes
        for target in (1, 2):
            if target not in pipes.fds:
                continue
            kept = None
            if target not in self._sinks:
                kept = self._kept[target] = Kept(command, pipes.files[target])
            fd = pipes.fd(target)
            if fd is not None:
                self._open[fd] = kept.take if kept else self._sinks[target].take
        self._size = min(pipes.window, CHUNK) if sinks else CHUNK  # what is kept is handled when it is read
        if self._open and command.inactivity_timeout:
            self._patience = command.patience(time.monotonic())

    def communicate(self, data: Any) -> None:
        """Take what to write, which can be said once, and what the user's file objects have read ahead.

        Raises:
            TypeError, ValueError: that can't be written.
        """
        written = memoryview(b"") if data is None else encoded(self._command, data)
        if written and self._input is not None:
            raise ValueError("input can't be given again: communicate goes on with the first")
        if written and self._pipes.fd(0) is None:
            raise ValueError("there is input, but stdin is not PIPE, or was closed")
        self._forget_closed()
        for kept in self._kept.values():
            kept.take_ahead()
        if self._pipes.fd(0) is not None:
            pending = written_ahead(self._pipes.files[0])
            if self._input is None:
                self.feed(memoryview(pending + written) if pending else written)
            elif pending:
                self._input = memoryview(bytes(self._input) + pending)

    def feed(self, data: memoryview) -> None:
        """Take what to write; without anything the command's stdin is closed."""
        self._input = data
        if not data:
            self._pipes.close_one(0)
        elif not self._pipes.files[0]:
            os.set_blocking(self._pipes.fds[0], False)  # for nobody else

    def until_end(self, deadline: float | None) -> bool:
        """Read and write until nothing of the command is left; False when the deadline has passed before."""
        try:
            with self._status.use():
                return not self._is_too_late and self._move(deadline)
        except TooLate:
            self._is_too_late = True
            return False

    def tick(self, tick: Callable[[], None]) -> None:
        """Have this called after each line that a sink delivers: a piece of output may be thousands."""
        for sink in self._sinks.values():
            if hasattr(sink, "tick"):
                sink.tick = tick

    def _move(self, deadline: float | None) -> bool:
        word = self._status.fileno()
        poll = poll_for([word, *self._open])
        stdin = self._pipes.fd(0) if self._input else None
        if stdin is not None:
            poll.register(stdin, select.POLLOUT)
        while True:
            for fd, _ in poll.poll(poll_ms(self._left(deadline))):
                if self._status.is_closed:
                    raise ValueError(f"command {self._status.pid} was closed while it was waited for")
                if fd == word:
                    try:
                        ended = self._status.has_ended()
                    except GuardDied:
                        self._drain(poll)
                        raise
                    if ended:
                        self._drain(poll)
                        if self._cap and self._status.result:
                            self._status.result.dropped = self._cap.dropped
                        return True
                elif not (self._write(fd) if fd == stdin else self._read(fd, self._size)):
                    poll.unregister(fd)
            if self._status.is_late(deadline):
                return False

    def _forget_closed(self) -> None:
        """Read no more what the user has closed: its number may be another file's."""
        still_open = set(map(self._pipes.fd, self._pipes.fds))
        self._open = {fd: take for fd, take in self._open.items() if fd in still_open}
        if not self._open:
            self._patience = None

    def finish(self) -> None:
        """Hand over what the sinks may hold: a last line without an end."""
        for sink in self._sinks.values():
            sink.finish()

    def so_far(self) -> tuple[bytes | None, bytes | None]:
        """Return the bytes kept of stdout and of stderr, None for one that is not captured."""
        stdout, stderr = self._kept.get(1), self._kept.get(2)
        return stdout.so_far() if stdout else None, stderr.so_far() if stderr else None

    def outputs(self) -> tuple[Any, Any]:
        """Return stdout and stderr, decoded if the command's streams are text.

        Raises:
            UnicodeError: as `Kept.text`.
        """
        if not self._command.is_text:
            return self.so_far()
        is_cut = bool(self._cap and self._cap.is_exceeded)
        stdout, stderr = self._kept.get(1), self._kept.get(2)
        return (
            stdout.text(is_cut=is_cut) if stdout else None,
            stderr.text(is_cut=is_cut) if stderr else None,
        )

    def _left(self, deadline: float | None) -> float | None:
        """Return how many seconds to wait; end a command that has been silent for too long."""
        until = self._status.sooner(deadline)
        if self._patience:
            now = time.monotonic()
            if self._patience.is_late(now) and any(map(left_in, self._open)):
                self._patience.restart(now)  # nobody was here to read it
            if self._patience.is_late(now):
                self._patience = None
                self._status.ask(-1.0, b"inactivity")
            else:
                until = min(filter(None, (until, self._patience.deadline)))
        return None if until is None else until - time.monotonic()

    def _drain(self, poll: select.poll) -> None:
        """Read what the command left in the pipes: others may write on."""
        for fd, _ in poll.poll(0):
            left = left_in(fd) if fd in self._open else 0
            while left > 0:
                count = self._read(fd, min(left, self._size))
                if not count:
                    break
                left -= count

    def _read(self, fd: int, size: int) -> int:
        data = os.read(fd, size)
        take = self._open[fd]
        if not data:
            del self._open[fd]
            if not self._open:
                self._patience = None
        elif self._cap:
            take(self._cap.take(data))
            if self._cap.must_stop and not self._is_stopped:
                self._is_stopped = True
                self._status.ask(-1.0, b"max-output")
        else:
            take(data)
        if self._patience:
            self._patience.restart(time.monotonic())
        return len(data)

    def _write(self, fd: int) -> bool:
        """Write some input; return whether there is more."""
        assert self._input is not None
        # Others may have the user's pipe: it has to block, but does not for so much, pipe(7).
        size = select.PIPE_BUF if self._pipes.files[0] else CHUNK
        try:
            self._input = self._input[os.write(fd, self._input[:size]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self._input = self._input[:0]
        if not self._input:
            self._pipes.close_one(0)
        return bool(self._input)
