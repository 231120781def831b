"""The watch: the guard's parent, which does nothing but wait for guard and host to die.

As the parent it sees at once when the guard is stopped, and as a subreaper it inherits all
orphans when the guard dies, tagged or not: it kills children until the kernel has none to wait for.
"""

from __future__ import annotations

import os
import select
import time

from muontrap.containment.groups import remove_abandoned
from muontrap.containment.processes import Held, Pack, descendants, send
from muontrap.containment.tagged import TagReader, kill_guardless
from muontrap.guard.priority import raise_priority
from muontrap.kernel import signals
from muontrap.kernel.process import pidfd_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# After the longest grace, a guard that is alive needs milliseconds: after so many ticks (of s) it is stuck.
# Of the time in which the whole machine stood still, which held the guard up as well, it is one.
_STUCK_TICKS, _TICK = 10, 0.1
_TAG_BOUND = 5.0


class Watch:
    """Waits; `run` returns when nothing is left to watch over."""

    def __init__(
        self,
        guard_pid: int,
        host: int,
        longest_grace: Callable[[], float],
        guard_id: int,
        reader: TagReader,
        places: int,
    ) -> None:
        self._guard_pid = guard_pid
        self._host = host
        self._longest_grace = longest_grace
        self._guard_id = guard_id
        self._reader = reader
        self._places = places
        self._this = Held(os.getpid(), pidfd_open(os.getpid()))
        self._signals = signals.open_signalfd(signals.SIGCHLD)
        self._stops = 0
        self._noted = b""

    def run(self) -> None:
        """Wait until the guard has ended, then kill what is left of all its commands."""
        poll = select.poll()
        poll.register(self._host, select.POLLIN)
        poll.register(self._signals, select.POLLIN)
        deadline: float | None = None
        ticks = _STUCK_TICKS
        while (status := self._guard_status()) is None:
            timeout = None if deadline is None else min(max(0.0, deadline - time.monotonic()), 1e6) * 1000
            ready = [fd for fd, _ in poll.poll(timeout)]
            signals.drain(self._signals)
            if self._host in ready:
                poll.unregister(self._host)
                deadline = time.monotonic() + self._longest_grace()
            elif deadline is not None and time.monotonic() >= deadline:
                if ticks:
                    ticks, deadline = ticks - 1, time.monotonic() + _TICK
                else:
                    os.kill(self._guard_pid, signals.SIGKILL)
                    deadline = None
        if status == 0:
            return  # it finished in order: what is left now was left alone on purpose
        self._kill_all()
        try:
            kill_guardless(self._reader, self._guard_id, _TAG_BOUND)
        finally:
            self._remove_cgroups()

    def _remove_cgroups(self) -> None:
        """Remove those whose lock went with the guard, and kill what is in them."""
        try:
            self._noted += os.read(self._places, 65536)
        except BlockingIOError:
            pass
        for directory in filter(None, self._noted.split(b"\0")):
            remove_abandoned(os.fsdecode(directory))

    def _guard_status(self) -> int | None:
        """Reap what there is; return how the guard has ended, None while it lives.

        A stopped guard is made to go on, or to die if it has been stopped before.
        """
        for pid, status in _reap():
            if pid == self._guard_pid:
                if not os.WIFSTOPPED(status):
                    return status
                self._stops += 1
                os.kill(pid, signals.SIGCONT if self._stops == 1 else signals.SIGKILL)
        return None

    def _kill_all(self) -> None:
        """Kill what hangs below until waitpid(2) says ECHILD: then there is nothing."""
        raise_priority()
        poll = select.poll()
        poll.register(self._signals, select.POLLIN)
        pause = 1
        # Before the rest, for what v1 has frozen does not die.
        self._remove_cgroups()
        while _has_children():
            try:
                with Pack() as found:
                    found.take(descendants([self._this]))
                    send(found, signals.SIGKILL)
            except OSError:
                pass  # whatever it is: what is left has to be killed
            # Not every death below sends SIGCHLD here: look again after at most `pause` ms.
            poll.poll(pause)
            pause = min(2 * pause, 100)
            signals.drain(self._signals)
            for _ in _reap():
                pass


def _reap() -> list[tuple[int, int]]:
    """Return (pid, status) of all children that have ended or been stopped."""
    found = []
    try:
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED)
            if pid == 0:
                break
            found.append((pid, status))
    except ChildProcessError:
        pass
    return found


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
