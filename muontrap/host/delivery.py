"""The output of one command on its way to callbacks, in turns that the pump gives it."""

from __future__ import annotations

import operator
import os
import sys
import threading
import time
from functools import partial

from muontrap.errors import GuardDied
from muontrap.host import pump
from muontrap.host.streams import CHUNK, left_in
from muontrap.logic.window import Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from muontrap.host.exchange import Sink
    from muontrap.host.status import Status
    from muontrap.host.streams import Pipes
    from muontrap.logic.command import Command

# Seconds for which a flood may go on before others have their turn.
_TURN = 0.0001


class Reader:
    """The output of one command on its way to callbacks: `Process.reader`; no public constructor.

    Attributes:
        error: what a callback has raised, after which nothing is read; `Process.wait` raises it.
    """

    __slots__ = (
        *("__weakref__", "_caller", "_done", "_explicit", "_is_done", "_is_over", "_is_paused", "_left"),
        *("_patience", "_pump", "_sinks", "_status", "_trace", "_window"),
        *("error", "fired", "is_awaited", "is_busy", "is_slow"),
    )

    error: BaseException | None

    def __init__(
        self, command: Command, pipes: Pipes, status: Status, sinks: dict[int, Sink], *, explicit: bool
    ) -> None:
        self.error = None
        self._trace: TracebackType | None = None
        self._is_done = False
        self._is_over = False  # the pump has nothing of it
        self._status = status
        self._explicit = explicit
        self._window = Window(pipes.window)
        self._sinks: dict[int, Sink] = {}  # of the streams that are not at their end, by descriptor
        for target, sink in sinks.items():
            fd = pipes.fds[target]
            os.set_blocking(fd, False)
            self._sinks[fd] = sink
        self._caller: int | None = None  # the thread in which a callback is called
        self._left: dict[int, int] | None = None  # bytes to be read of a command that is gone
        self._is_paused = False
        self._patience = command.patience(time.monotonic())
        self.fired: tuple[int, ...] = ()  # descriptors that were ready, and are not waited for meanwhile
        self.is_busy: bool = False  # it has a turn
        self.is_slow: bool = False  # its last turn was
        self.is_awaited: bool = False  # the pump has its deadline
        self._pump = pump.current()
        self._done = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._pump.add(self, [status.fileno(), *self._sinks])
        except BaseException:
            self.close()
            raise
        self._expect()

    @property
    def unhandled(self) -> int:
        """Bytes that callbacks were given, and that were not acknowledged."""
        return self._window.unhandled

    def ack(self, count: int) -> None:
        """Acknowledge that so many more bytes were handled, with `explicit_ack=True`.

        Raises:
            ValueError: so many were not given; or they are handled when the callback returns.
        """
        if not self._explicit:
            raise ValueError("bytes are handled when the callback returns: explicit_ack=True was not given")
        count = operator.index(count)
        with self._pump.lock:
            self._window.handled(count)
            if self._is_paused:
                self._is_paused = False
                self._pump.arm(self)
                self._expect()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `is_done` is true."""
        return self._done

    @property
    def is_done(self) -> bool:
        """Whether the command has ended and callbacks have all, or one has failed."""
        return self._is_done

    @property
    def is_stalled(self) -> bool:
        """Whether nothing more is read until something is acknowledged."""
        return self._is_paused

    @property
    def is_calling(self) -> bool:
        """Whether this thread is within a callback of this command."""
        return self._caller == threading.get_ident()

    @property
    def is_within_pump(self) -> bool:
        """Whether this thread can't wait for callbacks: it is a finalizer that came between them."""
        return not self._is_over and self._pump.is_within

    def close(self) -> None:
        """Read no more. For `Process.close`."""
        # In a forked child, and in a host that ends, there may be nobody to release the lock.
        if self._status.link.is_closed or sys.is_finalizing():
            return
        if not self._is_over:
            with self._pump.lock:
                _ = self._end()
        done, self._done = self._done, -1
        if done >= 0:
            self._status.close_unused(partial(os.close, done))

    def leave(self, close: Callable[[], None]) -> None:
        """Have this called where locks may be waited for. For a finalizer, which runs inside any of them."""
        if self._is_over or self._status.link.is_closed or sys.is_finalizing():
            close()
        else:
            self._pump.leave(close)

    def fail(self, error: BaseException) -> None:
        """Read no more, for that reason."""
        with self._pump.lock:
            if not self._is_over:
                self.error, self._trace = error, error.__traceback__
            _ = self._end()

    def check(self) -> None:
        """Raise what a callback has raised, from where it did, however often that is asked."""
        if self.error:
            raise self.error.with_traceback(self._trace)

    def deadline(self) -> float | None:
        """Return when the command will have been silent for too long."""
        return self._patience.deadline if self._patience and self._sinks else None

    def late(self) -> None:
        """End the command, if it was silent for too long."""
        with self._pump.lock:
            if self._patience and self._sinks and self._patience.is_late(time.monotonic()):
                if any(map(left_in, self._sinks)):  # it was waiting for its turn
                    self._expect()
                else:
                    self._patience = None
                    self._status.ask(-1.0, b"inactivity")

    def wants(self, fd: int) -> bool:
        """Tell whether one of its descriptors is to be waited for now."""
        return not self._is_paused or fd not in self._sinks

    def turn(self, fd: int) -> None:
        """Do what one descriptor is ready for: it is the status, or has output for a callback."""
        self._caller = threading.get_ident()
        try:
            if fd == self._status.fileno():
                self._hear()
            else:
                until = time.monotonic() + _TURN
                while self._read(fd) and time.monotonic() < until:
                    pass
        except BaseException as error:  # the user's: told by `Process.wait`
            self.fail(error)
        finally:
            self._caller = None

    def _hear(self) -> None:
        try:
            if not self._status.has_ended():
                return
        except (GuardDied, OSError):
            pass  # who waits for the command is told
        with self._pump.lock:
            if self._is_over:
                return  # closed meanwhile: the descriptors' numbers may be another's
            self._pump.remove(self, [self._status.fileno()])
            self._left = {fd: left_in(fd) for fd in self._sinks}
            if not self._left:
                _ = self._end()
        for fd, count in list(self._left.items()):
            if not count:
                self._finish(fd)

    def _read(self, fd: int) -> bool:
        """Hand over what one read gives; return whether there may be more, and room for it."""
        with self._pump.lock:
            sink, data = self._sinks.get(fd), None
            if sink:
                size = min(self._window.room, CHUNK, self._left[fd] if self._left is not None else CHUNK)
                data = self._next(fd, size)
        if sink is None or data is None:
            return False
        if data:
            sink.take(data)
        with self._pump.lock:
            if self._is_over:
                return False
            is_end = self._note_handled(fd, len(data))
        if is_end:
            self._finish(fd)
        return len(data) == size and not is_end

    def _next(self, fd: int, size: int) -> bytes | None:
        """Return what there is to read, empty at the end of file; None if there is nothing, or no room."""
        if not size:
            return None
        try:
            data = os.read(fd, size)
        except BlockingIOError:
            return None
        self._window.took(len(data))
        if self._patience:
            self._patience.pause()
        return data

    def _note_handled(self, fd: int, count: int) -> bool:
        """Note what a callback was given; return whether the stream is at its end."""
        if count and not self._explicit:
            self._window.handled(count)
        self._is_paused = not self._window.room
        if self._window.room:  # even if a finalizer has acknowledged just now
            self._is_paused = False
            self._expect()
        if self._left is None:
            return not count
        self._left[fd] -= count
        return not count or not self._left[fd]

    def _expect(self) -> None:
        if self._patience:
            self._patience.restart(time.monotonic())
            self._pump.expect(self)

    def _finish(self, fd: int) -> None:
        """A stream is at its end."""
        sink = self._sinks.get(fd)
        if sink is None:
            return  # closed meanwhile
        sink.finish()
        with self._pump.lock:
            if self._is_over:
                return
            self._pump.remove(self, [fd])
            self._sinks.pop(fd, None)
            if not self._sinks and self._left is not None:
                _ = self._end()

    def _end(self) -> dict[int, Sink]:
        """Return what was the user's, for the caller to let go of when the lock is released."""
        if self._is_over:
            return {}
        self._pump.remove(self, [self._status.fileno(), *self._sinks])
        sinks, self._sinks = self._sinks, {}
        self._is_paused = False
        self._pump.forget(self)
        self._is_done = True
        if self._done >= 0:
            os.eventfd_write(self._done, 1)
        self._is_over = True
        return sinks
