"""One command in the guard: its escalation fed with events, and the actions carried out."""

from __future__ import annotations

import os
import resource
import time
from itertools import chain

from muontrap.containment.processes import Held, is_same, living, send, start_of, stat
from muontrap.kernel import signals
from muontrap.kernel.process import is_dead
from muontrap.logic.escalation import KILL_MODES, Escalation
from muontrap.logic.wire import Ended, Ping, Pong, Record, Signal, Started, Stop, Suspended, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from muontrap.guard.family import Family
    from muontrap.guard.placement import Placed
    from muontrap.guard.transport import Channel
    from muontrap.logic.wire import Launch

# Deaths wake the guard by SIGCHLD; who is not its child is looked for again after 1 ms, 2 ms, ...
_FIRST_PAUSE, _LONGEST_PAUSE, _OVERDUE_PAUSE = 0.001, 0.02, 0.25

# The kernel may refuse to remove a cgroup for a moment after it is empty: tried so often, 1 ms apart.
_MOST_REMOVALS = 250
# From an event "out of memory" of v1 to the kill that it announces.
_OOM_BOUND = 0.5
_OOM_PAUSE = 0.002

# A record has to fit what the host reads at once.
_MOST_PIDS = 500


class Command:
    """A command from its first process on until nothing of it is left."""

    # What most never have is the class's.
    errors: int | None = None  # the pipe of a forked child, until `execve` is done
    said = b""  # what has come of it
    terminal: tuple[int, int] | None = None  # (descriptor, the host's process group)
    not_permitted: Mapping[int, int] = {}  # pid -> start of what could not be signalled
    _ended: Ended | None = None
    _removals = 0
    _oom_until = 0.0
    _look_at = 0.0
    _exited = False
    _reason = b""
    _sent: tuple[tuple[int, float, int], ...] = ()
    _killed: frozenset[int] | set[int] = frozenset()
    _alive: frozenset[int] = frozenset()
    _seen: frozenset[int] = frozenset()
    _pause = _FIRST_PAUSE

    def __init__(
        self,
        number: int,
        launch: Launch,
        channel: Channel,
        main: Held,
        family: Family,
        placed: Placed | None,
        *,
        began: float,
    ) -> None:
        self.number: int = number
        self.main: Held = main
        self.launched: float = began
        self.placed: Placed | None = placed
        self.channel: Channel = channel
        self._family = family
        self.announces: bool = bool(launch.announce)
        self._stop_signal = launch.stop_signal
        kill_mode = KILL_MODES[launch.kill_mode]
        self.leaves_rest: bool = kill_mode == "process"
        self.in_hosts_session: bool = not launch.session
        # The kernel begins a child's peak with the guard's: one that is not more can't be told from it.
        self._guards_peak: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._escalation = Escalation(kill_mode, launch.delay_to_sigkill)

    @property
    def is_gone(self) -> bool:
        """Whether nothing is left, and the guard can forget it."""
        return self._escalation.state == "gone" and self._ended is None

    @property
    def is_hunted(self) -> bool:
        """Whether looking for what is left is all there is to do."""
        state = self._escalation.state
        return not self.leaves_rest and (
            state in ("killing", "overdue") or (state == "stopping" and self._exited)
        )

    @property
    def is_hard(self) -> bool:
        """Whether the hunt lasts: a fork bomb."""
        return self.is_hunted and self._pause >= _LONGEST_PAUSE

    def wake_at(self) -> float | None:
        """Return when `tick` has something to do without an event, None for never."""
        times = [self._look_at] if self.is_hunted else []
        if self._escalation.deadline is not None:
            times.append(self._escalation.deadline)
        if self._ended or self._oom_until:
            times.append(self._look_at)
        return min(times, default=None)

    def tick(self, now: float, *, children_changed: bool) -> None:
        """Go on with what has become due, or with what a death may have finished."""
        if self._ended:
            self._finish(now)
            return
        if self._oom_until:
            self.look_for_oom_kill(now)
        late = self._escalation.deadline is not None and now >= self._escalation.deadline
        if self.is_hunted and (children_changed or late or now >= self._look_at):
            self._look(now)
        if not self.is_gone:
            self._perform(self._escalation.fire("late", now), now)

    def main_exited(self, now: float) -> None:
        """The main process is dead (not reaped: its pid stays its own)."""
        self._exited = True
        if self._escalation.state != "gone":  # it was found dead before its pidfd was looked at
            self._perform(self._escalation.fire("exited", now), now)

    def stop(self, now: float, reason: bytes, delay: float | None = None) -> None:
        """Begin, or hasten, the end."""
        if not self._exited and not self._reason and not is_dead(self.main.fd):
            self._reason = reason
        self._perform(self._escalation.stop(now, delay), now)

    def out_of_memory(self, now: float) -> None:
        """An OOM kill in the command's group is near (v1); it has to take the whole command."""
        self._oom_until = now + _OOM_BOUND
        self.look_for_oom_kill(now)

    def look_for_oom_kill(self, now: float) -> None:
        """End the command if there was one."""
        if self.placed and self.placed.oom_kills and self.placed.oom_kills.has_grown():
            self._oom_until = 0.0
            self._reason = self._reason or b"out-of-memory"
            self.stop(now, self._reason, 0.0)
        elif now >= self._oom_until:
            self._oom_until = 0.0
        else:
            self._look_at = now + _OOM_PAUSE

    def hear(self, data: bytes, now: float) -> None:
        """Take a record from the host; no bytes mean that it has let go of the command."""
        record = decode(data) if data else Stop(delay=-1.0, reason=b"stopped")
        if isinstance(record, Stop):
            self.stop(now, record.reason, record.delay if record.delay >= 0 else None)
        elif isinstance(record, Ping):
            self.tell(Pong())
        elif isinstance(record, Signal) and not self._exited and record.signum in signals.ALL:
            if record.signum == signals.SIGCONT:
                self._give_terminal(to_command=True)
            try:
                os.killpg(self.main.pid, record.signum)
            except PermissionError:
                self._note_refused([self.main.pid])
            except ProcessLookupError:
                pass  # it has left the group that it led

    def abandon(self, failure: Record) -> None:
        """There is no command: `execve` was never reached, and its process has been reaped."""
        self._give_terminal(to_command=False)
        if self.placed:
            self.placed.group.remove()
        self.tell(failure)
        self._escalation.state = "gone"

    def report_started(self) -> None:
        """Tell the host that `execve` has succeeded, if it wants to know before the end."""
        if self.announces:
            self.tell(Started(pid=self.main.pid), [self.main.fd])

    def report_suspended(self) -> None:
        """Tell the host of a command in its session that it was stopped (Ctrl-Z), if it was."""
        if not self._exited:
            try:
                seen = os.waitid(os.P_PID, self.main.pid, os.WSTOPPED | os.WNOHANG)
            except ChildProcessError:
                return  # a zombie, of which the pidfd has not been looked at yet
            if seen:
                self._give_terminal(to_command=False)
                self.tell(Suspended(signum=seen.si_status))

    def tell(self, record: Record, fds: list[int] | None = None) -> None:
        """Send a record to the host, which may be gone, or not reading."""
        self.channel.tell(record, fds or ())

    def _perform(self, action: str, now: float) -> None:
        if action == "kill-all":
            self._look(now)
        elif action in ("report", "report-overdue"):
            self._report(now)
        elif action == "kill-main":
            self._note(signals.SIGKILL, 1)
            self._note_refused(send([self.main], signals.SIGKILL))
        elif action == "signal-main":
            self._signal([self.main])
        elif action == "signal-all":
            if not self._is_over(now):
                with self._family.left_of(self.number, lambda _: None) as found:
                    self._signal(found)
            self._look_at = now

    def _signal(self, found: list[Held]) -> None:
        """Send the stop signal, then SIGCONT: one that is stopped can handle it only then."""
        self._note(self._stop_signal, len(found))
        send(found, self._stop_signal, signals.SIGCONT)
        if self.placed:
            self.placed.group.release()

    def _look(self, now: float) -> None:
        """Look for what is left; kill it when its time has come; see whether there is nothing.

        One that was alive when the guard's children were listed may have forked and died before it was
        looked at: only a list of which all were dead before it was made is a proof.
        """
        if self._pause == _FIRST_PAUSE and self._exited:
            if self._is_over(now):
                return
            self._look_at = self._family.is_better_at(self.number, now)
            if self._look_at > now:
                return
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        overdue = self._escalation.state == "overdue"
        self._look_at = now + (_OVERDUE_PAUSE if overdue else self._pause)
        dead: set[int] = set()
        for _ in range(2):  # no more: what goes on forking needs the reaping in between
            known_dead = dead
            if self.placed and self._escalation.state != "stopping":
                self.placed.group.strike()
            with self._family.left_of(self.number, self._strike) as found:
                alive = self._strike(found)
                dead = {held.pid for held in found} - self.not_permitted.keys() - alive
            if self.placed and self._escalation.state != "stopping":
                self.placed.group.release()
            if alive | dead != self._seen or not all(map(_is_stuck, alive)):
                self._escalation.progress(now)
            self._alive, self._seen = frozenset(alive), frozenset(alive | dead)
            if alive or found.lacking:
                return
            if dead <= known_dead:
                self._perform(self._escalation.fire("empty", now), now)
                return
        self._look_at = now

    def _is_over(self, now: float) -> bool:
        """Tell whether the main process is dead, and is proved to have left nothing: this then is the end."""
        if not self._exited or not self._family.left_nothing(self.number, self.launched):
            return False
        self._perform(self._escalation.fire("empty", now), now)
        return True

    def _strike(self, found: list[Held]) -> set[int]:
        """Kill what is alive, if its time has come; return who was."""
        alive = {pid for pid in living(found) if not self._was_refused(pid)}
        if self._escalation.state != "stopping":
            refused = send([held for held in found if held.pid in alive], signals.SIGKILL)
            self._note_refused(refused)
            alive -= set(refused)
            if alive - self._killed:
                self._note(signals.SIGKILL, len(alive - self._killed))
                self._killed |= alive
        return alive

    def _note_refused(self, pids: Iterable[int]) -> None:
        refused = {pid: start_of(pid) for pid in pids}
        if refused:
            self.not_permitted = {**self.not_permitted, **refused}

    def _was_refused(self, pid: int) -> bool:
        return pid in self.not_permitted and is_same(pid, self.not_permitted[pid])

    def _note(self, signum: int, count: int) -> None:
        *before, last = self._sent or ((0, 0.0, 0),)
        if last[0] == signum:
            self._sent = (*before, (signum, last[1], last[2] + count))
        else:
            self._sent = (*self._sent, (signum, time.monotonic() - self.launched, count))

    def _report(self, now: float) -> None:
        """Reap the main process, tell the host how it all ended, and let go of the host."""
        pid, status, usage = os.wait4(self.main.pid, os.WNOHANG)
        # In the order of struct_rusage, with what Linux does not count.
        user, system, peak, _, _, _, minor, major, _, read, written, _, _, _, voluntary, involuntary = usage
        left = self._alive if pid or self._exited else self._alive | {self.main.pid}
        self._give_terminal(to_command=False)
        ended = Ended(
            status=status if pid else -1,
            reason=self._reason,
            wall=now - self.launched,
            user=user,
            system=system,
            max_rss=peak if peak > self._guards_peak else -1,
            minor_faults=minor,
            major_faults=major,
            blocks_read=read,
            blocks_written=written,
            voluntary_switches=voluntary,
            involuntary_switches=involuntary,
            sent=list(map(float, chain.from_iterable(self._sent))),
            not_permitted=sorted(self.not_permitted)[:_MOST_PIDS],
            unkillable=sorted(left - self.not_permitted.keys())[:_MOST_PIDS],
            cgroup=self.placed.readings().encode() if self.placed else b"",
        )
        if self.placed and self._escalation.state == "gone":
            self._ended = ended
            self._removals = 1 if self.leaves_rest else _MOST_REMOVALS
            self._finish(now)
        else:
            self.tell(ended)

    def _finish(self, now: float) -> None:
        """Tell the host the end when the cgroup is removed, or will not be for long."""
        if self._ended and self.placed:
            self._removals -= 1
            if self.placed.group.remove() or self._removals <= 0:
                self.tell(self._ended)
                self._ended = None
            else:
                self._look_at = now + _FIRST_PAUSE

    def _give_terminal(self, *, to_command: bool) -> None:
        """Pass the terminal between the command and the host, if the other has it."""
        if self.terminal:
            fd, host_group = self.terminal
            giver, taker = (host_group, self.main.pid) if to_command else (self.main.pid, host_group)
            try:
                if os.tcgetpgrp(fd) == giver:
                    os.tcsetpgrp(fd, taker)
            except OSError:
                self.terminal = None  # hung up, or no group is left to have it
                os.close(fd)


def _is_stuck(pid: int) -> bool:
    """Tell whether SIGKILL does not end a process; one that just gets no CPU (R) will die of it yet.

    In D it does not reach it; one that sleeps on, which else it would wake up, is a namespace's init, or
    a thread of the kernel, that was moved into the command's cgroup.
    """
    seen = stat(pid)
    return seen is not None and seen[0] != "R"
