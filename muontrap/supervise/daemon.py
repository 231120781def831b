"""A long-running command, and one run of it: from what it waits for to why it ended."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping

from muontrap.errors import GuardDied, MuontrapError
from muontrap.host.launcher import Launcher
from muontrap.host.link import StaleGuard
from muontrap.host.sinks import LogLines, make_splitter
from muontrap.host.status import NotPlaced
from muontrap.logic.command import DEVNULL, PIPE, STDOUT, check_positive_seconds
from muontrap.logic.supervision import Backoff, Child
from muontrap.supervise.readiness import NotifySocket, Probe

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self, Unpack

    from muontrap.host.cgroups import Cgroup
    from muontrap.host.process import Process
    from muontrap.host.results import CompletedProcess
    from muontrap.logic.accounting import CgroupStatistics
    from muontrap.logic.command import Args, Options
    from muontrap.logic.supervision import Restart
    from muontrap.supervise.supervisor import Supervisor

# A guard that has not said the end for this long beyond the grace is stuck.
_ANSWER_BOUND = 5.0
_DELIVERY_BOUND = 1.0
_TOLD_US = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
_RECENT = 16 * 1024
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_logger = logging.getLogger("muontrap.supervisor")


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
        launcher = Launcher(args, **options)
        self.name: str = os.path.basename(os.fsdecode(launcher.args[0])) if name is None else name
        check_child(self.name, backoff)
        check_type("log_prefix", log_prefix, str, "a string")
        check_type("recent_output", recent_output, int, "a number of bytes")
        if recent_output < 0:
            raise ValueError(f"recent_output must be 0 or more, not {recent_output!r}")
        check_type("logger_metadata", logger_metadata or {}, Mapping, "a mapping")
        check_callable("log_transform", log_transform)
        check_callable("exit_status_to_reason", exit_status_to_reason)
        for option in ("stdin", "stderr"):
            if options.get(option) == PIPE:
                raise ValueError(f"{option}=PIPE: nobody is at the other end of a daemon's pipe")
        self.supervisor: Supervisor | None = None
        self._restart = restart
        self._essential = essential
        self._depends_on = names("depends_on", depends_on)
        self._backoff = backoff
        self._child_state: Child = self._new_child()
        self._success = frozenset((0, *_statuses(success_exit_status)))
        self._judge = exit_status_to_reason
        self._wait_for = Probe("wait_for", wait_for) if isinstance(wait_for, str) else wait_for
        if isinstance(self._wait_for, Probe) and self._wait_for.kind in ("notify", "output"):
            raise ValueError(f"wait_for can't be {wait_for!r}: that comes from the daemon itself")
        if not (wait_for is None or isinstance(wait_for, str) or callable(wait_for)):
            raise TypeError(f"wait_for must be a string or callable, not {wait_for!r}")
        self._ready = None if ready is None else Probe("ready", ready)
        self._ready_timeout = (
            None if ready_timeout is None else check_positive_seconds("ready_timeout", ready_timeout)
        )
        self._watchdog = None if watchdog is None else check_positive_seconds("watchdog", watchdog)
        self._notify = NotifySocket() if self._is_heard else None
        self._log: Callable[[str], None] | None = None
        if log_output is not None:
            logger = logger or logging.getLogger(f"muontrap.daemon.{self.name}")
            extra = {**(logger_metadata or {}), "daemon": self.name}
            lines = LogLines(logger, log_output, prefix=log_prefix, transform=log_transform, extra=extra)
            self._log = lines.of(os.fsdecode(launcher.args[0]), "stdout")
        self._output_lock = threading.Lock()
        self._recent: deque[bytes] = deque()
        self._recent_room = self._recent_output = recent_output
        self._output_bytes = 0
        self._run: Run | None = None
        self._last_exit: str | None = None
        self._given = args, options
        self._launcher = Launcher(args, **self._with_defaults(options))
        silence = self._launcher._command.inactivity_timeout
        pattern = ready if self._ready and self._ready.pattern else None
        for option, value in (
            ("log_output", log_output),
            ("ready", pattern),
            ("inactivity_timeout", silence),
        ):
            if value is not None and not self._reads_output:
                raise ValueError(f"{option}={value!r} needs its output: stdout can't be given")

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
            output_bytes=self._output_bytes,
            last_exit=self._last_exit,
            cgroup=counted,
        )

    def recent(self) -> bytes:
        """Return the last of its output, at most `recent_output` bytes."""
        return self._recent_and_count()[0]

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

    def _begin(self, owner: Supervisor) -> None:
        """Start, as a child, in the thread of the tree."""
        self._run = Run(self, owner)

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
        if self._notify:
            args, options = self._given
            self._notify = NotifySocket()
            self._launcher = Launcher(args, **self._with_defaults(options))
        return self._notify

    @property
    def _is_heard(self) -> bool:
        return self._watchdog is not None or (self._ready is not None and self._ready.kind == "notify")

    @property
    def _reads_output(self) -> bool:
        return bool(self._launcher._command.stdout == PIPE)

    def _new_child(self) -> Child:
        """Return how the machine of its supervisor sees it, at the beginning."""
        return Child(
            self.name,
            self._restart,
            depends_on=self._depends_on,
            essential=self._essential,
            backoff=self._backoff,
        )

    def _with_defaults(self, options: Options) -> Options:
        given: dict[str, Any] = {"stdin": DEVNULL, **options}
        if given.get("stdout") is None and (self._recent_output or self._log or self._ready):
            given["stdout"] = PIPE
        if given.get("stderr") is None and given.get("stdout") == PIPE:
            given["stderr"] = STDOUT
        # What systemd has told the host is not for its daemons.
        not_theirs = {name: None for name in _TOLD_US if name in os.environ}
        if not_theirs and given.get("env") is None:
            given["env_update"] = {**not_theirs, **(given.get("env_update") or {})}
        if self._notify:
            said = {"NOTIFY_SOCKET": self._notify.address}
            if self._watchdog is not None:
                said["WATCHDOG_USEC"] = str(int(self._watchdog * 1e6))
            given["env_update"] = {**(given.get("env_update") or {}), **said}
        return given  # type: ignore[return-value]

    def _verdict(self, result: CompletedProcess) -> str:
        """Return why a run that ended by itself has failed, "" for a success."""
        if self._judge:
            return self._judge(result) or ""
        if result.returncode in self._success and result.reason == "exited":
            return ""
        return _why(result)

    def _recent_and_count(self) -> tuple[bytes, int]:
        """Return the last of the output, and how many bytes there were in all."""
        with self._output_lock:
            return b"".join(self._recent), self._output_bytes

    def _take(self, data: bytes) -> None:
        """Keep the last of the output, and count it."""
        with self._output_lock:
            self._keep(data)

    def _keep(self, data: bytes) -> None:
        self._output_bytes += len(data)
        if self._recent_output:
            self._recent.append(data[-self._recent_output :])
            self._recent_room -= len(self._recent[-1])
            while self._recent_room < 0:
                first = self._recent.popleft()
                kept = first[-(len(first) + self._recent_room) :] if -self._recent_room < len(first) else b""
                if kept:
                    self._recent.appendleft(kept)
                self._recent_room += len(first) - len(kept)


class Run:
    """One run of a daemon, a task of the tree's loop.

    Attributes:
        process: None before it is launched.
        pid: None before it runs, and after.
        began: when, None before; of the monotonic clock.
    """

    def __init__(self, daemon: Daemon, owner: Supervisor) -> None:
        self.process: Process | None = None
        self.pid: int | None = None
        self.began: float | None = None
        self._daemon = daemon
        self._owner = owner
        self._loop = loop = owner._loop
        self._verdict = ""  # of muontrap, which has ended it for that
        self._is_stopped = False
        self._has_begun = False
        self._notify: NotifySocket | None = None
        self._has_matched = asyncio.Event()
        self._is_notified = asyncio.Event()
        self._watchdog: asyncio.TimerHandle | None = None
        self._cancelled = threading.Event()
        self._task = loop.create_task(self._go())
        self._readiness: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Let it end."""
        self._is_stopped = True
        if self.process is None:
            self._cancelled.set()
            if self._has_begun:  # else it would end without a word
                self._task.cancel()
        else:
            self._end(self._daemon._launcher._command.delay_to_sigkill)

    async def _go(self) -> None:
        failure, dead = "", None
        self._has_begun = True
        try:
            if not self._is_stopped:
                await self._wait_for()
                failure = await self._live()
        except asyncio.CancelledError:
            pass
        except GuardDied as error:
            failure = str(error)
            dead = self.process._status.link if self.process else None
        except (MuontrapError, OSError, ValueError) as error:
            failure = f"could not be started: {error}"
        except Exception as error:  # of a function of the user's
            failure = f"{type(error).__name__}: {error}"
        finally:
            self._leave()
        why = failure or ("stopped" if self._is_stopped else "success")
        self._daemon._has_ended(why)
        self._owner._has_exited(self._daemon.name, failure, why, dead)

    async def _wait_for(self) -> None:
        """Wait for what it needs, in a thread if a function does that."""
        what = self._daemon._wait_for
        if isinstance(what, Probe):
            await what.wait()
        elif what is not None:
            await self._in_a_thread(what)

    async def _in_a_thread(self, function: Callable[..., object]) -> None:
        done: asyncio.Future[None] = self._loop.create_future()
        given = (self._cancelled,) if _needs_argument(function) else ()

        def tell(error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(RuntimeError(f"wait_for raised {type(error).__name__}: {error}"))

        def wait() -> None:
            error = None
            try:
                function(*given)
            except BaseException as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(tell, error)
            except RuntimeError:
                pass  # the tree has ended without this

        threading.Thread(target=wait, name=f"muontrap-wait-{self._daemon.name}", daemon=True).start()
        await done

    async def _live(self) -> str:
        """Launch it, and return why it has failed in the end, "" for a success."""
        daemon = self._daemon
        notify = daemon._listen()
        if notify:
            self._loop.add_reader(notify.open(), self._hear, notify)
            self._notify = notify
        process = await self._launch()
        self.pid = process.pid
        self._owner._has_started(daemon.name)
        if daemon._reads_output:
            process.call_back({1: _Output(self)}, explicit=False)
        self._readiness = self._loop.create_task(self._become_ready())
        while not process._status.has_ended():
            await self._word(process)
        if process.reader and not process.reader.is_done:
            await _bounded(self._readable(process.reader.fileno()), _DELIVERY_BOUND)
        assert process.result is not None
        if self._verdict:
            return self._verdict
        return "" if self._is_stopped else daemon._verdict(process.result)

    async def _launch(self) -> Process:
        """Ask the guard; wait until it runs."""
        self.began = time.monotonic()
        for is_last in (False, True):
            self.process = process = self._daemon._launcher.begin(without_cgroup=is_last)
            if self._is_stopped:
                self.stop()
            try:
                while not process._status.has_ended() and process.pid < 0:
                    await self._word(process)
                return process
            except (StaleGuard, NotPlaced):
                process.close()
                if is_last:
                    raise
        raise AssertionError

    async def _word(self, process: Process) -> None:
        """Wait for the guard to say something; see to one that does not."""
        until = process._status.sooner(None)
        left = None if until is None else max(0.0, until - time.monotonic())
        if not await _bounded(self._readable(process.fileno()), left):
            process._status.is_late(None)

    async def _readable(self, fd: int) -> None:
        ready = asyncio.Event()
        self._loop.add_reader(fd, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_reader(fd)

    async def _become_ready(self) -> None:
        probe = self._daemon._ready
        try:
            if probe is not None and not await _bounded(self._has_shown(probe), self._daemon._ready_timeout):
                self.fail(f"not ready ({probe}) within {self._daemon._ready_timeout:g} s")
                return
        except asyncio.CancelledError:
            return
        self._owner._has_become_ready(self._daemon.name)
        self._feed_watchdog()

    async def _has_shown(self, probe: Probe) -> None:
        if probe.kind == "output":
            await self._has_matched.wait()
        elif probe.kind == "notify":
            await self._is_notified.wait()
        else:
            await probe.wait()

    def fail(self, verdict: str) -> None:
        """End it, for that reason."""
        self._verdict = self._verdict or verdict
        self._end(self._daemon._launcher._command.delay_to_sigkill)

    def _end(self, delay: float) -> None:
        """Ask the guard for its end; a guard that does not see to it is ended itself."""
        assert self.process is not None
        status = self.process._status
        if not status.is_closed and status.is_running:
            status.ask(delay, b"stopped")
            self._loop.call_later(delay + _ANSWER_BOUND, _kill_silent_guard, self.process)

    def _hear(self, notify: NotifySocket) -> None:
        """Take what the daemon said of itself."""
        said = notify.receive({0, os.geteuid(), self._daemon._launcher._identity.uid})
        if said.get("READY") == "1":
            self._is_notified.set()
        if said.get("WATCHDOG") == "1":
            self._feed_watchdog()

    def _feed_watchdog(self) -> None:
        seconds = self._daemon._watchdog
        if self._watchdog:
            self._watchdog.cancel()
        if seconds is not None and self.process and not self._is_stopped:
            self._watchdog = self._loop.call_later(seconds, self.fail, f"watchdog: silent for {seconds:g} s")

    def _leave(self) -> None:
        """Let go of all that this run had."""
        self._cancelled.set()
        if self._readiness:
            self._readiness.cancel()
        if self._watchdog:
            self._watchdog.cancel()
        if self._notify:
            self._loop.remove_reader(self._notify.open())
            self._notify.close()
        if self.process:
            self.process._close_files()
        self.pid = self.began = None


class _Output:
    """Takes a run's output, in the pump's thread."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._daemon = daemon = run._daemon
        self._pattern = daemon._ready.pattern if daemon._ready else None
        self._log = daemon._log
        needs_lines = self._log or self._pattern
        self._splitter: Any = make_splitter(daemon._launcher._command, as_text=True) if needs_lines else None

    def take(self, data: bytes) -> None:
        self._daemon._take(data)
        if self._splitter:
            for line in self._splitter.feed(data):
                self._line(line)

    def finish(self) -> None:
        if self._splitter:
            for line in self._splitter.finish():
                self._line(line)

    def _line(self, line: str) -> None:
        if self._log:
            try:
                self._log(line)
            except Exception:  # of log_transform: its output is read on, or it would block
                self._log = None
                _logger.exception("%s: this run's output is logged no more", self._daemon.name)
        if self._pattern and self._pattern.search(line):
            self._pattern = None
            self._run._loop.call_soon_threadsafe(self._run._has_matched.set)


def check_child(name: object, backoff: object) -> None:
    """Raise for what is no name of a child, or no backoff."""
    check_type("name", name, str, "a string")
    if not name or "/" in str(name):
        raise ValueError(f"name must not be empty or have a slash, not {name!r}")
    if backoff is not None:
        check_type("backoff", backoff, Backoff, "a Backoff")


def check_type(option: str, value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Raise for a value of another type."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{option} must be {what}, not {value!r}")


def check_callable(option: str, value: object) -> None:
    """Raise for what can't be called, unless it is None."""
    if value is not None and not callable(value):
        raise TypeError(f"{option} must be callable, not {value!r}")


def names(option: str, given: object) -> tuple[str, ...]:
    """Return names in a tuple, or raise for what is not some names."""
    if (
        isinstance(given, str)
        or not isinstance(given, Iterable)
        or not all(isinstance(name, str) for name in given)
    ):
        raise TypeError(f"{option} must be a sequence of names, not {given!r}")
    return tuple(given)


def _statuses(given: object) -> Iterable[int]:
    if not isinstance(given, Iterable) or any(type(status) is not int for status in given):
        raise TypeError(f"success_exit_status must be some numbers, not {given!r}")
    return given


def _needs_argument(function: Callable[..., object]) -> bool:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return False  # one of C that does not say
    return any(each.default is each.empty and each.kind in _POSITIONAL for each in parameters)


def _why(result: CompletedProcess) -> str:
    """Return how it ended, for people."""
    code = result.returncode
    if result.reason == "exited":
        return f"exit status {code}"
    if result.reason == "signal" and code is not None:
        return f"killed by signal {-code}"
    return result.explanation


def _kill_silent_guard(process: Process) -> None:
    if process._status.is_running and not process._status.is_closed:
        process._status.link.kill_guard()


async def _bounded(waiting: Any, seconds: float | None) -> bool:
    """Wait at most so long; return whether it came."""
    if seconds is None:  # no timer, and no task of its own
        await waiting
        return True
    try:
        await asyncio.wait_for(waiting, seconds)
    except asyncio.TimeoutError:
        return False
    return True
