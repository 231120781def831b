"""Launches by the thousand: no descriptor, zombie, thread or memory growth, in host or guard.

10,000 launches when MUONTRAP_FULL is set, 1,500 otherwise.
"""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from arena import BOUND, Arena, read_stat, status_of
from hostlib import contextlib, hear, muontrap, names_of_threads, open_fds, say

FULL = bool(os.environ.get("MUONTRAP_FULL"))
LAUNCHES = 10_000 if FULL else 1_500
GROWTH = 1.0 if FULL else 0.6  # MiB that may be noise of the allocator

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def host(*, way: str) -> None:
    """Launch as often as the test says, in one of several ways; count what this process holds."""

    def launch() -> None:
        if way == "run":
            muontrap.run(["/bin/true"], capture_output=True)
        elif way == "fork":
            muontrap.run(["/bin/true"], capture_output=True, no_new_privs=True)
        elif way == "stop":
            process = muontrap.Launcher(["/bin/sleep", "1000"], stdin=-1, stdout=-1, stderr=-1).launch()
            process.kill()
            process.communicate()
        elif way == "timeout":
            with contextlib.suppress(muontrap.TimeoutExpired):
                muontrap.run(["/bin/sleep", "1000"], timeout=0, capture_output=True, delay_to_sigkill=0)
        elif way == "failure":
            with contextlib.suppress(FileNotFoundError):
                muontrap.run(["/no/such/program"], capture_output=True)
        elif way == "daemon":
            muontrap.run(["/bin/sh", "-c", "setsid sleep 1000 & exit 0"], capture_output=True)

    while count := hear():
        for _ in range(int(count)):
            launch()
        say(fds=open_fds(), threads=names_of_threads())


def memory(pid: int) -> int:
    """Anonymous memory of a process, KiB."""
    return int(status_of(pid)["RssAnon"].split()[0])


def state(pid: int) -> dict[str, Any]:
    """What the kernel counts for a process."""
    folder = f"/proc/{pid}"
    children = [
        name for name in os.listdir("/proc") if name.isdigit() and read_stat(f"/proc/{name}/stat")[1] == pid
    ]
    return {
        "fds": len(os.listdir(f"{folder}/fd")),
        "threads": len(os.listdir(f"{folder}/task")),
        "children": len(children),
    }


@pytest.mark.parametrize("way", ["run", "fork", "stop", "timeout", "failure", "daemon"])
def test_launches_leave_nothing_behind(arena: Arena, way: str) -> None:
    launches = LAUNCHES if way == "run" else LAUNCHES // 5
    started = arena.host(host, way=way)
    started.order(str(launches // 5))
    first = started.hear(bound=300)
    guard, watch = arena.the("muontrap-guard"), arena.the("muontrap-watch")
    before = {pid: (state(pid), memory(pid)) for pid in (started.pid, guard, watch)}
    started.order(str(launches))
    last = started.hear(bound=500)
    assert last == first
    assert (arena.the("muontrap-guard"), arena.the("muontrap-watch")) == (guard, watch)
    arena.assert_left({started.pid, guard, watch})
    for pid, (counts, size) in before.items():
        assert state(pid) == counts
        assert memory(pid) - size < GROWTH * 1024, f"{pid} grew from {size} to {memory(pid)} KiB"


def lasting_host(*, line: list[str]) -> None:
    with muontrap.Launcher(line).launch():
        hear()


def test_orphans_that_die_while_their_command_runs_are_reaped(arena: Arena) -> None:
    """Each is adopted by the guard, and is its zombie until then."""
    script = (
        f"for i in 1 2 3 4 5 6 7 8 9; do (sleep 0.0$i &); done; echo ready >{arena.ready}; exec sleep 1000"
    )
    arena.host(lasting_host, line=["/bin/sh", "-c", script])
    arena.wait_ready()
    guard, deadline = arena.the("muontrap-guard"), time.monotonic() + BOUND
    while state(guard)["children"] != 1:
        assert time.monotonic() < deadline, state(guard)
