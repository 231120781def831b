"""A running command, as the host sees it."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from operator import itemgetter

from muontrap.errors import GuardDied
from muontrap.host.exchange import Exchange
from muontrap.host.link import wait_readable
from muontrap.host.results import TimeoutExpired
from muontrap.logic.command import check_seconds, check_signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import IO, Any, Literal, NoReturn, TypeAlias, overload

    from muontrap.host.cgroups import Cgroup, Placing
    from muontrap.host.delivery import Reader
    from muontrap.host.exchange import Sink
    from muontrap.host.link import Link
    from muontrap.host.results import CompletedProcess
    from muontrap.host.status import Status
    from muontrap.host.streams import Pipes
    from muontrap.logic.command import Args, Command

    Captured: TypeAlias = Literal["stdout", "stderr", "both"]

# A guard that does not answer for this long beyond all that it may need is not waited for.
_ANSWER_BOUND = 5.0
# Callbacks get what is left of the output when a command is closed; they are not waited for for longer.
_DELIVERY_BOUND = 1.0


class Process:
    """A command that `Launcher.launch` started; it has no public constructor.

    All methods may be called from any thread.  Leaving it as a context manager stops the command;
    so does its garbage collection, with a `ResourceWarning`.

    Attributes:
        args: as given.
        stdin, stdout, stderr: file objects of those that are `PIPE`, else None.
        cgroup: its cgroup (`Cgroup`), None without one.
        reader: its output on the way to callbacks (`Reader`), None without them.
    """

    args: Args
    stdin: IO[Any] | None
    stdout: IO[Any] | None
    stderr: IO[Any] | None
    cgroup: Cgroup | None
    reader: Reader | None = None
    _exchange: Exchange | None = None
    _is_closed = False
    _is_told = False

    def __init__(self, command: Command, pipes: Pipes, status: Status) -> None:
        self.args = command.args
        self.stdin, self.stdout, self.stderr = pipes.files
        self.cgroup = status.placing.cgroup if status.placing else None
        self._command = command
        self._status = status
        self._pipes = pipes
        self._closing = threading.RLock()  # a signal's handler may close it as well

    @property
    def pid(self) -> int:
        """The pid of the main process, its own until nothing of the command is left."""
        return self._status.pid

    @property
    def pidfd(self) -> int:
        """A descriptor of the main process; `close` closes it, and it is -1 then."""
        return self._status.pidfd

    @property
    def containment(self) -> tuple[str, ...]:
        """The layers that contain it, the strongest first: "cgroup-v2", "cgroup-v1", "tag", "subreaper"."""
        return layers(self._status.link, self._status.placing)

    @property
    def returncode(self) -> int | None:
        """The return code, None until `poll` or `wait` has seen the end."""
        return self._status.result.returncode if self._status.result else None

    @property
    def result(self) -> CompletedProcess | None:
        """How it ended, None until `poll` or `wait` has seen the end."""
        return self._status.result

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when nothing of the command is left.

        For `select` and event loops; then `poll` has the result.  (It is readable also when a command
        with `start_new_session=False` is stopped by a signal: `poll` returns None then.)
        """
        return (self.reader or self._status).fileno()

    def poll(self) -> int | None:
        """Return the return code if nothing of the command is left, and callbacks have all, else None.

        Raises:
            GuardDied: the guard was killed; the command is dead.
            Exception: what a callback has raised.
        """
        return self.returncode if self._wait_until(0) else None

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until nothing of the command is left, and callbacks have all; return the return code.

        That is None when its main process can't be ended: see `result`.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutExpired: the command still runs.
            GuardDied: the guard was killed; the command is dead.
            Exception: what a callback has raised.
        """
        deadline = None if timeout is None else time.monotonic() + check_seconds("timeout", timeout)
        if not self._wait_until(deadline):
            assert timeout is not None
            raise TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write `input`, read stdout and stderr until nothing of the command is left; return both.

        Unlike `subprocess`, it does not wait for end of file: what was written before the end is
        there, and who else holds the pipes does not matter.  What the file objects have read ahead
        belongs to it; not to be called while another thread reads from them.

        Raises:
            TimeoutExpired: the command still runs; calling again goes on, and nothing is lost.
            GuardDied: the guard was killed; the command is dead.
            TypeError: `input` is not what the command's stdin takes: str if its streams are text, else bytes.
            ValueError: the output goes to callbacks; or there is `input`, but no open stdin, or some
                was given before.
        """
        self._check_readable()
        deadline = None if timeout is None else time.monotonic() + check_seconds("timeout", timeout)
        exchange = self._exchange = self._exchange or Exchange(self._command, self._pipes, self._status)
        exchange.communicate(input)
        if not exchange.until_end(deadline):
            assert timeout is not None
            raise TimeoutExpired(self.args, timeout, *exchange.so_far())
        return exchange.outputs()

    if TYPE_CHECKING:

        @overload
        def chunks(self, stream: Literal["stdout", "stderr"] | None = None) -> Iterator[bytes]: ...
        @overload
        def chunks(self, stream: Literal["both"]) -> Iterator[tuple[str, bytes]]: ...

    def chunks(self, stream: Captured | None = None) -> Iterator[bytes] | Iterator[tuple[str, bytes]]:
        """Return an iterator over the output, in pieces of no more than `stdio_window` bytes.

        A piece is handled when the next is asked for; meanwhile nothing is read, and the command
        blocks in write when the pipe is full.  It ends when nothing of the command is left, or with
        end of file.  Not to be mixed with reads from `stdout` or `stderr` themselves.

        Args:
            stream: "stdout", "stderr", or "both" for pairs such as ("stderr", b"..."); None for the
                one that is `PIPE`.

        Raises:
            ValueError: that is not `PIPE`, or None and both are, or the output goes to callbacks.
            GuardDied: from the iterator, after all output: the guard was killed; the command is dead.
        """
        targets = self._targets(stream)
        pieces = self._pieces(targets)
        return map(_second, pieces) if len(targets) == 1 else map(_named, pieces)

    def lines(self, stream: Captured | None = None, *, keepends: bool = False) -> Iterator[Any]:
        """Return an iterator over the lines of the output.

        They are str if the command's streams are text (undecodable bytes are replaced, unless `errors`
        says otherwise), else bytes.  Of a line longer than `max_line` the pieces come, all but the
        last marked as `Cut`.  Otherwise as `chunks`.

        Args:
            stream: as for `chunks`.
            keepends: lines with their ends, as they are in the output.  That is faster; a line that ends
                with `\\r` comes when the next byte is there.
        """
        from muontrap.host import reader

        targets = self._targets(stream)
        lines = reader.lines(self._command, self._pieces(targets), targets, keepends=keepends)
        return lines if len(targets) == 1 else map(_named, lines)

    def send_signal(self, signum: int) -> None:
        """Send a signal to the main process; nothing happens if it has ended.

        Raises:
            TypeError, ValueError: that is no signal.
            PermissionError: it runs as another user.
        """
        self._status.send_signal(check_signal("signum", signum))

    def terminate(self) -> None:
        """Send SIGTERM to the main process. `stop` does more."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL to the whole command; `send_signal(SIGKILL)` reaches its main process alone."""
        self._status.ask(0.0, b"stopped")

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
        delay = self._command.delay_to_sigkill
        if delay_to_sigkill is not None:
            delay = check_seconds("delay_to_sigkill", delay_to_sigkill)
        self._status.ask(delay, b"stopped")
        bound = delay + _ANSWER_BOUND
        if not self._status.wait(time.monotonic() + bound):
            raise TimeoutExpired(self.args, bound)
        assert self._status.result is not None
        return self._status.result

    def close(self) -> None:
        """Stop the command if it runs, let callbacks have what is left of its output, close all descriptors.

        Raises:
            Exception: what a callback has raised, if `wait` has not said so and no other exception ends
                the `with` block.
        """
        if self._status.is_closed:
            return
        if self.reader and self.reader.is_within_pump:
            self._let_go()
            return
        try:
            if self._status.is_running:
                self.stop()
            reader = self.reader
            if reader and not (self._is_told or reader.is_calling or reader.is_stalled):
                self._wait_until(time.monotonic() + _DELIVERY_BOUND)
        except ValueError:
            if not self._status.is_closed:  # by a finalizer that was first, meanwhile
                raise
        finally:
            self._close_files()

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except BaseException as raised:
            # With these nothing of the command is left, and what has ended the block is what to tell.
            is_minor = isinstance(raised, (OSError, GuardDied))
            if kind is None or not (is_minor or raised is (self.reader and self.reader.error)):
                raise

    def __del__(self) -> None:
        if not hasattr(self, "_closing") or self._is_closed or self._status.link.is_closed:
            return
        is_left = self._status.is_running
        self._let_go()
        if is_left:  # last, for it may raise
            warnings.warn(f"command {self.pid} still runs, and is stopped", ResourceWarning, 2, source=self)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Process can't be copied or pickled: the end of each would end the command")

    def __repr__(self) -> str:
        return f"<Process {self.pid} of {self.args!r}: {self.result or 'running'}>"

    @property
    def suspended(self) -> int | None:
        """The signal that stopped the main process, if `poll` has seen that since the last `resume`.

        Only of a command with `start_new_session=False`: it shares the host's terminal, and Ctrl-Z.
        """
        return self._status.suspended

    def resume(self) -> None:
        """Let a suspended command go on, in the foreground if it was there and the host is now."""
        self._status.resume()

    def wait_started(self, timeout: float | None) -> None:
        """Wait until `execve` is done. For `Launcher.launch`, which says what it raises."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._status.has_ended() and self.pid < 0:
            if not self._status.wait_for_word(deadline):
                if not self._status.expire(self._status.wait):
                    self._close_files()  # the guard goes on hunting what does not die
                raise TimeoutExpired(self.args, timeout or 0.0, None, None, self.result)

    def call_back(self, sinks: dict[int, Sink], *, explicit: bool) -> None:
        """Let the host's pump read. For `Launcher.launch`."""
        from muontrap.host.delivery import Reader

        self.reader = Reader(self._command, self._pipes, self._status, sinks, explicit=explicit)

    def _wait_until(self, deadline: float | None) -> bool:
        """Wait until nothing is left, and callbacks have all output; False when the deadline came first."""
        if self.reader is None:
            return self._status.wait(deadline)
        self._status.check_here()
        if self.reader.is_calling:
            raise RuntimeError("a callback can't wait for its own command, which waits for the callback")
        if deadline is None and self.reader.is_within_pump:
            raise RuntimeError("this finalizer can't wait: it has interrupted what calls callbacks")
        with self._status.use():
            while not self.reader.is_done:
                fd = self.reader.fileno()
                left = None if deadline is None else deadline - time.monotonic()
                if fd >= 0 and not wait_readable([fd], left):
                    return False
        self._is_told = True
        self.reader.check()
        return self._status.has_ended()

    def _check_readable(self) -> None:
        self._status.check_here()
        if self._is_closed:
            raise ValueError("the Process was closed")
        if self.reader:
            raise ValueError("the output goes to callbacks already")

    def _targets(self, stream: str | None) -> tuple[int, ...]:
        """Return the descriptors, as the command has them, of what is to be read."""
        self._check_readable()
        captured = tuple(target for target in (1, 2) if self._pipes.fd(target) is not None)
        if stream is None and len(captured) == 2:
            raise ValueError("stdout and stderr are both PIPE: say 'stdout', 'stderr' or 'both'")
        if stream is not None and stream not in list(_TARGETS):  # which finds what has no hash, too
            raise ValueError(f"stream must be 'stdout', 'stderr' or 'both', not {stream!r}")
        targets = captured if stream is None else _TARGETS[stream]
        if not targets or not set(targets) <= set(captured):
            asked = "no stream is" if stream is None else f"{stream!r} is not"
            raise ValueError(f"{asked} PIPE and open: there is nothing to read")
        return targets

    def _pieces(self, targets: tuple[int, ...]) -> Iterator[tuple[int, bytes]]:
        from muontrap.host import reader

        return reader.chunks(self._command, self._pipes, self._status, targets)

    def _let_go(self) -> None:
        """Close it without waiting: in a finalizer. The one of its socket may have run already."""
        if self._status.is_running and not self._status.is_closed:
            self._status.let_go()
        if self.reader:
            self.reader.leave(self._close_files)
        else:
            self._close_files()

    def _close_files(self) -> None:
        with self._closing:
            if self.reader:
                self.reader.close()
            try:
                self._status.close()
            finally:
                self._status.close_unused(self._pipes.close)
                self._is_closed = True


_TARGETS = {"stdout": (1,), "stderr": (2,), "both": (1, 2)}
_NAMES = {1: "stdout", 2: "stderr"}
_second = itemgetter(1)


def _named(piece: tuple[int, Any]) -> tuple[str, Any]:
    return _NAMES[piece[0]], piece[1]


def layers(link: Link, placing: Placing | None) -> tuple[str, ...]:
    """Return the names of the layers that a command has, the strongest first."""
    cgroup = (f"cgroup-v{placing.version}",) if placing else ()
    return (*cgroup, *(("tag",) if link.hello.tag_width else ()), "subreaper")
