"""G1 and G2 on a machine whose processors are all taken: who is slow may not take that for an end.

A guard that looks at a list of processes sees, by the time it has looked, only dead ones; their children,
which were not on that list, go on. Here it is preempted often enough for that to happen.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest
from arena import BOUND, Arena
from commands import COMMANDS, LEAVERS
from hostlib import GRACE, Any, hear, muontrap, say

pytestmark = pytest.mark.slow

RESTLESS = ("chain", "unmarked-chain", "fork-bomb", "daemonize-on-term", "tree-of-sessions")


@pytest.fixture
def busy() -> Iterator[None]:
    """Twice as many busy processes as processors."""
    line = ["/bin/sh", "-c", "while :; do :; done"]
    spinners = [subprocess.Popen(line) for _ in range(2 * (os.cpu_count() or 1))]
    yield
    for spinner in spinners:
        spinner.kill()
        spinner.wait()


def host(*, line: list[str], how: str, count: int) -> None:
    for _ in range(count):
        process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
        say(pid=process.pid)
        hear()
        getattr(process, how)()
        process.wait()
        say(ended=True)
        hear()


def options(arena: Arena, command: str, how: str, count: int) -> dict[str, Any]:
    table = LEAVERS if how == "wait" else COMMANDS
    return {"line": table[command](arena)[0], "how": how, "count": count}


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("command", RESTLESS)
def test_nothing_is_left_of_a_dead_host(arena: Arena, command: str) -> None:
    for number in range(3):
        started = arena.host(host, **options(arena, command, "stop", 1))
        started.hear()
        arena.wait_ready(number + 1)
        started.signal(signal.SIGKILL)
        arena.wait_left(bound=GRACE + BOUND)


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("how", ["stop", "kill"])
@pytest.mark.parametrize("command", RESTLESS)
def test_nothing_is_left_when_a_call_returns(arena: Arena, command: str, how: str) -> None:
    started = arena.host(host, **options(arena, command, how, 5))
    check_rounds(arena, 5)
    assert started


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("command", ["chain", "unmarked-chain", "tree-of-sessions"])
def test_nothing_is_left_when_main_ends_by_itself(arena: Arena, command: str) -> None:
    started = arena.host(host, **options(arena, command, "wait", 5))
    check_rounds(arena, 5)
    assert started


def waiting_host(*, line: list[str]) -> None:
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
    hear()
    try:
        process.wait()
    except muontrap.GuardDied as error:
        say(pids=error.pids)
    hear()


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("command", ["chain", "fork-bomb"])
def test_the_hosts_own_sweep_leaves_nothing(arena: Arena, command: str) -> None:
    """Neither guard nor watch is there to adopt what is left."""
    started = arena.host(waiting_host, line=COMMANDS[command](arena)[0])
    arena.wait_ready()
    pair = [arena.the("muontrap-watch"), arena.the("muontrap-guard")]
    started.order("wait")
    for pid in pair:
        os.kill(pid, signal.SIGKILL)
    assert started.hear() == {"pids": []}
    arena.assert_left({started.pid, *pair})  # which may be dying


def check_rounds(arena: Arena, count: int) -> None:
    started = arena.hosts[0]
    for number in range(count):
        started.hear()
        arena.wait_ready(number + 1)
        started.order("go")
        started.hear()
        arena.assert_left({started.pid, arena.the("muontrap-guard"), arena.the("muontrap-watch")})
        started.order("next")
