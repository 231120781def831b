"""The command line: `muontrap run [options] -- COMMAND ARG...`. See docs/reference/command-line.md.

Two ways to run a command.  Without a terminal on stdin, it has a session of its own, as in the
library.  With one, it is a job of ours: a process group in our session, which gets the terminal
when we are the foreground group.  The guard gives the terminal to the command and takes it back;
here is what a job needs besides: we stop when it stops, go on with it, and mend the terminal's modes.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import select
import signal
import termios
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any, NoReturn

    from muontrap.host.launcher import Launcher
    from muontrap.host.process import Process
    from muontrap.host.results import CompletedProcess
    from muontrap.logic.command import Options

    _Modes = list[Any]

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
    from muontrap.host.results import TimeoutExpired

    terminal = _Terminal.find()
    try:
        launcher = Launcher(arguments.command, **_options(arguments, terminal, inherited))
        with signals.launch(launcher, arguments.timeout) as process:
            result = _Watcher(process, signals, terminal, arguments).until_end()
    except TimeoutExpired:
        _fail(f"{arguments.command[0]!r} was not executed within {arguments.timeout:g} s")
        return TIMED_OUT
    except (ValueError, TypeError, KeyError, MuontrapError) as error:
        return _fail(_text(error))
    except OSError as error:
        return _refused(error, arguments.command[0])
    finally:
        if terminal:
            terminal.take_back()
    _report(result, with_statistics=arguments.stats)
    return _exit_status(result)


def _options(arguments: argparse.Namespace, terminal: _Terminal | None, inherited: list[int]) -> Options:
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
        options["start_new_session"] = False
        options["foreground"] = terminal.lend()
    return options


class _Watcher:
    """Waits for the end of the command, and does what signals, the time and the terminal ask for."""

    def __init__(
        self,
        process: Process,
        signals: _Signals,
        terminal: _Terminal | None,
        arguments: argparse.Namespace,
    ) -> None:
        self._process = process
        self._signals = signals
        self._terminal = terminal
        self._delay: float = arguments.delay_to_sigkill
        self._deadline: float | None = None
        if arguments.timeout is not None:
            self._deadline = time.monotonic() + arguments.timeout
        self._stops = 0

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
            self._go_on()
            return
        self._stops += 1
        if self._stops == 1:
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
        terminal.take_back()
        if not wants_terminal:
            os.killpg(0, signal.SIGTSTP)
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
        self._early = 0
        self._reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for signum in (*_STOPPING, signal.SIGCONT):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, self._note)

    def fileno(self) -> int:
        """Return the descriptor that is readable when `read` has something."""
        return self._reading

    def read(self) -> list[int]:
        """Return the signals that have come, in order."""
        try:
            numbers = os.read(self._reading, 4096)
        except BlockingIOError:
            return []
        return [signum for signum in numbers if signum in _STOPPING or signum == signal.SIGCONT]

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
        if self._launching and signum in _STOPPING:
            self._early += 1
            if self._early > 1:
                raise _Interrupted(signum)


class _Interrupted(BaseException):
    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class _Terminal:
    """Our controlling terminal on stdin: which group is in its foreground, and its modes.

    The guard moves the foreground, also when we are killed.  What is done here too is for a command
    that was started in the background, which the guard has no terminal for; and for what a command
    leaves in the foreground: another group of its own, or its end before `execve`.
    """

    def __init__(self) -> None:
        # A process in the background that touches the terminal would be stopped.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        self._is_lent = False
        self._own_modes: _Modes | None = None
        self._commands_modes: _Modes | None = None

    @classmethod
    def find(cls) -> _Terminal | None:
        """Return it if stdin is it."""
        try:
            os.tcgetpgrp(_TERMINAL)
        except OSError:
            return None
        return cls()

    def is_ours(self) -> bool:
        """Tell whether our process group is in the foreground."""
        return self._foreground() == os.getpgrp()

    def lend(self) -> bool:
        """Note the modes if we are in the foreground, for the guard to move a command there."""
        self._is_lent = self.is_ours()
        if self._is_lent:  # in the background, the modes are those of our shell's line editor
            self._own_modes = self._modes()
        return self._is_lent

    def lend_again(self, group: int) -> None:
        """Put the command in the foreground, with the modes that it had, if we are there by now."""
        if self.lend():
            self._set_modes(self._commands_modes)
            self._set_foreground(group)
        else:
            self._is_lent = self._foreground() == group

    def take_back(self) -> None:
        """Be in the foreground, with our modes again, if it was lent."""
        if self._is_lent:
            self._is_lent = False
            self._commands_modes = self._modes()
            self._set_foreground(os.getpgrp())
            self._set_modes(self._own_modes)

    def _foreground(self) -> int:
        try:
            return os.tcgetpgrp(_TERMINAL)
        except OSError:  # hung up
            return 0

    def _set_foreground(self, group: int) -> None:
        with contextlib.suppress(OSError):  # hung up, or the group is gone
            os.tcsetpgrp(_TERMINAL, group)

    def _modes(self) -> _Modes | None:
        try:
            return termios.tcgetattr(_TERMINAL)
        except termios.error:
            return None

    def _set_modes(self, modes: _Modes | None) -> None:
        if modes and modes != self._modes():
            with contextlib.suppress(termios.error):
                # Not TCSADRAIN, which can wait for ever: for output that Ctrl-S holds back.
                termios.tcsetattr(_TERMINAL, termios.TCSANOW, modes)


def _report(result: CompletedProcess, *, with_statistics: bool) -> None:
    """Say what is left, which the user has to know, and the rest if asked for."""
    lines = list(_statistics(result)) if with_statistics else []
    lines += [f"still running: {pid} (no permission to signal it)" for pid in result.not_permitted]
    lines += [f"still running: {pid} (does not die on SIGKILL)" for pid in result.unkillable]
    for line in lines:
        _say(line)


def _statistics(result: CompletedProcess) -> Iterator[str]:
    usage = result.usage
    code = result.returncode
    yield f"reason: {result.reason}"
    if code is not None:
        yield f"exit status: {code}" if code >= 0 else f"killed by: {_signal_name(-code)}"
    yield f"wall: {usage.wall:.3f} s"
    yield f"cpu: {usage.user:.3f} s user, {usage.system:.3f} s system"
    yield f"peak memory: {'too small to tell' if usage.max_rss is None else _mebibytes(usage.max_rss)}"
    for sent in result.signals_sent:
        processes = "1 process" if sent.count == 1 else f"{sent.count} processes"
        yield f"sent: {_signal_name(sent.signal)} to {processes} after {sent.when:.3f} s"


def _exit_status(result: CompletedProcess) -> int:
    if result.reason == "timeout":
        return TIMED_OUT
    # In spite of `subprocess`'s annotation, None for what could not be ended.
    code: int | None = result.returncode
    if code is None:
        return FAILED
    return code if code >= 0 else BY_SIGNAL - code


def _refused(error: OSError, program: str) -> int:
    """Say why there is no command; its exit status tells refusals of `execve` from all others."""
    in_execve = error.filename == program and error.strerror == os.strerror(error.errno or 0)
    status = _fail(f"{error.filename!r}: {error.strerror}" if error.filename else str(error))
    if not in_execve:
        return status
    return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def _fail(message: str) -> int:
    _say(message)
    return FAILED


def _say(message: str) -> None:
    """Write to stderr, which may be closed or full: that must not change the exit status."""
    with contextlib.suppress(OSError):
        os.write(2, f"muontrap: {message}\n".encode(errors="backslashreplace"))


def _text(error: Exception) -> str:
    # A KeyError's own text is the representation of its message.
    text = str(error.args[0] if isinstance(error, KeyError) else error)
    for name, name_here in _NAMES_HERE:
        text = text.replace(name, name_here)
    return text


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"  # of the real-time ones, only two have a name


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def _occupy_standard_streams() -> None:
    """Open /dev/null for streams that are closed: what is opened next would pass for one of them."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        pass
    os.close(fd)


def _inherited_descriptors() -> list[int]:
    """Return what our caller means to pass on: a shell's `3<file`, `<(...)`, make's job server."""
    return sorted(fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_inherited(fd))


def _is_inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # that of the listing itself
        return False


class _Parser(argparse.ArgumentParser):
    """With our prefix and exit status, and without guessing of abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        _fail(message)
        _say(f"try '{self.prog} --help'")
        raise SystemExit(FAILED)


def _parser() -> argparse.ArgumentParser:
    import muontrap

    parser = _Parser(
        prog="muontrap", description="Run programs that cannot outlive the one that started them."
    )
    parser.add_argument("--version", action="version", version=f"muontrap {muontrap.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run = commands.add_parser(
        "run",
        help="run a command until nothing of it is left",
        usage="muontrap run [options] -- COMMAND [ARG...]",
        description="Run a command until nothing of it is left, whatever it started; end all of it "
        "on a timeout, on a signal, and when muontrap itself is killed.",
        epilog="Durations are numbers of seconds, or end in s, m, h or d. Exit status: the command's; 128+N "
        "if signal N killed it; 124 timeout; 125 muontrap itself failed; 126 the command cannot be executed; "
        "127 it was not found.",
    )
    _add_options(run)
    return parser


def _add_options(run: argparse.ArgumentParser) -> None:
    add = run.add_argument
    add("--timeout", type=_timeout, metavar="DURATION", help="end the command after that time")
    add(
        "--delay-to-sigkill",
        type=_duration,
        default=0.5,
        metavar="DURATION",
        help="from the stop signal to SIGKILL for what is left; 0 for SIGKILL at once (default: 0.5)",
    )
    add(
        "--kill-mode",
        choices=("mixed", "control-group", "process"),
        default="mixed",
        help="what gets the stop signal, and then SIGKILL: main process, then everything (mixed, the "
        "default); everything, both times (control-group); the main process alone (process)",
    )
    add(
        "--stop-signal",
        type=_signal_number,
        default=signal.SIGTERM,
        metavar="SIGNAL",
        help="name or number of the first signal (default: TERM)",
    )
    add("--user", type=_account, metavar="USER", help="run as that user, with its groups and HOME")
    add("--group", type=_account, metavar="GROUP", help="run with that primary group")
    add("--allow-root", action="store_true", help="let --user and --group be root")
    add("--cwd", metavar="DIRECTORY", help="run in that directory")
    add(
        "--env",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set a variable, or remove it; may be repeated",
    )
    add("--stats", action="store_true", help="say on stderr why it ended, and what it used")
    add("command", nargs=argparse.REMAINDER, action=_Command, help=argparse.SUPPRESS)


class _Command(argparse.Action):
    """The command and its arguments, without the `--` in front of it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        command = values[1:] if values[:1] == ["--"] else values
        if not command:
            parser.error("no command is given")
        setattr(namespace, self.dest, command)


def _duration(text: str) -> float:
    unit = _SECONDS.get(text[-1:])
    try:
        seconds = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90, 1.5s, 10m, 2h or 1d")
    return seconds


def _timeout(text: str) -> float:
    seconds = _duration(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError(f"{text!r} leaves the command no time; for no limit, leave it out")
    return seconds


def _signal_number(text: str) -> int:
    name = text.upper().removeprefix("SIG")
    signum = int(text) if text.isdecimal() else signal.Signals.__members__.get(f"SIG{name}", 0)
    if signum not in signal.valid_signals():
        raise argparse.ArgumentTypeError(f"{text!r} is no signal, such as TERM, SIGINT or 15")
    return int(signum)


def _account(text: str) -> str | int:
    return int(text) if text.isdecimal() else text


def _variable(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} has no name: it must be NAME=VALUE, or NAME to remove it")
    return name, value if equals else None
