"""A running command, as the host sees it."""

from __future__ import annotations

import errno
import os
import signal
import socket
import threading
import time
import warnings
import weakref

from muontrap.errors import GuardDied
from muontrap.host.exchange import Exchange
from muontrap.host.link import wait_readable
from muontrap.host.results import CompletedProcess, TimeoutExpired
from muontrap.kernel.process import pidfd_send_signal
from muontrap.kernel.sockets import Truncated, receive
from muontrap.logic.command import check_seconds
from muontrap.logic.escalation import KILL_BOUND
from muontrap.logic.wire import Ended, Failed, Ping, Record, Signal, Started, Stop, Suspended, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import IO, Any, NoReturn

    from muontrap.host.cgroups import Cgroup, Placing
    from muontrap.host.link import Link
    from muontrap.host.streams import Pipes
    from muontrap.logic.command import Args, Command

# After the grace, and what the guard waits for things that do not die: run() has promised 0.5 s.
_END_BOUND = KILL_BOUND + 0.05
# The guard takes requests at once.  After this long without a word it is asked, and after as long
# again it is stuck: it is killed, and the watch cleans up.
_STUCK_AFTER = 5.0
# A guard that does not answer for this long beyond all that it may need is not waited for.
_ANSWER_BOUND = 5.0


class NotPlaced(OSError):
    """There could be no cgroup for a command that can do without."""


class Process:
    """A command that `Launcher.launch` started; it has no public constructor.

    All methods may be called from any thread.  Leaving it as a context manager stops the command;
    so does its garbage collection, with a `ResourceWarning`.

    Attributes:
        args: as given.
        pid: of the main process, its own until nothing of the command is left.
        pidfd: descriptor of the main process; closed by `close`.
        stdin, stdout, stderr: file objects of those that are `PIPE`, else None.
        cgroup: its cgroup (`Cgroup`), None without one.
    """

    args: Args
    pid: int
    pidfd: int
    stdin: IO[Any] | None
    stdout: IO[Any] | None
    stderr: IO[Any] | None
    cgroup: Cgroup | None

    def __init__(
        self,
        command: Command,
        link: Link,
        status: socket.socket,
        pipes: Pipes,
        placing: Placing | None,
    ) -> None:
        self.args = command.args
        self.pid = self.pidfd = -1
        self.stdin, self.stdout, self.stderr = pipes.files
        self._delay = command.delay_to_sigkill
        self._link = link
        self._status = status
        self._pipes = pipes
        self._placing = placing
        self._insists = command.insists_on_cgroup
        self.cgroup = placing.cgroup if placing else None
        self._lock = threading.Lock()
        self._result: CompletedProcess | None = None
        self._died: GuardDied | None = None
        self._suspended: int | None = None
        self._failure: OSError | None = None
        self._lost_pidfd = False
        self._pinged = False
        self._stuck_at: float | None = time.monotonic() + _STUCK_AFTER
        self._program = os.fsdecode(command.executable or command.argv[0])
        self._directory = os.fsdecode(command.cwd or b".")
        self._exchange = Exchange(command, pipes)
        _processes.add(self)

    @property
    def containment(self) -> tuple[str, ...]:
        """The layers that contain it, the strongest first: "cgroup-v2", "cgroup-v1", "tag", "subreaper"."""
        return layers(self._link, self._placing)

    @property
    def returncode(self) -> int | None:
        """The return code, None until `poll` or `wait` has seen the end."""
        return self._result.returncode if self._result else None

    @property
    def result(self) -> CompletedProcess | None:
        """How it ended, None until `poll` or `wait` has seen the end."""
        return self._result

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when nothing of the command is left.

        For `select` and event loops; then `poll` has the result.  (It is readable also when a command
        with `start_new_session=False` is stopped by a signal: `poll` returns None then.)
        """
        return self._status.fileno()

    def poll(self) -> int | None:
        """Return the return code if nothing of the command is left, else None.

        Raises:
            GuardDied: the guard was killed; the command is dead.
        """
        self._wait_until(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until nothing of the command is left, and return the return code.

        That is None when its main process can't be ended: see `result`.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutExpired: the command still runs.
            GuardDied: the guard was killed; the command is dead.
        """
        deadline = None if timeout is None else time.monotonic() + check_seconds("timeout", timeout)
        if not self._wait_until(deadline):
            assert timeout is not None
            raise TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write `input`, read stdout and stderr until nothing of the command is left; return both.

        Unlike `subprocess`, it does not wait for end of file: what was written before the end is
        there, and who else holds the pipes does not matter.

        Raises:
            TimeoutExpired: the command still runs; calling again goes on, and nothing is lost.
            GuardDied: the guard was killed; the command is dead.
        """
        deadline = None if timeout is None else time.monotonic() + check_seconds("timeout", timeout)
        if not self._exchange_until(deadline, input):
            assert timeout is not None
            raise TimeoutExpired(self.args, timeout, *self._exchange.so_far())
        return self._exchange.output()

    def send_signal(self, signum: int) -> None:
        """Send a signal to the main process; nothing happens if it has ended.

        Raises:
            PermissionError: it runs as another user.
        """
        self._check_here()
        if self.pidfd >= 0:
            pidfd_send_signal(self.pidfd, signum)

    def terminate(self) -> None:
        """Send SIGTERM to the main process. `stop` does more."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the whole command; `send_signal(SIGKILL)` reaches its main process alone."""
        self._ask(0.0, b"stopped")

    def stop(self, delay_to_sigkill: float | None = None) -> CompletedProcess:
        """End the command: the stop signal, then SIGKILL for what is left after the grace.

        Args:
            delay_to_sigkill: seconds of grace; None for the launcher's.

        Returns:
            How it ended, also when that was before.

        Raises:
            GuardDied: the guard was killed; the command is dead.
            TimeoutExpired: the guard did not say the end in time.
        """
        delay = self._delay
        if delay_to_sigkill is not None:
            delay = check_seconds("delay_to_sigkill", delay_to_sigkill)
        self._ask(delay, b"stopped")
        bound = delay + _ANSWER_BOUND
        if not self._wait_until(time.monotonic() + bound):
            raise TimeoutExpired(self.args, bound)
        assert self._result is not None
        return self._result

    def close(self) -> None:
        """Stop the command if it runs, and close all descriptors."""
        if self._status.fileno() < 0:
            return
        try:
            if self._is_running:
                self.stop()
        finally:
            self._close_files()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not hasattr(self, "_exchange") or self._status.fileno() < 0:
            return
        if self._is_running and not self._link.is_closed:
            warnings.warn(f"command {self.pid} still runs, and is stopped", ResourceWarning, 2, source=self)
            self._tell(Stop(delay=-1.0, reason=b"stopped"))
        self._close_files()

    def __repr__(self) -> str:
        return f"<Process {self.pid} of {self.args!r}: {self._result or 'running'}>"

    @property
    def suspended(self) -> int | None:
        """The signal that stopped the main process, if `poll` has seen that since the last `resume`.

        Only of a command with `start_new_session=False`: it shares the host's terminal, and Ctrl-Z.
        """
        return self._suspended

    def resume(self) -> None:
        """Let a suspended command go on, in the foreground if it was there and the host is now."""
        self._check_here()
        self._suspended = None
        self._tell(Signal(signum=signal.SIGCONT))

    def wait_started(self, timeout: float | None) -> None:
        """Wait until `execve` is done. For `Launcher.launch`, which says what it raises."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._read_status() and self.pid < 0:
            if not self._wait_for_status(deadline):
                self._expire(timeout, self._wait_until)

    def run_to_end(self, input: Any, deadline: float | None, timeout: float | None) -> CompletedProcess:
        """Communicate until nothing is left; end the command at the deadline, `timeout` s after the call.

        Raises:
            TimeoutExpired: with the output so far; at the latest 0.5 s after the grace.
        """
        if not self._exchange_until(deadline, input):
            self._expire(timeout, self._exchange_until)
        assert self._result is not None
        self._result.stdout, self._result.stderr = self._exchange.output()
        return self._result

    def _expire(self, timeout: float | None, wait: Callable[[float], bool]) -> NoReturn:
        """End a command whose time is over, and say so within the bound."""
        self._ask(self._delay, b"timeout")
        ended = wait(time.monotonic() + self._delay + _END_BOUND)
        error = TimeoutExpired(self.args, timeout or 0.0, *self._exchange.so_far(), self._result)
        if not ended:
            self._close_files()  # the guard goes on hunting what does not die
        raise error

    @property
    def _is_running(self) -> bool:
        return self._result is None and self._died is None and self._failure is None

    def _ask(self, delay: float, reason: bytes) -> None:
        self._check_here()
        if self._is_running:
            self._tell(Stop(delay=delay, reason=reason))

    def _tell(self, record: Record) -> None:
        try:
            self._status.send(record.encode())
        except (BrokenPipeError, ConnectionResetError):
            pass  # the end, or the guard's death, is there to be read

    def _exchange_until(self, deadline: float | None, input: Any = None) -> bool:
        """Move input and output until the end; return whether it came before the deadline."""
        self._check_here()
        self._exchange.feed(input)
        while self._exchange.wait(self.fileno(), self._sooner(deadline)) or not self._is_late(deadline):
            if self._read_status():
                self._exchange.drain()
                return True
        return False

    def _wait_until(self, deadline: float | None) -> bool:
        while not self._read_status():
            if not self._wait_for_status(deadline):
                return False
        return True

    def _wait_for_status(self, deadline: float | None) -> bool:
        """Wait for a word of the guard; False when the deadline has passed without."""
        until = self._sooner(deadline)
        left = None if until is None else until - time.monotonic()
        return bool(wait_readable([self.fileno()], left)) or not self._is_late(deadline)

    def _sooner(self, deadline: float | None) -> float | None:
        return min((at for at in (deadline, self._stuck_at) if at is not None), default=None)

    def _is_late(self, deadline: float | None) -> bool:
        now = time.monotonic()
        if self._stuck_at is not None and now >= self._stuck_at:
            if self._pinged:
                self._stuck_at = None
                self._link.kill_guard()
            else:
                self._stuck_at = now + _STUCK_AFTER
                self._pinged = True
                self._tell(Ping())
        return deadline is not None and now >= deadline

    def _read_status(self) -> bool:
        """Take what the guard has said; return whether it has said the end.

        Raises `GuardDied` if it never will, or why the command did not run.
        """
        self._check_here()
        with self._lock:
            if self._is_running:
                self._read_record()
            error = self._failure or self._died
            if error is not None:
                raise error
            return self._result is not None

    def _read_record(self) -> None:
        try:
            packet = receive(self._status)
        except BlockingIOError:
            return
        except Truncated:  # no descriptor was left in this process for the pidfd
            self._lost_pidfd = True
            self._ask(0.0, b"stopped")
            return
        self._take(decode(packet.data) if packet.data else None, packet.fds)

    def _take(self, record: Record | None, fds: list[int]) -> None:
        first, self._stuck_at = self._stuck_at is not None, None
        if record is None and first and self._link.survives():
            self._failure = self._error(errno.EMFILE, "descriptors")  # the guard could not take the request's
        elif record is None:
            self._died = self._link.lost(f"command {self.args!r}")
        elif isinstance(record, Started):
            self.pid, self.pidfd = record.pid, fds[0]
        elif isinstance(record, Failed):
            self._failure = self._failure_of(record)
        elif isinstance(record, Ended) and self._lost_pidfd:
            self._failure = self._error(errno.EMFILE, "descriptors")
        elif isinstance(record, Ended):
            self._result = CompletedProcess(self.args, record, self._placing)
        elif isinstance(record, Suspended):
            self._suspended = record.signum

    def _failure_of(self, failed: Failed) -> OSError:
        if failed.step == b"credentials":
            return self._link.stale()
        if self._placing and failed.step in (b"cgroup", b"join"):
            refusal = self._placing.refused(failed.errno, os.fsdecode(failed.path))
            return refusal if self._insists else NotPlaced(*refusal.args)
        return self._error(failed.errno, failed.step.decode("ascii", "replace"))

    def _error(self, code: int, step: str) -> OSError:
        """Return the exception that `subprocess` would raise; it names the step where that could not."""
        paths = {"execve": self._program, "chdir": self._directory}
        text = os.strerror(code) if step in paths else f"{os.strerror(code)} (at {step})"
        return OSError(code, text, paths.get(step, self._program))

    def _forget_in_child(self) -> None:
        """Close what the guard would see open although the host, the parent, has closed it."""
        self._status.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1

    def _check_here(self) -> None:
        if self._link.is_closed:
            raise ValueError(f"command {self.pid} was launched by the process that this one was forked from")

    def _close_files(self) -> None:
        self._pipes.close()
        self._status.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
        _processes.discard(self)


def layers(link: Link, placing: Placing | None) -> tuple[str, ...]:
    """Return the names of the layers that a command has, the strongest first."""
    cgroup = (f"cgroup-v{placing.version}",) if placing else ()
    return (*cgroup, *(("tag",) if link.hello.tag_width else ()), "subreaper")


_processes: weakref.WeakSet[Process] = weakref.WeakSet()


def _forget_in_child() -> None:
    global _processes
    for process in list(_processes):
        process._forget_in_child()
    _processes = weakref.WeakSet()


os.register_at_fork(after_in_child=_forget_in_child)
