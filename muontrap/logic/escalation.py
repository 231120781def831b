"""From a running command to nothing left of it: what to do next, and when.

The whole machine is one table for each `kill_mode`: state -> event -> (next state, action).
`docs/reference/escalation.md` is generated from it.

States
    running     the main process runs, nobody asked for its end
    stopping    the stop signal was sent; the grace, `delay_to_sigkill`, runs
    killing     SIGKILL is sent to whatever is found, until nothing is
    overdue     it was reported that something does not die; it is still hunted
    gone        nothing is left

Events
    stop        somebody asked for the end, with a grace
    kill        the same, without
    exited      the main process is dead
    empty       the kernel says that nothing of the command is left
    late        the deadline has passed
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    Row = Mapping[str, tuple[str, str]]

STATES = ("running", "stopping", "killing", "overdue", "gone")
EVENTS = ("stop", "kill", "exited", "empty", "late")
ACTIONS = (
    "",
    "signal-main",  # the stop signal, then SIGCONT, to the main process
    "signal-all",  # the same to every process of the command
    "kill-main",  # SIGKILL to the main process alone
    "kill-all",  # SIGKILL to every process of the command, again and again until none is left
    "report",  # nothing is left: tell the host
    "report-overdue",  # something does not die: tell the host what
    "forget",  # nothing is left any more of what was reported
)

# Nothing has died or appeared for this long (s) after SIGKILL: what is left is in uninterruptible
# sleep (state D).  Short enough for the bound of `run(timeout=)`: grace + 0.5 s.
KILL_BOUND = 0.4
# It passes in ticks: of the time in which the whole machine stood still, which lets nothing die, it is one.
_TICKS = 16

_ENDING: dict[str, Row] = {
    "killing": {
        "stop": ("killing", ""),
        "kill": ("killing", ""),
        "exited": ("killing", ""),
        "empty": ("gone", "report"),
        "late": ("overdue", "report-overdue"),
    },
    "overdue": {
        "stop": ("overdue", ""),
        "kill": ("overdue", ""),
        "exited": ("overdue", ""),
        "empty": ("gone", "forget"),
    },
    "gone": {},
}

TABLES: dict[str, dict[str, Row]] = {
    "mixed": {
        "running": {
            "stop": ("stopping", "signal-main"),
            "kill": ("killing", "kill-all"),
            "exited": ("killing", "kill-all"),
        },
        "stopping": {
            "stop": ("stopping", ""),
            "kill": ("killing", "kill-all"),
            "exited": ("killing", "kill-all"),
            "late": ("killing", "kill-all"),
        },
        **_ENDING,
    },
    "control-group": {
        "running": {
            "stop": ("stopping", "signal-all"),
            "kill": ("killing", "kill-all"),
            "exited": ("stopping", "signal-all"),
        },
        "stopping": {
            "stop": ("stopping", ""),
            "kill": ("killing", "kill-all"),
            "exited": ("stopping", ""),
            "empty": ("gone", "report"),
            "late": ("killing", "kill-all"),
        },
        **_ENDING,
    },
    "process": {
        "running": {
            "stop": ("stopping", "signal-main"),
            "kill": ("killing", "kill-main"),
            "exited": ("gone", "report"),
        },
        "stopping": {
            "stop": ("stopping", ""),
            "kill": ("killing", "kill-main"),
            "exited": ("gone", "report"),
            "late": ("killing", "kill-main"),
        },
        "killing": {
            "stop": ("killing", ""),
            "kill": ("killing", ""),
            "exited": ("gone", "report"),
            "late": ("overdue", "report-overdue"),
        },
        "overdue": {
            "stop": ("overdue", ""),
            "kill": ("overdue", ""),
            "exited": ("gone", "forget"),
        },
        "gone": {},
    },
}
KILL_MODES = tuple(TABLES)


class Escalation:
    """One command on its way to the end. Times are seconds of any one monotonic clock."""

    __slots__ = ("_delay", "_table", "_ticks", "deadline", "state")
    state: str

    def __init__(self, kill_mode: str, delay_to_sigkill: float) -> None:
        self._table = TABLES[kill_mode]
        self._delay = delay_to_sigkill
        self._ticks = 0  # left of the bound
        self.state = "running"
        self.deadline: float | None = None

    def stop(self, now: float, delay: float | None = None) -> str:
        """Ask for the end, with `delay` s of grace; a second, shorter one brings SIGKILL forward."""
        delay = self._delay if delay is None else delay
        return self.fire("stop" if delay > 0 else "kill", now, delay)

    def fire(self, event: str, now: float, delay: float | None = None) -> str:
        """Take one event, return the action; `KeyError` for an event that can't come in this state.

        "late" before the deadline, and "stop" after the end, are no events: they change nothing.
        """
        if event == "late" and not self._is_late(now):
            return ""
        if self.state == "gone" and event in ("stop", "kill"):
            return ""
        before: str = self.state
        self.state, action = self._table[before][event]
        if self.state == "stopping" and (event == "stop" or before == "running"):
            end = now + (self._delay if delay is None else delay)
            self.deadline = end if self.deadline is None else min(self.deadline, end)
        elif self.state == "killing" and before != "killing":
            self._begin_bound(now)
        elif self.state in ("overdue", "gone"):
            self.deadline = None
        return action

    def progress(self, now: float) -> None:
        """Something died or appeared after SIGKILL: the bound begins anew."""
        if self.state == "killing":
            self._begin_bound(now)

    def _begin_bound(self, now: float) -> None:
        self._ticks = _TICKS
        self.deadline = now + KILL_BOUND / _TICKS

    def _is_late(self, now: float) -> bool:
        """Tell whether the deadline has passed; of the bound, one tick has, and the next begins."""
        if self.deadline is None or now < self.deadline:
            return False
        if self.state == "killing":
            self._ticks -= 1
            self.deadline = now + KILL_BOUND / _TICKS
            return self._ticks <= 0
        return True
