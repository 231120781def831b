"""One run of a daemon: from what it waits for to why it ended."""

from __future__ import annotations

import os
import time

from muontrap.errors import GuardDied, MuontrapError
from muontrap.host.link import StaleGuard
from muontrap.host.status import NotPlaced

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muontrap.host.link import Link
    from muontrap.host.process import Process
    from muontrap.host.results import CompletedProcess
    from muontrap.supervise.branch import Branch
    from muontrap.supervise.daemon import Daemon
    from muontrap.supervise.loop import Timer
    from muontrap.supervise.readiness import Errand, NotifySocket, Search

# A guard that has not said the end for this long beyond the grace is stuck.
_ANSWER_BOUND = 5.0
_DELIVERY_BOUND = 1.0


class Run:
    """Steps in the tree's thread, each called for what it has waited for; a stop may come between any two.

        prepare ── wait_for ──► launch ── the guard's word ──► started ── readiness ──► ready
                                                                   └─ the guard's word: all of it is gone
                                                                      └─ its output is delivered ──► end

    Attributes:
        process: None before it is launched.
        pid: None before it runs, and after.
        began: when, None before; of the monotonic clock.
    """

    __slots__ = (
        *("_branch", "_daemon", "_errand", "_has_ended", "_is_over", "_is_ready", "_is_shown", "_is_stopped"),
        *("_loop", "_notify", "_timer", "_tries", "_verdict", "_watchdog", "began", "pid", "process"),
    )

    def __init__(self, daemon: Daemon, branch: Branch) -> None:
        self.process: Process | None = None
        self.pid: int | None = None
        self.began: float | None = None
        self._daemon = daemon
        self._branch = branch
        self._loop = branch.loop
        self._errand: Errand | Search | None = None
        self._notify: NotifySocket | None = None
        self._timer: Timer | None = None  # of what is waited for
        self._watchdog: Timer | None = None
        self._tries = 0
        self._verdict = ""  # of muontrap, which has ended it for that
        self._is_stopped = False
        self._is_shown = False  # what makes it ready
        self._is_ready = False
        self._has_ended = False  # but for its output
        self._is_over = False
        self._loop.soon(self._do, self._prepare)

    def stop(self) -> None:
        """Let it end."""
        self._is_stopped = True
        if self.process is None:
            self._loop.soon(self._do, self._finish, "")
        else:
            self._end_errand()
            self._end()

    def fail(self, verdict: str) -> None:
        """End it, for that reason."""
        self._verdict = self._verdict or verdict
        self._end()

    def is_shown(self) -> None:
        """What makes it ready is there."""
        self._is_shown = True
        is_too_late = self._is_stopped or self._verdict or self._is_over
        if self.pid is not None and not (self._is_ready or is_too_late):
            self._become_ready()

    def hear_of_match(self) -> None:
        """A line of its output makes it ready. For the pump's thread."""
        self._loop.from_thread(self.is_shown)

    def _do(self, step: Callable[..., None], *arguments: object) -> None:
        """Take a step, if the run is not over; it is, if that fails."""
        if self._is_over:
            return
        try:
            step(*arguments)
        except GuardDied as error:
            self._finish(str(error), self.process._status.link if self.process else None)
        except (MuontrapError, OSError, ValueError) as error:
            self._finish(f"could not be started: {error}")
        except Exception as error:
            self._finish(f"{type(error).__name__}: {error}")

    def _prepare(self) -> None:
        what = self._daemon._wait_for
        if self._is_stopped:
            return  # the end is on its way
        if what is None:
            self._launch("")
            return
        from muontrap.supervise.readiness import Errand, Probe, Search

        if isinstance(what, Probe):
            self._errand = Search(self._loop, what, lambda: self._do(self._launch, ""))
        else:
            name = self._daemon.name
            self._errand = Errand(self._loop, name, what, lambda why: self._do(self._launch, why))

    def _launch(self, problem: str) -> None:
        """Go on, as what it waits for is there; or end, for that was the problem."""
        if self._is_stopped:
            return  # the end is on its way
        if problem:
            self._finish(problem)
            return
        self._end_errand()
        self._notify = notify = self._daemon._listen()
        if notify:
            self._loop.listen(notify.fileno(), self._hear_daemon)
        self._ask_guard()

    def _ask_guard(self, *, without_cgroup: bool = False) -> None:
        self._tries += 1
        self.began = time.monotonic()
        self.process = process = self._daemon._launcher.begin(without_cgroup=without_cgroup)
        self._loop.listen(process._status.fileno(), self._hear_guard)
        self._mind_silence()

    def _mind_silence(self) -> None:
        """See to a guard that says nothing of the launch."""
        assert self.process is not None
        until = self.process._status.sooner(None)
        if until is not None:
            self._wait_at_most(until - time.monotonic(), self._hear_nothing)

    def _hear_nothing(self) -> None:
        assert self.process is not None
        self.process._status.is_late(None)
        self._mind_silence()

    def _hear_guard(self) -> None:
        self._do(self._take_word)

    def _take_word(self) -> None:
        process = self.process
        assert process is not None
        try:
            has_ended = process._status.has_ended()
        except (StaleGuard, NotPlaced) as refusal:
            if self._tries > 1 or self._is_stopped:
                raise
            self._loop.ignore(process._status.fileno())
            process.close()
            self._ask_guard(without_cgroup=isinstance(refusal, NotPlaced))
            return
        if self.pid is None and process.pid >= 0:
            self._start(process)
        if has_ended:
            self._lose(process)

    def _start(self, process: Process) -> None:
        """It runs."""
        if not self._is_stopped:
            self._forget_time()
        self.pid = process.pid
        self._branch.has_started(self._daemon.name)
        sink = self._daemon._sink(self)
        if sink:
            process.call_back({1: sink}, explicit=False)
        self._loop.soon(self._do, self._await_readiness)

    def _await_readiness(self) -> None:
        probe = self._daemon._ready
        if probe is None or self._is_shown:
            self.is_shown()
            return
        if self._is_stopped or self._has_ended:
            return  # the time is for that
        if self._daemon._ready_timeout is not None:
            self._wait_at_most(self._daemon._ready_timeout, self._miss_readiness)
        if probe.kind not in ("notify", "output"):
            from muontrap.supervise.readiness import Search

            self._errand = Search(self._loop, probe, self.is_shown)

    def _miss_readiness(self) -> None:
        self.fail(f"not ready ({self._daemon._ready}) within {self._daemon._ready_timeout:g} s")

    def _become_ready(self) -> None:
        self._is_ready = True
        if not self._has_ended:
            self._forget_time()
        self._end_errand()
        self._branch.has_become_ready(self._daemon.name)
        self._feed_watchdog()

    def _hear_daemon(self) -> None:
        """Take what the daemon said of itself."""
        assert self._notify is not None
        said = self._notify.receive({0, os.geteuid(), self._daemon._launcher._identity.uid})
        if said.get("READY") == "1":
            self.is_shown()
        if said.get("WATCHDOG") == "1":
            self._feed_watchdog()

    def _feed_watchdog(self) -> None:
        seconds = self._daemon._watchdog
        if seconds is not None and self._is_ready and not (self._is_stopped or self._has_ended):
            self._loop.cancel(self._watchdog)
            self._watchdog = self._loop.later(seconds, self.fail, f"watchdog: silent for {seconds:g} s")

    def _end(self) -> None:
        """Ask the guard for its end; a guard that does not see to it is ended itself."""
        assert self.process is not None
        status, delay = self.process._status, self._daemon._launcher._command.delay_to_sigkill
        if status.is_running and not status.is_closed:
            status.ask(delay, b"stopped")
            self._wait_at_most(delay + _ANSWER_BOUND, status.link.kill_guard)

    def _lose(self, process: Process) -> None:
        """Nothing of it is left, but for output that is not delivered yet."""
        self._has_ended = True
        self._let_go()
        reader = process.reader
        if reader and not reader.is_done:
            self._loop.listen(reader.fileno(), self._be_delivered)
            self._wait_at_most(_DELIVERY_BOUND, self._be_delivered)
        else:
            self._judge()

    def _be_delivered(self) -> None:
        assert self.process is not None
        assert self.process.reader is not None
        self._loop.ignore(self.process.reader.fileno())
        self._forget_time()
        # Behind what the pump has asked for: a line of it may have made the daemon ready.
        self._loop.from_thread(self._do, self._judge)

    def _judge(self) -> None:
        assert self.process is not None
        assert self.process.result is not None
        failure = self._verdict
        if not failure and not self._is_stopped:
            failure = self._verdict_on(self.process.result)
        self._finish(failure)

    def _verdict_on(self, result: CompletedProcess) -> str:
        try:
            return self._daemon._verdict(result)
        except Exception as error:  # of `exit_status_to_reason`
            return f"{type(error).__name__}: {error}"

    def _finish(self, failure: str, dead: Link | None = None) -> None:
        """Let go of all that it had, and say that it is over."""
        self._is_over = True
        self._let_go()
        if self._notify:
            self._loop.ignore(self._notify.fileno())
            self._notify.close()
        if self.process:
            if self.process.reader:
                self._loop.ignore(self.process.reader.fileno())
            self.process._close_files()
        self.pid = self.began = None
        why = failure or ("stopped" if self._is_stopped else "success")
        self._daemon._has_ended(why)
        self._branch.has_exited(self._daemon.name, failure, why, dead)

    def _let_go(self) -> None:
        """Wait for nothing any more: no word, no time."""
        self._end_errand()
        self._forget_time()
        self._loop.cancel(self._watchdog)
        if self.process:
            self._loop.ignore(self.process._status.fileno())

    def _end_errand(self) -> None:
        errand, self._errand = self._errand, None
        if errand:
            errand.end()

    def _wait_at_most(self, seconds: float, then: Callable[[], object]) -> None:
        self._forget_time()
        self._timer = self._loop.later(seconds, self._do, then)

    def _forget_time(self) -> None:
        self._loop.cancel(self._timer)
        self._timer = None
