"""The command line: `muontrap run [options] -- COMMAND ARG...`. See docs/reference/command-line.md.

Two ways to run a command.  Without a terminal on stdin, it has a session of its own, as in the
library.  With one, it is a job of ours: a process group in our session, which gets the terminal
when we are the foreground group.  The guard gives the terminal to the command and takes it back;
here is what a job needs besides: we stop when it stops, go on with it, and mend the terminal's modes.
"""

from __future__ import annotations

import argparse
import math
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import NoReturn

    from muontrap.host.process import Process
    from muontrap.host.results import CompletedProcess
    from muontrap.logic.command import Options

# Exit statuses, as of env(1) and timeout(1); 128 + N is for signal N.
TIMED_OUT, FAILED, NOT_EXECUTABLE, NOT_FOUND, BY_SIGNAL = 124, 125, 126, 127, 128

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_TERMINAL = 0  # the terminal that counts is the one on stdin
_LONGEST_WAIT = 1e6  # s; poll(2) takes milliseconds as an int
# What the library's messages call options, and what they are called here.
_NAMES_HERE = (("allow_root=True", "--allow-root"), ("group=", "--group"))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    It takes over the process: dispositions of signals stay changed.

    Args:
        argv: arguments without the program's name; None for those of this process.

    Raises:
        SystemExit: after `--help` and `--version`, and for arguments that make no sense.
    """
    _occupy_standard_streams()
    inherited = _inherited_descriptors()
    arguments = _parser().parse_args(argv)
    try:
        signals = _Signals()
        return _run(arguments, signals, inherited)
    except _Interrupted as interrupted:
        return BY_SIGNAL + interrupted.signum
    except KeyboardInterrupt:  # before there was a handler
        return BY_SIGNAL + signal.SIGINT


def _run(arguments: argparse.Namespace, signals: _Signals, inherited: list[int]) -> int:
    from muontrap.errors import MuontrapError
    from muontrap.host.launcher import Launcher

    terminal = _Terminal.find()
    try:
        launcher = Launcher(arguments.command, **_options(arguments, terminal, inherited))
        began = time.monotonic()
        process = signals.launch(launcher.launch)
        try:
            deadline = None if arguments.timeout is None else began + arguments.timeout
            result = _Watcher(process, signals, terminal, deadline, arguments.delay_to_sigkill).until_end()
        finally:
            process.close()
    except (ValueError, TypeError, KeyError, MuontrapError) as error:
        return _fail(_text(error))
    except OSError as error:
        return _refused(error, arguments.command[0])
    finally:
        if terminal:
            terminal.restore()
    _report(result, with_statistics=arguments.stats)
    return _exit_status(result)


def _options(
    arguments: argparse.Namespace, terminal: _Terminal | None, inherited: list[int]
) -> Options:
    options: Options = {
        "delay_to_sigkill": arguments.delay_to_sigkill,
        "kill_mode": arguments.kill_mode,
        "stop_signal": arguments.stop_signal,
        "user": arguments.user,
        "group": arguments.group,
        "allow_root": arguments.allow_root,
        "cwd": arguments.cwd,
        "env_update": dict(arguments.env),
        "pass_fds": inherited,
    }
    if terminal:
        options.update(start_new_session=False, foreground=terminal.is_ours())
    return options


class _Watcher:
    """Waits for the end of the command, and does what signals, the time and the terminal ask for."""

    def __init__(
        self,
        process: Process,
        signals: _Signals,
        terminal: _Terminal | None,
        deadline: float | None,
        delay: float,
    ) -> None:
        self._process = process
        self._signals = signals
        self._terminal = terminal
        self._deadline = deadline
        self._delay = delay

    def until_end(self) -> CompletedProcess:
        """Return the result when nothing of the command is left."""
        poll = select.poll()
        poll.register(self._signals.fileno(), select.POLLIN)
        poll.register(self._process.fileno(), select.POLLIN)
        while self._process.result is None:
            ready = [fd for fd, _ in poll.poll(self._milliseconds())]
            for signum in self._signals.read():
                self._take(signum)
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._deadline = None
                self._process._ask(self._delay, b"timeout")
            if self._process.fileno() in ready:
                self._hear()
        return self._process.result

    def _milliseconds(self) -> float | None:
        if self._deadline is None:
            return None
        return math.ceil(1000 * min(max(0.0, self._deadline - time.monotonic()), _LONGEST_WAIT))

    def _take(self, signum: int) -> None:
        if signum == signal.SIGCONT:
            self._resume()
        elif self._signals.stops == 1:
            self._process._ask(self._delay, b"stopped")
        else:
            self._process.kill()

    def _hear(self) -> None:
        self._process.poll()
        if self._process.result is None and self._process.suspended is not None and self._terminal:
            self._suspend(self._terminal, self._process.suspended)

    def _suspend(self, terminal: _Terminal, signum: int) -> None:
        """Stop, as the command did: our shell then sees its job stopped, and can continue it."""
        wants_terminal = signum in (signal.SIGTTIN, signal.SIGTTOU) and terminal.is_ours()
        terminal.take_from(self._process.pid)
        if not wants_terminal:
            os.killpg(0, signal.SIGTSTP)
        # Here again: continued by somebody; or nobody could (an orphaned group is not stopped).
        # In the background, only SIGCONT tells which.
        if terminal.is_ours():
            self._resume()

    def _resume(self) -> None:
        if self._process.suspended is not None and self._terminal:
            self._terminal.give_to(self._process.pid)
            self._process.resume()


class _Signals:
    """Signals as bytes on a descriptor, so that one wait is for them and for the command.

    Those that our caller has us ignore (nohup, a shell's background job) stay ignored.

    Attributes:
        stops: how many have come that ask for the command's end.
    """

    def __init__(self) -> None:
        self.stops = 0
        self._launching = False
        self._reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for signum in (*_STOPPING, signal.SIGCONT):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._note)

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read` has something."""
        return self._reading

    def read(self) -> Iterator[int]:
        """Yield the signals that have come, in order."""
        try:
            for signum in os.read(self._reading, 4096):
                if signum in _STOPPING:
                    self.stops += 1
                    yield signum
                elif signum == signal.SIGCONT:
                    yield signum
        except BlockingIOError:
            pass
