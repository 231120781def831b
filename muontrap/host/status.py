"""The channel of a command: asks its guard, takes what that says, notices when it says nothing."""

from __future__ import annotations

import _socket
import errno
import os
import signal
import threading
import time
import weakref

from muontrap.host.link import STUCK_AFTER, wait_readable
from muontrap.host.results import CompletedProcess
from muontrap.kernel.process import pidfd_send_signal
from muontrap.kernel.sockets import Truncated, receive
from muontrap.logic.escalation import KILL_BOUND
from muontrap.logic.wire import Ended, Failed, Ping, Record, Signal, Started, Stop, Suspended, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from muontrap.errors import GuardDied
    from muontrap.host.cgroups import Placing
    from muontrap.host.link import Link
    from muontrap.kernel.sockets import Answer
    from muontrap.logic.command import Command

# After the grace, and what the guard waits for things that do not die: `run` has promised 0.5 s.
END_BOUND = KILL_BOUND + 0.05


class NotPlaced(OSError):
    """There could be no cgroup for a command that can do without."""


class Use:
    """The time in which somebody uses a command's descriptors.

    Another thread, or a signal's handler, may close the command, and another's descriptor have the number
    at once: that would be waited for, or signalled.
    """

    __slots__ = ("_status",)

    def __init__(self, status: Status) -> None:
        self._status = status

    def __enter__(self) -> None:
        self._status._users.add(self)

    def __exit__(self, *_: object) -> None:
        self._status._users.discard(self)
        self._status._close_unused()


class Status:
    """What is known of a command, and how to ask for its end. For any thread.

    Attributes:
        pid: of the main process, -1 as long as it is not known.
        is_closed: whether `close` was called.
        result: how it ended, None until `has_ended` has seen that.
        suspended: the signal that stopped the main process, if `has_ended` has seen that since `resume`.
    """

    pid: int = -1
    is_closed: bool = False
    result: CompletedProcess | None = None
    suspended: int | None = None
    _failure: OSError | GuardDied | None = None
    _pidfd = -1
    _lost_pidfd = False
    _pinged = False
    _has_told = False
    _is_reading = False

    def __init__(
        self, command: Command, link: Link, channel: _socket.socket, placing: Placing | None
    ) -> None:
        self.link: Link = link
        self.placing: Placing | None = placing
        self._channel = channel
        self._command = command
        self._lock = threading.RLock()
        self._answers: list[Answer] = []  # what has come and was not taken
        self._users: set[Use] = set()
        self._unclosed: list[Callable[[], object]] = []
        self._stuck_at: float | None = time.monotonic() + STUCK_AFTER
        _all.add(weakref.ref(self, _all.discard))

    @property
    def pidfd(self) -> int:
        """The descriptor of the main process, -1 when closed."""
        return -1 if self.is_closed else self._pidfd

    @property
    def is_running(self) -> bool:
        """Whether no end is known."""
        return self.result is None and self._failure is None

    def fileno(self) -> int:
        """Return the descriptor on which the guard's words come, -1 when closed."""
        return -1 if self.is_closed else self._channel.fileno()

    def use(self) -> Use:
        """Return a context in which no descriptor is closed, to be asked for within."""
        return Use(self)

    def close_unused(self, close: Callable[[], object]) -> None:
        """Close something as soon as nobody uses a descriptor."""
        self._unclosed.append(close)
        self._close_unused()

    def ask(self, delay: float, reason: bytes) -> None:
        """Ask for the end; a negative delay means the command's own."""
        self.check_here()
        if self.is_running:
            self._tell(Stop(delay=delay, reason=reason))

    def resume(self) -> None:
        """Let a suspended command go on."""
        self.check_here()
        self.suspended = None
        self.pass_on(signal.SIGCONT)

    def pass_on(self, signum: int) -> None:
        """Send a signal to the command's process group, as a terminal does."""
        self._tell(Signal(signum=signum))

    def let_go(self) -> None:
        """Ask for the end where nothing can be raised: in a finalizer."""
        self._tell(Stop(delay=-1.0, reason=b"stopped"))

    def has_ended(self) -> bool:
        """Take what the guard has said; return whether nothing of the command is left.

        Raises:
            RuntimeError: a finalizer or a signal's handler asks, and has interrupted this very function.
            ValueError: a finalizer has closed it, and nobody waited for the end.
            GuardDied: it will never say; the command is dead.
            OSError: why the command did not run.
        """
        self.check_here()
        with self._lock:
            if self._is_reading:
                raise RuntimeError(
                    "this finalizer, or signal's handler, can't ask: it has interrupted who takes the answer"
                )
            if self.is_running:
                with self.use():
                    self._check_open()
                    self._is_reading = True
                    try:
                        self._read_record()
                    finally:
                        self._is_reading = False
                    if self.result and self.result.unkillable and not self.is_closed:
                        # Readable from now on, for all who wait: the guard keeps it open until that dies.
                        self._channel.shutdown(_socket.SHUT_RD)
            if self._failure is not None:
                raise self._failure.with_traceback(None)  # which would grow, each time
            return self.result is not None

    def wait(self, deadline: float | None) -> bool:
        """Wait until nothing of the command is left; False when the deadline has passed before."""
        while not self.has_ended():
            if not self.wait_for_word(deadline):
                return False
        return True

    def wait_for_word(self, deadline: float | None) -> bool:
        """Wait until there may be something for `has_ended`; False when the deadline has passed before."""
        until = self.sooner(deadline)
        left = None if until is None else until - time.monotonic()
        with self.use():
            word = self.fileno()
            # Another thread may have closed it since it was asked for the end, which is known then.
            return word < 0 or bool(wait_readable([word], left)) or not self.is_late(deadline)

    def send_signal(self, signum: int) -> None:
        """Send a signal to the main process, if it has not ended."""
        self.check_here()
        with self.use():
            pidfd = self.pidfd  # once: a signal's handler may close it
            if pidfd >= 0:
                pidfd_send_signal(pidfd, signum)

    def sooner(self, deadline: float | None) -> float | None:
        """Return until when to wait for a word: the deadline, or when a guard's silence is one."""
        if deadline is None or self._stuck_at is None:
            return self._stuck_at if deadline is None else deadline
        return min(deadline, self._stuck_at)

    def is_late(self, deadline: float | None) -> bool:
        """Tell whether the deadline has passed; see to a guard that has not said anything yet."""
        now = time.monotonic()
        if self._stuck_at is not None and now >= self._stuck_at:
            if self._pinged:
                self._stuck_at = None
                self.link.kill_guard()
            else:
                self._stuck_at = now + STUCK_AFTER
                self._pinged = True
                self._tell(Ping())
        return deadline is not None and now >= deadline

    def expire(self, wait: Callable[[float], bool]) -> bool:
        """End a command whose time is over; return whether nothing is left within the bound.

        Args:
            wait: waits until nothing is left, until a deadline at most.
        """
        delay = self._command.delay_to_sigkill
        self.ask(delay, b"timeout")
        return wait(time.monotonic() + delay + END_BOUND) or self.wait(0)

    def check_here(self) -> None:
        """Raise if this is a forked child's copy."""
        if self.link.is_closed:
            raise ValueError(f"command {self.pid} was launched by the process that this one was forked from")

    def close(self) -> None:
        """Let go of the command: the guard ends it, if it runs."""
        self.is_closed = True
        if self._users:
            try:
                self._channel.shutdown(_socket.SHUT_RDWR)  # wakes up who waits
            except OSError as error:
                if error.errno not in (errno.ENOTCONN, errno.EBADF):  # the guard has closed, or we
                    raise
        self.close_unused(self._close)

    def _close(self) -> None:
        self._channel.close()
        pidfd = vars(self).pop("_pidfd", -1)  # at once, for a signal's handler may close it as well
        if pidfd >= 0:
            os.close(pidfd)

    def _close_unused(self) -> None:
        while self._unclosed and not self._users:
            try:
                close = self._unclosed.pop()
            except IndexError:
                return  # another thread has it
            close()

    def give_back(self) -> None:
        """Let go of a command that has ended; its channel is for another if the guard is done with it too."""
        result = self.result
        # The guard goes on hunting what it could not end, and a main process without a status lives.
        is_hunted = result is None or result.returncode is None or result.unkillable or result.not_permitted
        if not (is_hunted or self._has_told):
            self.link.take_back(self._channel)
        else:
            self.close()

    def _tell(self, record: Record) -> None:
        self._has_told = True
        try:
            with self.use():
                self._channel.send(record.encode())
        except OSError as error:
            # The end, or the guard's death, is there to be read; or all was closed before the end.
            if error.errno not in (errno.EPIPE, errno.ECONNRESET, errno.EBADF):
                raise

    def _read_record(self) -> None:
        try:
            data, fds, _ = receive(self._channel, self._answers)
        except BlockingIOError:
            return
        except Truncated:
            self._lose_pidfd()
            return
        if not data:
            self._check_open()  # else this was the end of the file
        self._take(decode(data) if data else None, fds)
        self._answers.clear()

    def _check_open(self) -> None:
        if self.is_closed:
            raise ValueError(f"command {self.pid} was closed before its end was known")

    def _lose_pidfd(self) -> None:
        """No descriptor was left for it, in this process or on the way."""
        self._lost_pidfd = True
        self.ask(0.0, b"stopped")

    def _take(self, record: Record | None, fds: Sequence[int]) -> None:
        """Note what the guard has said; once more, if that was interrupted."""
        self._stuck_at = None
        if isinstance(record, Ended):
            if self._lost_pidfd:
                self._failure = self._error(errno.EMFILE, "descriptors")
            else:
                self.result = CompletedProcess(self._command.args, record, self.placing)
        elif record is None and self.link.survives():
            self._failure = self._error(errno.EMFILE, "descriptors")  # the guard could not take the request's
        elif record is None:
            self._failure = self.link.lost(f"command {self._command.args!r}")
        elif isinstance(record, Started) and not fds:
            self._lose_pidfd()
        elif isinstance(record, Started):
            self.pid, self._pidfd = record.pid, fds[0]
            if self.is_closed:  # by a finalizer, since it was read
                self.close()
        elif isinstance(record, Failed):
            self._failure = self._failure_of(record)
        elif isinstance(record, Suspended):
            self.suspended = record.signum

    def _failure_of(self, failed: Failed) -> OSError:
        if failed.step == b"credentials":
            return self.link.stale()
        if self.placing and failed.step in (b"cgroup", b"join"):
            refusal = self.placing.refused(failed.errno, os.fsdecode(failed.path))
            return refusal if self._command.insists_on_cgroup else NotPlaced(*refusal.args)
        return self._error(failed.errno, failed.step.decode("ascii", "replace"))

    def _error(self, code: int, step: str) -> OSError:
        """Return the exception that `subprocess` would raise; it names the step where that could not."""
        text = os.strerror(code) if step in ("execve", "chdir") else f"{os.strerror(code)} (at {step})"
        directory = self._command.cwd or b"."
        return OSError(code, text, os.fsdecode(directory if step == "chdir" else self._command.program))


# Of a forked child's parent: what the child must not hold open.  A WeakSet is Python, at each launch.
_all: set[weakref.ref[Status]] = set()


def _forget_in_child() -> None:
    """Close what the guard would see open although the host, the parent, has closed it."""
    for reference in list(_all):
        status = reference()
        if status:
            status._users.clear()  # threads of the parent
            status.close()
    _all.clear()


os.register_at_fork(after_in_child=_forget_in_child)
