"""Guards to which the kernel says no, or gives no time, in the middle of something."""

from __future__ import annotations

import os
import signal

import pytest
from arena import BOUND, Arena
from hostlib import Any, hear, kind, muontrap, say

# Lines of Python that a guard runs before it begins.
IMPORTS = "import errno, os, time; from muontrap.guard import child, commands, loop, transport, watch"
# The watch's first looks at what is left.
LOOKS_FAIL = """
look, looks = watch.descendants, []
def fail_twice(roots):
    looks.append(roots)
    if len(looks) <= 2: raise OSError(errno.ENOSYS, "")
    return look(roots)
watch.descendants = fail_twice
"""
# As musl's are.
NO_SCHEDULER = """
def fail(*_): raise OSError(errno.ENOSYS, "")
os.sched_getscheduler = os.sched_setscheduler = fail
"""
# A step in the child that takes long; and a guard that had no time between its kill and its look.
SLOW_STEP = """
child._PERFORM["nice"] = lambda _: time.sleep(1000)
look = commands.Command._look
def late(self, now):
    if self.errors is not None: time.sleep(0.02)
    look(self, now)
commands.Command._look = late
"""
SLOW_LAUNCH = """
begin = loop.Guard._begin
def slow(*given):
    begun = begin(*given)
    time.sleep(2)
    return begun
loop.Guard._begin = slow
"""
# As where the user has too many descriptors on their way.
NO_PIDFD = """
commands.Command.report_started = lambda self: self.tell(commands.Started(pid=self.main.pid))
"""
HUGE_REQUEST = """
def fail(*_): raise MemoryError
transport.Request.take = fail
"""
PATCHES = {name: text for name, text in globals().items() if name.isupper() and isinstance(text, str)}


def host(*, line: list[str], patch: str, options: dict[str, Any], timeout: float | None) -> None:
    link: Any = muontrap.host.link
    link._BOOTSTRAP = link._BOOTSTRAP.replace("; run()", f"\n{patch}\nrun()")
    muontrap.start_guard()
    hear()
    kept: list[muontrap.Process] = []
    say(kind=kind(lambda: kept.append(muontrap.Launcher(line, **options).launch(timeout=timeout))))
    hear()


def begin(arena: Arena, patch: str, *line: str, timeout: float | None = None, **options: Any) -> Any:
    started = arena.host(host, line=line, patch=f"{IMPORTS}\n{patch}", options=options, timeout=timeout)
    started.order("launch")
    return started


@pytest.mark.parametrize("patch", ["LOOKS_FAIL", "NO_SCHEDULER"])
def test_the_watch_goes_on_until_nothing_is_left(arena: Arena, patch: str) -> None:
    started = begin(arena, PATCHES[patch], "sh", "-c", f"sleep 1000 & echo ready >{arena.ready}; wait")
    arena.wait_ready()
    for pid in arena.the("muontrap-guard"), started.pid:
        os.kill(pid, signal.SIGKILL)
    arena.wait_left(bound=BOUND)


def test_a_hunt_without_a_scheduler_to_ask(arena: Arena) -> None:
    script = f"trap '' TERM; sleep 1000 & echo ready >{arena.ready}; exit"
    started = begin(arena, NO_SCHEDULER, "sh", "-c", script, kill_mode="control-group", delay_to_sigkill=1.0)
    arena.wait_ready()
    assert started.hear()["kind"] == ["returned"]
    guard = arena.the("muontrap-guard")
    arena.wait_left({started.pid, guard, arena.the("muontrap-watch")}, bound=1.0 + BOUND)


def test_a_command_whose_time_is_over_before_its_program(arena: Arena) -> None:
    """Its child's pipe is not listened to any more when the child has died of that."""
    started = begin(arena, SLOW_STEP, "true", nice=5, timeout=0.05, delay_to_sigkill=0.0)
    assert started.hear()["kind"][0] == "TimeoutExpired"
    arena.wait_left({started.pid, arena.the("muontrap-guard"), arena.the("muontrap-watch")}, bound=BOUND)


def test_a_host_that_dies_within_a_launch_leaves_the_grace(arena: Arena) -> None:
    """The watch waits for the guard as long as any command may take."""
    end = f"sleep 4; echo graceful >{arena.ready}; exit"
    script = f"trap '{end}' TERM; sleep 1000 & echo ready >{arena.ready}; wait"
    started = begin(arena, SLOW_LAUNCH, "sh", "-c", script, delay_to_sigkill=20.0)
    arena.wait_ready()
    os.kill(started.pid, signal.SIGKILL)
    arena.wait_ready(1, "graceful", bound=15.0)
    arena.wait_left(bound=BOUND)


@pytest.mark.parametrize(("patch", "code"), [("NO_PIDFD", 24), ("HUGE_REQUEST", 12)])
def test_a_launch_that_can_not_be_is_refused(arena: Arena, patch: str, code: int) -> None:
    started = begin(arena, PATCHES[patch], "sleep", "1000")
    assert started.hear()["kind"][1] == code
    arena.wait_left({started.pid, arena.the("muontrap-guard"), arena.the("muontrap-watch")}, bound=BOUND)
