"""A long-running command, as it is described, and what became of it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from importlib import import_module

from muontrap.host.launcher import Launcher
from muontrap.logic.children import Child
from muontrap.logic.command import DEVNULL, PIPE, STDOUT, check_positive_seconds
from muontrap.supervise.checks import check_callable, check_child, check_type, names, statuses
from muontrap.supervise.recent import Recent
from muontrap.supervise.run import Run

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self, Unpack

    from muontrap.host.cgroups import Cgroup
    from muontrap.host.exchange import Sink
    from muontrap.host.results import CompletedProcess
    from muontrap.logic.accounting import CgroupStatistics
    from muontrap.logic.children import Backoff, Restart
    from muontrap.logic.command import Args, Options
    from muontrap.supervise.branch import Branch
    from muontrap.supervise.readiness import NotifySocket, Probe
    from muontrap.supervise.supervisor import Supervisor

_TOLD_US = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_RECENT = 16 * 1024
_SUCCESS = frozenset((0,))


class DaemonStatistics:
    """What became of a daemon so far.

    Attributes:
        name: of the daemon.
        state: "stopped", "waiting", "starting", "ready" or "stopping".
        pid: of its main process, None when it does not run.
        uptime: seconds since it was started, None when it does not run.
        restarts: how often it was started again after it had ended by itself.
        start_failures, failures: how often it ended before it was ready, and later.
        output_bytes: of all its runs.
        last_exit: why its last run ended, None before.
        cgroup: what its cgroup counts now (`CgroupStatistics`), None without one.
    """

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    name: str
    state: str
    pid: int | None
    uptime: float | None
    restarts: int
    start_failures: int
    failures: int
    output_bytes: int
    last_exit: str | None
    cgroup: CgroupStatistics | None

    def __repr__(self) -> str:
        return f"DaemonStatistics({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


class Daemon:
    """A command that is to be kept running: by a `Supervisor`, or by itself in a `with` statement.

    Args:
        args, options: as for `Launcher`.  stdin is `DEVNULL` unless given; stdout is read, and stderr
            goes with it, unless they are given.
        name: unique among its siblings; the program's name unless given.
        restart: "permanent" (whenever it ends), "transient" (unless it succeeds) or "temporary" (never).
        success_exit_status: exit statuses that are a success besides 0.
        exit_status_to_reason: told the `CompletedProcess`, returns None for a success, else why it is a
            failure; in place of `success_exit_status`.
        essential: its end for good is the end of its supervisor.
        depends_on: names of siblings that have to be ready before it starts.
        backoff: how long to wait before a restart (`Backoff`).
        wait_for: what has to be there before each start: "tcp:HOST:PORT", "unix:PATH", "file:PATH", or
            a function that blocks until then, in a thread of its own.  It is given a `threading.Event`,
            if it needs an argument, set when the wait is to end.
        ready: when it is of use: None (as soon as it runs), "notify" (READY=1, see sd_notify(3)),
            "output:REGEX" (a line of its output), or as `wait_for`.
        ready_timeout: seconds after which one that is not ready has failed; None for no limit.
        watchdog: seconds; it has failed when it does not say WATCHDOG=1 that often.
        log_output: level to log its output at, each line a record; None for not.
        logger: where to; "muontrap.daemon.NAME" unless given.
        log_prefix, log_transform: see `LogLines`.
        logger_metadata: attributes of each record (`extra`), besides `daemon`.
        recent_output: bytes of its last output that are kept for `recent`.
    """

    def __init__(
        self,
        args: Args,
        /,
        *,
        name: str | None = None,
        restart: Restart = "permanent",
        success_exit_status: Iterable[int] = (),
        exit_status_to_reason: Callable[[CompletedProcess], str | None] | None = None,
        essential: bool = False,
        depends_on: Sequence[str] = (),
        backoff: Backoff | None = None,
        wait_for: str | Callable[..., object] | None = None,
        ready: str | None = None,
        ready_timeout: float | None = None,
        watchdog: float | None = None,
        log_output: int | None = None,
        logger: logging.Logger | None = None,
        log_prefix: str = "",
        log_transform: Callable[[str], str | None] | None = None,
        logger_metadata: Mapping[str, object] | None = None,
        recent_output: int = _RECENT,
        **options: Unpack[Options],
    ) -> None:
        check_callable("exit_status_to_reason", exit_status_to_reason)
        self.supervisor: Supervisor | None = None
        self._restart = restart
        self._essential = essential
        self._depends_on = names("depends_on", depends_on)
        self._backoff = backoff
        successes = statuses(success_exit_status)
        self._success = _SUCCESS.union(successes) if successes else _SUCCESS
        self._judge = exit_status_to_reason
        self._wait_for = _what_to_wait_for(wait_for)
        self._ready = None if ready is None else _probe("ready", ready)
        self._ready_timeout = _positive("ready_timeout", ready_timeout)
        self._watchdog = _positive("watchdog", watchdog)
        self._recent = Recent(_size("recent_output", recent_output))
        self._reads = bool(recent_output or log_output is not None or ready)
        self._given = (args, options) if self._is_heard else None
        self._launcher = self._make_launcher(args, options)
        self.name: str = os.path.basename(os.fsdecode(self._launcher.args[0])) if name is None else name
        check_child(self.name, essential, backoff)
        self._child_state: Child = self._new_child()
        self._log_line = self._line_logger(log_output, logger, log_prefix, log_transform, logger_metadata)
        self._run: Run | None = None
        self._last_exit: str | None = None
        self._check_output(log_output, ready)
        self._load()

    @property
    def os_pid(self) -> int | None:
        """The pid of its main process, None when it does not run."""
        run = self._run
        return run.pid if run else None

    @property
    def cgroup(self) -> Cgroup | None:
        """Its cgroup, None without one, or when it does not run."""
        run = self._run
        process = run.process if run else None
        return process.cgroup if process else None

    def statistics(self) -> DaemonStatistics:
        """Return what became of it so far."""
        run, child, cgroup = self._run, self._child_state, self.cgroup
        began = run.began if run else None
        try:
            counted = cgroup.statistics() if cgroup else None
        except OSError:  # it is removed: the daemon has just ended
            counted = None
        return DaemonStatistics(
            name=self.name,
            state=child.state,
            pid=self.os_pid,
            uptime=None if began is None else time.monotonic() - began,
            restarts=child.restarts,
            start_failures=child.start_failures,
            failures=child.failures,
            output_bytes=self._recent.count,
            last_exit=self._last_exit,
            cgroup=counted,
        )

    def recent(self) -> bytes:
        """Return the last of its output, at most `recent_output` bytes."""
        return self._recent.read()[0]

    def __enter__(self) -> Self:
        from muontrap.supervise.supervisor import Supervisor

        alone = Supervisor([self], name=f"supervisor of {self.name}")
        try:
            alone.__enter__()
        except BaseException:
            self.supervisor = None
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        alone, self.supervisor = self.supervisor, None
        assert alone is not None
        alone.__exit__(kind, error, trace)

    def __repr__(self) -> str:
        return f"<Daemon {self.name!r} of {self._launcher.args!r}: {self._child_state.state}>"

    # What follows is for the tree.

    def _begin(self, branch: Branch) -> None:
        """Start, as a child, in the thread of the tree."""
        self._run = Run(self, branch)

    def _end(self) -> None:
        """Stop, as a child."""
        if self._run:
            self._run.stop()

    def _has_ended(self, why: str) -> None:
        """Its run is over."""
        self._run, self._last_exit = None, why

    def _listen(self) -> NotifySocket | None:
        """Have a socket for one run, if it says something: another each time.

        A forked child of the host may have a copy of the last one, and so its address.
        """
        if self._given is None:
            return None
        from muontrap.supervise.readiness import NotifySocket

        socket = NotifySocket()
        self._launcher = self._make_launcher(*self._given, socket.address)
        return socket

    def _sink(self, run: Run) -> Sink | None:
        """Return what takes the output of a run."""
        command = self._launcher._command
        if command.stdout != PIPE:
            return None
        if not self._reads_lines:
            return self._recent
        from muontrap.supervise.lines import Lines

        return Lines(self.name, command, self._recent, self._log_line, self._ready, run.hear_of_match)

    def _new_child(self) -> Child:
        """Return how the machine of its supervisor sees it, at the beginning."""
        return Child(
            self.name,
            self._restart,
            depends_on=self._depends_on,
            essential=self._essential,
            backoff=self._backoff,
        )

    @property
    def _is_heard(self) -> bool:
        return self._watchdog is not None or (self._ready is not None and self._ready.kind == "notify")

    @property
    def _reads_lines(self) -> bool:
        return bool(self._log_line or (self._ready and self._ready.pattern))

    def _make_launcher(self, args: Args, options: Options, notify: str = "") -> Launcher:
        """Return the command as it is to be run, with the address of a socket on which it is heard."""
        given: dict[str, Any] = {"stdin": DEVNULL, **options}
        if given.get("stdout") is None and self._reads:
            given["stdout"] = PIPE
        if given.get("stderr") is None and given.get("stdout") == PIPE:
            given["stderr"] = STDOUT
        # What systemd has told the host is not for its daemons.
        variables: dict[str, str | None] = {}
        if given.get("env") is None:
            variables.update({name: None for name in _TOLD_US if name in os.environ})
        changes = given.get("env_update") or {}
        said: dict[str, str | None] = {}
        if notify:
            said["NOTIFY_SOCKET"] = notify
            if self._watchdog is not None:
                said["WATCHDOG_USEC"] = str(int(self._watchdog * 1e6))
        if (variables or said) and isinstance(changes, Mapping):  # else it is refused below
            given["env_update"] = {**variables, **changes, **said}
        return Launcher(args, **given)

    def _line_logger(
        self,
        level: int | None,
        logger: logging.Logger | None,
        prefix: str,
        transform: Callable[[str], str | None] | None,
        metadata: Mapping[str, object] | None,
    ) -> Callable[[str], None] | None:
        """Return what logs a line of output, None if that is not asked for."""
        check_type("log_prefix", prefix, str, "a string")
        check_type("logger_metadata", metadata or {}, Mapping, "a mapping")
        check_callable("log_transform", transform)
        if level is None:
            return None
        import logging

        from muontrap.host.sinks import LogLines

        logger = logger or logging.getLogger(f"muontrap.daemon.{self.name}")
        extra = {**(metadata or {}), "daemon": self.name}
        lines = LogLines(logger, level, prefix=prefix, transform=transform, extra=extra)
        return lines.of(os.fsdecode(self._launcher.args[0]), "stdout")

    def _load(self) -> None:
        """Import what its runs need, now: files and descriptors for that may be missing later."""
        if self._wait_for or self._ready or self._is_heard:
            import_module("muontrap.supervise.readiness")
        if self._reads_lines:
            import_module("muontrap.supervise.lines")

    def _check_output(self, log_output: int | None, ready: str | None) -> None:
        """Raise for streams, and for options that need what is not read."""
        command = self._launcher._command
        for option in ("stdin", "stderr"):
            if getattr(command, option) == PIPE:
                raise ValueError(f"{option}=PIPE: nobody is at the other end of a daemon's pipe")
        if command.stdout == PIPE:
            return
        for option, value in (
            ("log_output", log_output),
            ("ready", ready if self._ready and self._ready.pattern else None),
            ("inactivity_timeout", command.inactivity_timeout),
        ):
            if value is not None:
                raise ValueError(f"{option}={value!r} needs its output: stdout can't be given")

    def _verdict(self, result: CompletedProcess) -> str:
        """Return why a run that ended by itself has failed, "" for a success."""
        if self._judge:
            return self._judge(result) or ""
        if result.returncode in self._success and result.reason == "exited":
            return ""
        return _why(result)


def _size(option: str, count: int) -> int:
    check_type(option, count, int, "a number of bytes")
    if count < 0:
        raise ValueError(f"{option} must be 0 or more, not {count!r}")
    return count


def _positive(option: str, seconds: float | None) -> float | None:
    return None if seconds is None else check_positive_seconds(option, seconds)


def _probe(option: str, text: str) -> Probe:
    from muontrap.supervise.readiness import Probe  # for those that have one

    return Probe(option, text)


def _what_to_wait_for(given: object) -> Any:
    """Return a `Probe`, a function or None."""
    if isinstance(given, str):
        probe = _probe("wait_for", given)
        if probe.kind in ("notify", "output"):
            raise ValueError(f"wait_for can't be {given!r}: that comes from the daemon itself")
        return probe
    if not (given is None or callable(given)):
        raise TypeError(f"wait_for must be a string or callable, not {given!r}")
    return given


def _why(result: CompletedProcess) -> str:
    """Return how it ended, for people."""
    code = result.returncode
    if result.reason == "exited":
        return f"exit status {code}"
    if result.reason == "signal" and code is not None:
        return f"killed by signal {-code}"
    return result.explanation
