"""The loop of a tree: calls functions in one thread, when it is time, or something can be read.

Not asyncio: that is 6 MB of a process which may have a hundred daemons in less, and of no use to functions
that never wait.
"""

from __future__ import annotations

import heapq
import os
import select
import threading
import time
from collections import deque

from muontrap.supervise import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Call = tuple[Callable[..., object], tuple[object, ...]]

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
# In seconds: epoll_wait(2) takes milliseconds as an int.
_LONGEST_WAIT = 1e6
_FEW = 64


class Timer:
    """A call that is to come: `Loop.later` makes it, `Loop.cancel` takes it back."""

    __slots__ = ("arguments", "at", "function")

    def __init__(self, at: float, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        self.at: float = at
        self.function: Callable[..., object] | None = function  # None once it was called, or cancelled
        self.arguments: tuple[object, ...] = arguments

    def __lt__(self, other: Timer) -> bool:
        return self.at < other.at


class Loop:
    """Calls functions, one after the other. What one raises is logged, and the others are called.

    All but `from_thread` is for the thread that runs it, or before that.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._wakeup = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wakeup, READ)
        self._handlers: dict[int, Callable[[], object]] = {}
        self._ignored: set[int] = set()  # since epoll was asked: what it said of these numbers is old
        self._soon: deque[Call] = deque()
        self._timers: list[Timer] = []
        self._cancelled = 0  # of the timers
        self._lock = threading.RLock()  # a signal's handler may ask, too
        self._from_threads: list[Call] | None = []  # None when closed; under the lock
        self._is_stopped = False

    def soon(self, function: Callable[..., object], *arguments: object) -> None:
        """Call it behind all that is to be called now."""
        self._soon.append((function, arguments))

    def later(self, seconds: float, function: Callable[..., object], *arguments: object) -> Timer:
        """Call it after so many seconds."""
        timer = Timer(time.monotonic() + seconds, function, arguments)
        heapq.heappush(self._timers, timer)
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Do without a call that has not come yet; without any, do nothing."""
        if timer is None or timer.function is None:
            return
        timer.function, timer.arguments = None, ()
        self._cancelled += 1
        if self._cancelled > _FEW and self._cancelled > len(self._timers) // 2:
            self._timers = [each for each in self._timers if each.function]
            heapq.heapify(self._timers)
            self._cancelled = 0

    def listen(self, fd: int, function: Callable[[], object], events: int = READ) -> None:
        """Call it whenever a descriptor is ready, in place of what was called for that before."""
        change = self._epoll.modify if fd in self._handlers else self._epoll.register
        change(fd, events)
        self._handlers[fd] = function

    def ignore(self, fd: int) -> None:
        """Call nothing for a descriptor any more: to be done before it is closed."""
        if self._handlers.pop(fd, None):
            self._epoll.unregister(fd)
            self._ignored.add(fd)

    def from_thread(self, function: Callable[..., object], *arguments: object) -> bool:
        """Have it called soon, asked from any thread; False if it never will be."""
        with self._lock:
            if self._from_threads is None:
                return False
            # First, for an interrupt may come between the two: then the next is not waited for in vain.
            os.eventfd_write(self._wakeup, 1)
            self._from_threads.append((function, arguments))
        return True

    def run(self) -> None:
        """Call what is to be called, until `stop`."""
        self._is_stopped = False
        while not self._is_stopped:
            self._wait()
            self._call_due()
            self._call_soon()

    def stop(self) -> None:
        """Let `run` return, after what is to be called now."""
        self._is_stopped = True

    def refuse(self) -> None:
        """Call what threads have asked for meanwhile; what they ask for from now on never will be."""
        with self._lock:
            asked, self._from_threads = self._from_threads or [], None
        self._soon.extend(asked)
        self._call_soon()

    def close(self) -> None:
        """Call nothing any more."""
        self.refuse()
        self._handlers, self._timers, self._soon = {}, [], deque()
        self._epoll.close()
        os.close(self._wakeup)

    def _wait(self) -> None:
        """Wait for what comes first, and call for descriptors that are ready."""
        ready = self._epoll.poll(self._patience())
        self._ignored.clear()
        for fd, _ in ready:
            if fd == self._wakeup:
                self._take_from_threads()
            elif fd in self._handlers and fd not in self._ignored:
                self._call(self._handlers[fd], ())

    def _patience(self) -> float | None:
        if self._soon:
            return 0
        while self._timers and self._timers[0].function is None:
            heapq.heappop(self._timers)
            self._cancelled -= 1
        if not self._timers:
            return None
        return min(max(0.0, self._timers[0].at - time.monotonic()), _LONGEST_WAIT)

    def _take_from_threads(self) -> None:
        os.eventfd_read(self._wakeup)
        with self._lock:
            asked, self._from_threads = self._from_threads, []
        self._soon.extend(asked or ())

    def _call_due(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0].at <= now:
            timer = heapq.heappop(self._timers)
            function, timer.function = timer.function, None
            if function:
                self._call(function, timer.arguments)
            else:
                self._cancelled -= 1

    def _call_soon(self) -> None:
        for _ in range(len(self._soon)):
            self._call(*self._soon.popleft())

    def _call(self, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        try:
            function(*arguments)
        except BaseException as error:
            log.failure(error, "%r has failed", function)
