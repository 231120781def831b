"""Output handed to callbacks: one thread for all commands of the host, however many they are."""

from __future__ import annotations

import heapq
import operator
import os
import select
import sys
import threading
import time
import weakref
from collections import deque
from functools import partial

from muontrap.errors import GuardDied
from muontrap.host.streams import CHUNK, left_in
from muontrap.logic.window import Window

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from muontrap.host.exchange import Sink
    from muontrap.host.status import Status
    from muontrap.host.streams import Pipes
    from muontrap.logic.command import Command

# A callback that takes longer keeps its thread, and the others get a new one.
_SLOW = 0.05


class Reader:
    """The output of one command on its way to callbacks: `Process.reader`; no public constructor.

    Attributes:
        error: what a callback has raised, after which nothing is read; `Process.wait` raises it.
    """

    error: BaseException | None

    def __init__(
        self, command: Command, pipes: Pipes, status: Status, sinks: dict[int, Sink], *, explicit: bool
    ) -> None:
        self.error = None
        self._is_done = False
        self._is_over = False  # the pump has nothing of it
        self._status = status
        self._explicit = explicit
        self._window = Window(pipes.window)
        self._sinks: dict[int, Sink] = {}  # of the streams that are not at their end, by descriptor
        for target, sink in sinks.items():
            fd = pipes.fds[target]
            assert fd is not None
            os.set_blocking(fd, False)
            self._sinks[fd] = sink
        self._caller: int | None = None  # the thread in which a callback is called
        self._left: dict[int, int] | None = None  # bytes to be read of a command that is gone
        self._is_paused = False
        self._patience = command.patience(time.monotonic())
        self.is_slow: bool = False  # its last turn was
        self.is_awaited: bool = False  # the pump has its deadline
        self._pump = _pump
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
                self._pump.add(self, list(self._sinks))
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

    def close(self) -> None:
        """Read no more. For `Process.close`."""
        # In a forked child, and in a host that ends, there may be nobody to release the lock.
        if self._status.link.is_closed or sys.is_finalizing():
            return
        if not self._is_over:
            with self._pump.lock:
                self._end()
        done, self._done = self._done, -1
        if done >= 0:
            os.close(done)

    def leave(self, close: Callable[[], None]) -> None:
        """Have this called where locks may be waited for. For a finalizer, which runs inside any of them."""
        if self._is_over or self._status.link.is_closed or sys.is_finalizing():
            close()
        else:
            self._pump.leave(close)

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

    def turn(self, fd: int) -> None:
        """Do what one descriptor is ready for: it is the status, or has output for a callback."""
        self._caller = threading.get_ident()
        try:
            if fd == self._status.fileno():
                self._hear()
            else:
                self._read(fd)
        except BaseException as error:  # the user's: told by `Process.wait`
            with self._pump.lock:
                self.error = error
                self._end()
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
            self._pump.remove([self._status.fileno()])
            self._left = {fd: left_in(fd) for fd in self._sinks}
            if not self._left:
                self._end()
        for fd, count in list(self._left.items()):
            if not count:
                self._finish(fd)

    def _read(self, fd: int) -> None:
        with self._pump.lock:
            sink = self._sinks.get(fd)
            size = min(self._window.room, CHUNK)
            if sink is None or not size:
                return
            if self._left is not None:
                size = min(size, self._left[fd])
            try:
                data = os.read(fd, size)
            except BlockingIOError:
                return
            self._window.took(len(data))
            if self._patience:
                self._patience.pause()
        if data:
            sink.take(data)
        with self._pump.lock:
            if self._is_over:
                return
            if data and not self._explicit:
                self._window.handled(len(data))
            if self._left is not None:
                self._left[fd] -= len(data)
            if not self._window.room:
                self._is_paused = True
                self._pump.remove(list(self._sinks))
            else:
                self._expect()
        if not data or (self._left is not None and not self._left[fd]):
            self._finish(fd)

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
            self._pump.remove([fd])
            self._sinks.pop(fd, None)
            if not self._sinks and self._left is not None:
                self._end()

    def _end(self) -> None:
        if self._is_over:
            return
        self._pump.remove([self._status.fileno(), *self._sinks])
        self._sinks = {}
        self._is_paused = False
        self._pump.forget(self)
        self._is_done = True
        if self._done >= 0:
            os.eventfd_write(self._done, 1)
        self._is_over = True


class Pump:
    """Waits for all readers in one thread, and does their turns there.

    Another stands by.  When a turn takes long it becomes the first, and goes on with the others: a
    callback that blocks keeps its own thread, and its own command waiting.

    Attributes:
        lock: of this and of all its readers. No finalizer may wait for it.
    """

    def __init__(self) -> None:
        self.lock: AbstractContextManager[bool] = threading.RLock()
        self._epoll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._readers: dict[int, Reader] = {}  # by descriptor
        self._open: set[Reader] = set()  # all that are not done: those, and the paused ones
        self._deadlines: list[tuple[float, int, weakref.ref[Reader]]] = []
        self._first: threading.Thread | None = None
        self._second: threading.Thread | None = None
        self._turn: Reader | None = None
        self._turns = 0
        self._blocked: set[Reader] = set()  # their turn goes on in a thread that was the first
        self._is_watched = False
        self._begin = threading.Event()
        self._left: deque[Callable[[], None]] = deque()  # by finalizers

    def add(self, reader: Reader, fds: list[int]) -> None:
        """Wait for these descriptors of a reader."""
        with self.lock:
            if self._first is None:
                self._first = _thread("muontrap-pump", self._serve)
                self._see_to_second()
            self._open.add(reader)
            for fd in fds:
                if reader not in self._blocked:
                    self._epoll.register(fd, select.EPOLLIN)
                self._readers[fd] = reader

    def expect(self, reader: Reader) -> None:
        """Wake up at the reader's deadline, which may move until then."""
        deadline = reader.deadline()
        if deadline is not None and not reader.is_awaited:
            with self.lock:
                reader.is_awaited = True
                heapq.heappush(self._deadlines, (deadline, id(reader), weakref.ref(reader)))
            os.eventfd_write(self._wakeup, 1)

    def remove(self, fds: list[int]) -> None:
        """Wait for these no more, if they are waited for."""
        with self.lock:
            for fd in fds:
                reader = self._readers.pop(fd, None)
                if reader and reader not in self._blocked:
                    self._epoll.unregister(fd)

    def forget(self, reader: Reader) -> None:
        """Do without this reader, which is done; without any, the threads end."""
        with self.lock:
            self._open.discard(reader)
            if len(self._deadlines) > 2 * len(self._open) + 64:  # most are of readers that are done
                self._deadlines = [each for each in self._deadlines if each[2]() in self._open]
                heapq.heapify(self._deadlines)
            if not self._open:
                os.eventfd_write(self._wakeup, 1)

    def leave(self, close: Callable[[], None]) -> None:
        """Have this called in the pump's thread."""
        self._left.append(close)
        if self._first is None:  # the reader came to its end just now
            self._see_to_left()
        else:
            os.eventfd_write(self._wakeup, 1)

    def _see_to_left(self) -> None:
        while True:
            try:
                close = self._left.popleft()
            except IndexError:  # another thread looks as well
                return
            close()

    def close(self) -> None:
        """Let go of the descriptors, in a forked child."""
        self._epoll.close()
        os.close(self._wakeup)

    def _serve(self) -> None:
        try:
            self._serve_readers()
        finally:
            with self.lock:
                # After an exception that no callback has raised the next reader starts another thread.
                self._leave(threading.current_thread())

    def _serve_readers(self) -> None:
        me = threading.current_thread()
        while True:
            self._see_to_left()
            with self.lock:
                if self._first is not me or not (self._open or self._left):
                    self._leave(me)
                    return
                until = self._deadlines[0][0] if self._deadlines else None
            # One at a time: what is ready behind a turn that lasts is for another thread.
            timeout = None if until is None else max(0.0, until - time.monotonic())
            for fd, _ in self._epoll.poll(timeout, 1):
                self._take(fd)
            if until is not None:
                self._look_at_deadlines()

    def _take(self, fd: int) -> None:
        if fd == self._wakeup:
            os.eventfd_read(fd)
            return
        with self.lock:
            reader = self._readers.get(fd)
            if reader is None:
                return
            if reader.is_slow and self._takes_apart(reader, fd):
                return
            self._turn = reader
            self._turns += 1
        if not self._is_watched:
            self._is_watched = True
            self._begin.set()
        reader.turn(fd)
        with self.lock:
            if self._turn is reader and self._first is threading.current_thread():
                self._turn = None
            else:
                self._readmit(reader)
            if self._first is not None:
                self._see_to_second()

    def _takes_apart(self, reader: Reader, fd: int) -> bool:
        """Give a reader whose last turn was slow a thread for this one, if there can be one."""
        self._set_aside(reader)
        try:
            _thread("muontrap-slow", partial(self._turn_apart, reader, fd))
        except RuntimeError:
            self._readmit(reader)
            return False
        return True

    def _turn_apart(self, reader: Reader, fd: int) -> None:
        begin = time.monotonic()
        reader.turn(fd)
        with self.lock:
            reader.is_slow = time.monotonic() - begin > _SLOW
            self._readmit(reader)

    def _set_aside(self, reader: Reader) -> None:
        for fd in self._of(reader):
            self._epoll.unregister(fd)
        self._blocked.add(reader)

    def _readmit(self, reader: Reader) -> None:
        self._blocked.discard(reader)
        for fd in self._of(reader):
            self._epoll.register(fd, select.EPOLLIN)

    def _leave(self, me: threading.Thread) -> None:
        """Nobody is there to be served, or another thread does it."""
        if self._first is me:
            self._first = self._second = None
            self._deadlines = []
            self._begin.set()
            self._begin, self._is_watched = threading.Event(), False

    def _look_at_deadlines(self) -> None:
        """See whose time is over; a deadline moves with each output, and is looked at when it was first."""
        now = time.monotonic()
        late: list[Reader] = []
        with self.lock:
            while self._deadlines and self._deadlines[0][0] <= now:
                reader = heapq.heappop(self._deadlines)[2]()
                if reader is None:
                    continue
                deadline = reader.deadline()
                reader.is_awaited = deadline is not None and deadline > now
                if deadline is not None and reader.is_awaited:
                    heapq.heappush(self._deadlines, (deadline, id(reader), weakref.ref(reader)))
                elif deadline is not None:
                    late.append(reader)
        for reader in late:
            reader.late()

    def _stand_by(self) -> None:
        """Sleep while nothing happens; become the first when a turn lasts."""
        me = threading.current_thread()
        with self.lock:
            if self._second is not me:
                return
            begin = self._begin
        while True:
            begin.wait()
            begin.clear()
            turns = -1
            while turns != self._turns and self._second is me:
                turns = self._turns
                time.sleep(_SLOW)
            with self.lock:
                if self._second is not me:
                    return
                self._is_watched = False
                if self._turns == turns and self._turn is not None:
                    self._take_over(me, self._turn)
                    break
                if self._turns != turns:
                    begin.set()
        self._serve()

    def _take_over(self, me: threading.Thread, slow: Reader) -> None:
        self._set_aside(slow)
        slow.is_slow = True
        self._turn = None
        me.name = "muontrap-pump"
        self._first = me
        self._second = None
        self._see_to_second()

    def _see_to_second(self) -> None:
        """Have a thread that stands by. Where there can be no more, a callback that blocks blocks all."""
        try:
            self._second = self._second or _thread("muontrap-standby", self._stand_by)
        except RuntimeError:
            pass

    def _of(self, reader: Reader) -> list[int]:
        return [fd for fd, its in self._readers.items() if its is reader]


def _thread(name: str, target: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(name=name, target=target, daemon=True)
    thread.start()
    return thread


_pump = Pump()


def _renew_in_child() -> None:
    """A forked child has the descriptors of its parent's pump, but not its threads."""
    global _pump
    _pump.close()
    _pump = Pump()


os.register_at_fork(after_in_child=_renew_in_child)
