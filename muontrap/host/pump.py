"""Output handed to callbacks: one thread for all commands of the host, however many they are.

Finalizers, and so code of the user that closes a process, may run at any instant in any thread that
allocates. What follows:

1. Who holds the pump's lock waits for nothing: not for another lock, and not for a thread to start,
   in which a finalizer may wait for the lock. Threads are made under it, and started after.
2. What may have a finalizer of the user is not let go of under it.
3. The lock is re-entrant, but a reader does not end between two lines of who holds it: see `is_within`.
"""

from __future__ import annotations

import heapq
import os
import select
import threading
import time
import weakref
from collections import deque
from functools import partial

from muontrap.host.link import LONGEST_WAIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any

    from muontrap.host.delivery import Reader

# A callback that takes longer keeps its thread, and the others get a new one.
_SLOW = 0.05
# One event, and no other until it is armed again: a turn is one thread's.
_ARMED = select.EPOLLIN | select.EPOLLONESHOT


class Pump:
    """Waits for all readers in one thread, the first, and does their turns there.

    A second stands by.  When a turn takes long it becomes the first, and goes on with the others: a
    callback that blocks keeps its own thread, and its own command waiting.

    Attributes:
        lock: of this and of all its readers. No finalizer may wait for it.
    """

    def __init__(self) -> None:
        self.lock: Any = threading.RLock()
        self._epoll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wakeup, select.EPOLLIN)
        self._readers: dict[int, Reader] = {}  # by descriptor
        self._open: set[Reader] = set()  # all that are not done
        self._deadlines: list[tuple[float, int, weakref.ref[Reader]]] = []
        self._first: threading.Thread | None = None
        self._second: threading.Thread | None = None
        self._turn: Reader | None = None  # in the first thread
        self._turns = 0
        self._begin = threading.Lock()  # the second sleeps until it is released
        self._is_watched = True  # the second does not sleep, or there is none
        self._left: deque[Callable[[], None]] = deque()  # by finalizers

    @property
    def is_within(self) -> bool:
        """Whether this thread can't wait for the pump, which waits for this thread.

        So it is for a finalizer, or a signal's handler, that came between two lines of the pump's own.
        """
        first = self._first
        return self.lock._is_owned() or (
            first is not None and first.ident == threading.get_ident() and self._turn is None
        )

    def add(self, reader: Reader, fds: Collection[int]) -> None:
        """Wait for these descriptors of a reader.

        Raises:
            RuntimeError: there can be no thread; readers that relied on this one have failed.
        """
        first = None
        with self.lock:
            self._open.add(reader)
            if self._first is None:
                first = self._first = _thread("muontrap-pump", self._serve)
        if first:
            try:
                first.start()
            except RuntimeError as error:
                with self.lock:
                    self._first = None
                    others = self._open - {reader}
                for other in others:
                    other.fail(error)
                raise
        with self.lock:
            for fd in fds if reader in self._open else ():  # it may have failed by now
                self._epoll.register(fd, _ARMED)
                self._readers[fd] = reader

    def arm(self, reader: Reader) -> None:
        """Wait again for what the reader had a turn for, or may have one for. The caller has the lock."""
        fired, reader.fired = reader.fired, ()
        for fd in fired:
            if self._readers.get(fd) is not reader:
                continue  # removed meanwhile
            if reader.wants(fd):
                self._epoll.modify(fd, _ARMED)
            else:
                reader.fired += (fd,)

    def remove(self, reader: Reader, fds: Collection[int]) -> None:
        """Wait for these of its descriptors no more, if they are waited for."""
        with self.lock:
            for fd in fds:
                if self._readers.get(fd) is reader:
                    del self._readers[fd]
                    self._epoll.unregister(fd)

    def expect(self, reader: Reader) -> None:
        """Wake up at the reader's deadline, which may move until then."""
        deadline = reader.deadline()
        if deadline is not None and not reader.is_awaited:
            with self.lock:
                reader.is_awaited = True
                heapq.heappush(self._deadlines, (deadline, id(reader), weakref.ref(reader)))
            os.eventfd_write(self._wakeup, 1)

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

    def close(self) -> None:
        """Let go of the descriptors, in a forked child."""
        self._epoll.close()
        os.close(self._wakeup)

    def _see_to_left(self) -> None:
        while True:
            try:
                close = self._left.popleft()
            except IndexError:  # another thread looks as well
                return
            close()

    def _serve(self) -> None:
        try:
            self._serve_readers()
        finally:
            with self.lock:
                # After an exception that no callback has raised the next reader starts another thread.
                self._leave()
            self._see_to_left()

    def _serve_readers(self) -> None:
        while True:
            self._see_to_left()
            with self.lock:
                if self._first is not threading.current_thread():
                    return
                if not (self._open or self._left):
                    self._leave()
                    return
                until = self._deadlines[0][0] if self._deadlines else None
                second = self._make_second()
            if second:
                self._start_second(second)
            # One at a time: what is ready behind a turn that lasts is for another thread.
            timeout = None if until is None else min(max(0.0, until - time.monotonic()), LONGEST_WAIT)
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
            reader.fired += (fd,)
            if reader.is_busy:
                return  # in another thread, which will arm what has fired
            reader.is_busy = True
            self._turn = reader
            self._turns += 1
            if not self._is_watched:
                self._watch()
        is_apart = reader.is_slow and self._takes_apart(reader, fd)
        if not is_apart:
            reader.turn(fd)
        with self.lock:
            if self._first is threading.current_thread():
                self._turn = None
            if not is_apart:
                reader.is_busy = False
                self.arm(reader)

    def _takes_apart(self, reader: Reader, fd: int) -> bool:
        """Give a reader whose last turn was slow a thread for this one, if there can be one."""
        try:
            _thread("muontrap-slow", partial(self._turn_apart, reader, fd)).start()
        except RuntimeError:
            return False
        return True

    def _turn_apart(self, reader: Reader, fd: int) -> None:
        begin = time.monotonic()
        reader.turn(fd)
        with self.lock:
            reader.is_slow = time.monotonic() - begin > _SLOW
            reader.is_busy = False
            self.arm(reader)

    def _leave(self) -> None:
        """Nobody is there to be served, or another thread does it."""
        if self._first is threading.current_thread():
            self._first = self._second = None
            self._deadlines = []
            self._watch()

    def _look_at_deadlines(self) -> None:
        """See whose time is over; a deadline moves with each output, and is looked at when it was first."""
        now = time.monotonic()
        seen: list[Reader] = []
        late: list[Reader] = []
        with self.lock:
            while self._deadlines and self._deadlines[0][0] <= now:
                reader = heapq.heappop(self._deadlines)[2]()
                if reader is None:
                    continue
                seen.append(reader)
                deadline = reader.deadline()
                reader.is_awaited = deadline is not None and deadline > now
                if deadline is not None and reader.is_awaited:
                    heapq.heappush(self._deadlines, (deadline, id(reader), weakref.ref(reader)))
                elif deadline is not None:
                    late.append(reader)
        for reader in late:
            reader.late()

    def _watch(self) -> None:
        """Wake the second up."""
        if not self._is_watched:
            self._is_watched = True
            self._begin.release()

    def _make_second(self) -> threading.Thread | None:
        """Return a thread that is to stand by, if there is none."""
        if self._second:
            return None
        begin = self._begin = threading.Lock()
        begin.acquire()
        self._is_watched = False
        self._second = _thread("muontrap-standby", partial(self._stand_by, begin))
        return self._second

    def _start_second(self, second: threading.Thread) -> None:
        """Where there can be no more threads, a callback that blocks blocks all."""
        try:
            second.start()
        except RuntimeError:
            with self.lock:
                self._second = None
                self._is_watched = True

    def _stand_by(self, begin: threading.Lock) -> None:
        """Sleep while nothing happens; become the first when a turn lasts."""
        me = threading.current_thread()
        begin.acquire()
        while self._second is me:
            turns = self._turns
            time.sleep(_SLOW)
            with self.lock:
                if self._second is not me or self._turns != turns:
                    continue
                if self._turn:
                    self._take_over(me, self._turn)
                    break
                self._is_watched = False
            begin.acquire()
        self._serve()

    def _take_over(self, me: threading.Thread, slow: Reader) -> None:
        slow.is_slow = True
        self._turn = None
        me.name = "muontrap-pump"
        self._first = me
        self._second = None


def _thread(name: str, target: Callable[[], None]) -> threading.Thread:
    return threading.Thread(name=name, target=target, daemon=True)


def current() -> Pump:
    """Return the pump of this process."""
    return _pump


_pump = Pump()


def _renew_in_child() -> None:
    """A forked child has the descriptors of its parent's pump, but not its threads."""
    global _pump
    _pump.close()
    _pump = Pump()


os.register_at_fork(after_in_child=_renew_in_child)
