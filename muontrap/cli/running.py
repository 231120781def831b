"""`muontrap run`: one command, until nothing of it is left.

Two ways to run it.  Without a terminal on stdin, it has a session of its own, as in the library.
With one, it is a job of ours: a process group in our session, which gets the terminal when we are the
foreground group.  The guard gives the terminal to the command and takes it back; here is what a job
needs besides: we stop when it stops, go on with it, and mend the terminal's modes.
"""

from __future__ import annotations

import os
import select
import signal
import time

from muontrap.cli.arguments import options
from muontrap.cli.report import BY_SIGNAL, TIMED_OUT, exit_status, fail, refused, report, text
from muontrap.cli.terminal import Terminal
from muontrap.host.link import poll_ms
from muontrap.logic.stopping import Stops

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from muontrap.host.launcher import Launcher
    from muontrap.host.process import Process
    from muontrap.host.results import CompletedProcess
    from muontrap.logic.command import Options

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# What a terminal sends to its foreground.
_OF_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH)


def run(arguments: argparse.Namespace, inherited: list[int]) -> int:
    """Run what the arguments say; return our exit status.

    Args:
        arguments: of `run`.
        inherited: descriptors that the command gets besides the standard streams.
    """
    try:
        return _run(arguments, _Signals(), inherited)
    except _Interrupted as interrupted:
        return BY_SIGNAL + interrupted.signum


def _run(arguments: argparse.Namespace, signals: _Signals, inherited: list[int]) -> int:
    from muontrap.errors import MuontrapError
    from muontrap.host.launcher import Launcher
    from muontrap.host.results import TimeoutExpired

    terminal = Terminal.find()
    if terminal:
        signals.take(signal.SIGTSTP, signal.SIGWINCH)
    try:
        launcher = Launcher(arguments.command, **_options(arguments, terminal, inherited))
        with signals.launch(launcher, arguments.timeout) as process:
            layers = process.containment
            result = _Watcher(process, signals, terminal, arguments).until_end()
    except TimeoutExpired:
        fail(f"{arguments.command[0]!r} was not executed within {arguments.timeout:g} s")
        return TIMED_OUT
    except (ValueError, TypeError, KeyError, MuontrapError) as error:
        return fail(text(error))
    except OSError as error:
        return refused(error, arguments.command[0])
    finally:
        if terminal:
            terminal.take_back()
    report(result, layers if arguments.stats else None)
    return exit_status(result)


def _options(arguments: argparse.Namespace, terminal: Terminal | None, inherited: list[int]) -> Options:
    chosen = options(arguments)
    chosen["pass_fds"] = inherited
    if terminal:
        chosen["start_new_session"] = False
        chosen["foreground"] = terminal.lend()
    return chosen


class _Watcher:
    """Waits for the end of the command, and does what signals, the time and the terminal ask for."""

    def __init__(
        self,
        process: Process,
        signals: _Signals,
        terminal: Terminal | None,
        arguments: argparse.Namespace,
    ) -> None:
        self._process = process
        self._signals = signals
        self._terminal = terminal
        self._delay: float = arguments.delay_to_sigkill
        self._deadline: float | None = None
        if arguments.timeout is not None:
            self._deadline = time.monotonic() + arguments.timeout
        self._stops = Stops()

    def until_end(self) -> CompletedProcess:
        """Return the result when nothing of the command is left."""
        poll = select.poll()
        poll.register(self._signals.fileno(), select.POLLIN)
        poll.register(self._process.fileno(), select.POLLIN)
        self._hear()  # the launch may have read more than its own end
        while self._process.result is None:
            ready = [fd for fd, _ in poll.poll(self._milliseconds())]
            for signum in self._signals.read():
                self._take(signum)
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._deadline = None
                self._process._status.ask(self._delay, b"timeout")
            if self._process.fileno() in ready:
                self._hear()
        return self._process.result

    def _milliseconds(self) -> float | None:
        return poll_ms(None if self._deadline is None else self._deadline - time.monotonic())

    def _take(self, signum: int) -> None:
        if signum == signal.SIGCONT:
            self._go_on()
            return
        if self._terminal and signum in _OF_TERMINAL:
            # With `fg` for a job that is running, a shell gives us the terminal and says nothing.
            is_typed = self._terminal.is_ours()
            if is_typed:
                self._terminal.lend_again(self._process.pid)
            if is_typed or signum not in _STOPPING:
                self._process._status.pass_on(signum)
                return
        if self._stops.is_second(signum, time.monotonic()):
            self._process.kill()
        else:
            self._process._status.ask(self._delay, b"stopped")

    def _hear(self) -> None:
        self._process.poll()
        if self._process.result is None and self._process.suspended is not None and self._terminal:
            self._suspend(self._terminal, self._process.suspended)

    def _suspend(self, terminal: Terminal, signum: int) -> None:
        """Stop, as the command did: our shell then sees its job stopped, and can continue it."""
        # Stopped for want of the terminal, which we have, or which it has got since.
        reached = terminal.foreground() in (os.getpgrp(), self._process.pid)
        wants_terminal = signum in (signal.SIGTTIN, signal.SIGTTOU) and reached
        terminal.take_back()
        if not wants_terminal:
            self._signals.stop_group()
        # Here again: continued by somebody; or nobody could (an orphaned group is not stopped).
        # In the background, only SIGCONT tells which.
        if terminal.is_ours():
            self._go_on()

    def _go_on(self) -> None:
        if self._terminal:
            self._terminal.lend_again(self._process.pid)
        if self._process.suspended is not None:
            self._process.resume()


class _Signals:
    """Signals as bytes on a descriptor, so that one wait is for them and for the command.

    Those that our caller has us ignore (nohup, a shell's background job) stay ignored.
    """

    def __init__(self) -> None:
        self._launching = False
        self._early = Stops()
        self._reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self.take(*_STOPPING, signal.SIGCONT)

    def take(self, *signums: int) -> None:
        """Have these in `read`, too."""
        for signum in signums:
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._note)

    def stop_group(self) -> None:
        """Stop our process group, ourselves included, as Ctrl-Z would."""
        handler = signal.getsignal(signal.SIGTSTP)
        if handler is not signal.SIG_IGN:
            signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.killpg(0, signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read` has something."""
        return self._reading

    def read(self) -> list[int]:
        """Return the signals that have come, in order."""
        try:
            numbers = os.read(self._reading, 4096)
        except BlockingIOError:
            return []
        return [signum for signum in numbers if signum in (*_STOPPING, *_OF_TERMINAL, signal.SIGCONT)]

    def launch(self, launcher: Launcher, timeout: float | None) -> Process:
        """Launch; give up on the second signal, for a file system that hangs can make it last.

        The first one waits until there is a command to stop.

        Raises:
            _Interrupted: the guard ends what there is, once we have exited.
            TimeoutExpired, OSError, GuardError, GuardDied: as `Launcher.launch`.
        """
        self._launching = True
        try:
            return launcher.launch(timeout=timeout)
        finally:
            self._launching = False

    def _note(self, signum: int, _: object) -> None:
        if self._launching and signum in _STOPPING and self._early.is_second(signum, time.monotonic()):
            raise _Interrupted(signum)


class _Interrupted(BaseException):
    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
