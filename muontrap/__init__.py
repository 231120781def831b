"""Launch OS commands that can never get out of hand. See README.md."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muontrap.errors import ContainmentError, GuardDied, GuardError, MuontrapError, SupervisorFailed
    from muontrap.host.cgroups import Cgroup
    from muontrap.host.delivery import Reader
    from muontrap.host.launcher import Launcher
    from muontrap.host.link import start_guard
    from muontrap.host.process import Process
    from muontrap.host.results import (
        CalledProcessError,
        CompletedProcess,
        SignalSent,
        TimeoutExpired,
        Usage,
    )
    from muontrap.host.run import run
    from muontrap.host.sinks import LogLines
    from muontrap.logic.accounting import CgroupStatistics
    from muontrap.logic.children import Backoff
    from muontrap.logic.command import DEVNULL, PIPE, STDOUT
    from muontrap.logic.limits import Limits
    from muontrap.logic.lines import Cut
    from muontrap.supervise.daemon import Daemon, DaemonStatistics
    from muontrap.supervise.events import SupervisorEvent
    from muontrap.supervise.supervisor import Supervisor

__version__ = "0.1.0"
__all__ = (
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "Backoff",
    "CalledProcessError",
    "Cgroup",
    "CgroupStatistics",
    "CompletedProcess",
    "ContainmentError",
    "Cut",
    "Daemon",
    "DaemonStatistics",
    "GuardDied",
    "GuardError",
    "Launcher",
    "Limits",
    "LogLines",
    "MuontrapError",
    "Process",
    "Reader",
    "SignalSent",
    "Supervisor",
    "SupervisorEvent",
    "SupervisorFailed",
    "TimeoutExpired",
    "Usage",
    "run",
    "start_guard",
)

# Found on first use: `import muontrap` is free, and the guard does not load the host.
_HOMES = {
    "DEVNULL": "logic.command",
    "PIPE": "logic.command",
    "STDOUT": "logic.command",
    "Backoff": "logic.children",
    "CalledProcessError": "host.results",
    "Cgroup": "host.cgroups",
    "CgroupStatistics": "logic.accounting",
    "CompletedProcess": "host.results",
    "ContainmentError": "errors",
    "Cut": "logic.lines",
    "Daemon": "supervise.daemon",
    "DaemonStatistics": "supervise.daemon",
    "GuardDied": "errors",
    "GuardError": "errors",
    "Launcher": "host.launcher",
    "Limits": "logic.limits",
    "LogLines": "host.sinks",
    "MuontrapError": "errors",
    "Process": "host.process",
    "Reader": "host.delivery",
    "SignalSent": "host.results",
    "Supervisor": "supervise.supervisor",
    "SupervisorEvent": "supervise.events",
    "SupervisorFailed": "errors",
    "TimeoutExpired": "host.results",
    "Usage": "host.results",
    "run": "host.run",
    "start_guard": "host.link",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
