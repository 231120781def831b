"""Hosts with limits, policies and filters that their guards inherit, and that would get in a guard's way."""

from __future__ import annotations

import os
import resource
import signal

import pytest
from arena import BOUND, Arena
from commands import COMMANDS
from hostlib import add_filter, hear, kind, muontrap, say, subprocess

TIMES = ["cpu", "rttime"]
# What SIGTERM does not end, and is looked for again and again until the grace is over.
STUBBORN = "trap '' TERM; for i in $(seq {count}); do sleep 1000 & done; trap - TERM; echo ready >$0; {end}"


def limited_host(*, line: list[str], limit: str, soft: int, hard: int) -> None:
    number = getattr(resource, f"RLIMIT_{limit.upper()}")
    resource.setrlimit(number, (soft, hard))
    show = ["/bin/cat", "/proc/self/limits"]
    process = muontrap.Launcher(line, kill_mode="control-group", delay_to_sigkill=1.0).launch()
    guard = muontrap.host.link._links.current.hello.guard_pid
    theirs = subprocess.run(show, capture_output=True, text=True, check=True).stdout.splitlines()
    ours = muontrap.run(show, capture_output=True, text=True).stdout.splitlines()
    differ = [line.split()[1] for line in theirs if line not in ours]
    say(differ=differ, guards=resource.prlimit(guard, number))
    hear()
    process.stop()


@pytest.mark.parametrize("limit", TIMES)
@pytest.mark.parametrize(("soft", "hard", "guards"), [(10**6, -1, (-1, -1)), (10**6, 10**8, (10**8, 10**8))])
def test_limits_of_time_are_the_commands_and_not_the_guards(
    arena: Arena, limit: str, soft: int, hard: int, guards: tuple[int, int]
) -> None:
    line = COMMANDS["sleeper"](arena)[0]
    answer = arena.host(limited_host, line=line, limit=limit, soft=soft, hard=hard).hear()
    assert answer["differ"] == ["file"]  # the mark
    assert tuple(answer["guards"]) in (guards, (-1, -1))  # as CAP_SYS_RESOURCE allows


def test_a_hunt_survives_a_limit_of_real_time(arena: Arena) -> None:
    """In real time, it would be killed as soon as one look at all takes longer."""
    line = ["/bin/sh", "-c", STUBBORN.format(count=400, end="wait"), str(arena.ready)]
    started = arena.host(limited_host, line=line, limit="rttime", soft=2000, hard=2000)
    arena.wait_ready()
    started.hear()
    started.signal(signal.SIGKILL)
    arena.wait_left(bound=1.0 + BOUND)


def batch_host(*, line: list[str]) -> None:
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    muontrap.Launcher(line, kill_mode="control-group", delay_to_sigkill=1.0).run()
    show = ["/usr/bin/chrt", "-p", "0"]
    say(policy=muontrap.run(show, capture_output=True, text=True).stdout)


def test_the_policy_after_a_hunt_is_that_of_before(arena: Arena) -> None:
    line = ["/bin/sh", "-c", STUBBORN.format(count=1, end="exit"), str(arena.ready)]
    started = arena.host(batch_host, line=line)
    assert "SCHED_BATCH" in started.hear()["policy"]


def filtered_host(*, call: int) -> None:
    """One whose filter of seccomp forbids one system call."""
    add_filter(call)
    say(kind=kind(lambda: muontrap.run(["/bin/true"]))[0])
    hear()


@pytest.mark.parametrize("call", [424, 434], ids=["pidfd_send_signal", "pidfd_open"])
def test_where_nothing_could_be_ended_nothing_starts(arena: Arena, call: int) -> None:
    started = arena.host(filtered_host, call=call)
    assert started.hear()["kind"] in ("GuardError", "PermissionError")
    arena.wait_left({started.pid}, bound=BOUND)
