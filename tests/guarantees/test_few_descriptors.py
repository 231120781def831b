"""G1, G2 and G7 where there are more processes than descriptors to hold them with."""

from __future__ import annotations

import os
import signal

import pytest
from arena import BOUND, Arena
from commands import need_root
from hostlib import GRACE, Any, ctypes, hear, muontrap, resource, say

pytestmark = pytest.mark.slow

# Half of them are adopted by the guard, half hang below the shell.
FOREST = """
for i in $(seq {count}); do setsid sleep 1000 & (setsid sleep 1000 &) done
echo ready > "$0"
{end}
"""


def forest_host(*, line: list[str], soft: int, hard: int | None, way: str) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard or most))
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
    say(launched=True)
    hear()
    if way == "host":
        os._exit(0)
    try:
        returncode = process.stop().returncode if way == "stop" else process.wait()
        say(ended=returncode)
    except muontrap.GuardDied as error:
        say(ended=str(error))
    hear()


@pytest.mark.parametrize("limits", [(64, 64), (64, None)], ids=["hard", "soft"])
@pytest.mark.parametrize("way", ["host", "guard", "guard-and-host", "stop", "exit"])
def test_more_processes_than_descriptors(arena: Arena, way: str, limits: tuple[int, int | None]) -> None:
    script = FOREST.format(count=60, end="exit 3" if way == "exit" else "wait")
    line = ["/bin/sh", "-c", script, str(arena.ready)]
    started = arena.host(forest_host, line=line, soft=limits[0], hard=limits[1], way=way)
    started.hear()
    arena.wait_ready()
    if way in ("guard", "guard-and-host"):
        os.kill(arena.the("muontrap-guard"), signal.SIGKILL)
    if way == "guard-and-host":
        os.kill(started.pid, signal.SIGKILL)
    else:
        started.order("go on")
    if way in ("host", "guard-and-host"):
        arena.wait_left(bound=GRACE + BOUND)
        return
    ended = started.hear()["ended"]
    helpers = {*arena.named("muontrap-guard"), *arena.named("muontrap-watch")}
    arena.assert_left({started.pid, *helpers})
    assert ended == {"stop": -signal.SIGTERM, "exit": 3}.get(way) or "has been killed" in ended


def crowd_host(*, line: list[str], limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    launcher = muontrap.Launcher(line, delay_to_sigkill=GRACE)
    processes = []
    try:
        while True:
            processes.append(launcher.launch())
    except OSError as error:
        say(errno=error.errno, count=len(processes))
    hear()
    first, *others = processes
    returncode = first.stop().returncode
    say(returncode=returncode, running=[process.poll() for process in others])
    hear()


@pytest.mark.parametrize("limit", [40, 100])
def test_launches_leave_descriptors_for_the_end_of_commands(arena: Arena, limit: int) -> None:
    """Else the guard can't open what is left of one, and dies of that: then all die with it."""
    line = ["/bin/sh", "-c", FOREST.format(count=5, end="wait"), str(arena.ready)]
    started = arena.host(crowd_host, line=line, limit=limit)
    refused = started.hear()
    assert refused["errno"] == 24
    arena.wait_ready(refused["count"])
    started.order("go on")
    assert started.hear() == {"returncode": -signal.SIGTERM, "running": [None] * (refused["count"] - 1)}
    os.kill(started.pid, signal.SIGKILL)
    arena.wait_left(bound=GRACE + BOUND)


def sweeping_host(*, line: list[str]) -> None:
    """Be the one who sweeps, and adopts what is killed, but does not reap it."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
    guard: Any = muontrap.host.link._links.current
    say(guard=guard.hello.guard_pid, watch=guard.hello.watch_pid)
    hear()
    for pid in guard.hello.watch_pid, guard.hello.guard_pid:
        os.kill(pid, signal.SIGKILL)
    try:
        process.wait()
    except muontrap.GuardDied as error:
        say(died=str(error))
    hear()


def test_the_dead_take_nobodys_place_in_the_hosts_own_sweep(arena: Arena) -> None:
    """Nobody reaps them, and there are more than descriptors; it can't see the end, but kill all it can."""
    line = ["/bin/sh", "-c", FOREST.format(count=60, end="wait"), str(arena.ready)]
    started = arena.host(sweeping_host, line=line)
    started.hear()
    arena.wait_ready()
    started.order("go on")
    assert "can't be seen (Too many open files" in started.hear()["died"]
    arena.assert_left({started.pid})


@pytest.mark.parametrize("options", [{}, {"nice": 1}, {"user": "nobody"}], ids=["spawn", "fork", "user"])
def test_a_command_may_have_the_last_descriptors(arena: Arena, options: dict[str, Any]) -> None:
    """Which the guard does not use for launches."""
    if "user" in options:
        need_root()
    assert arena.host(last_descriptor_host, options=options).hear() == {"returncode": 0}


def last_descriptor_host(*, options: dict[str, Any]) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 120)
    line = ["test", "-e", "/proc/self/fd/120"]
    say(returncode=muontrap.run(line, pass_fds=[120], **options).returncode)
    hear()
