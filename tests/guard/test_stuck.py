"""A guard that says nothing, or never sleeps: the host waits for a bounded time, and no time is burnt."""

from __future__ import annotations

import os
import signal
import time

import pytest

import muontrap
from muontrap.host import link, status


def current() -> link.Link:
    guard = link._links.current
    assert guard is not None
    return guard


@pytest.mark.parametrize("is_new", [True, False], ids=["new channel", "idle channel"])
@pytest.mark.parametrize("size", [1, 500_000])
def test_one_that_is_stopped_with_its_watch_is_replaced(
    monkeypatch: pytest.MonkeyPatch, size: int, is_new: bool
) -> None:
    """Alone it would be made to go on.  More than 200,000 bytes do not fit into a socket's buffer."""
    for module in link, status:
        monkeypatch.setattr(module, "STUCK_AFTER", 0.2)
    muontrap.run(["true"])
    stuck = current()
    while is_new and stuck._idle:
        stuck._idle.pop().close()
    for pid in stuck.hello.watch_pid, stuck.hello.guard_pid:
        os.kill(pid, signal.SIGSTOP)
    argv = ["echo", *["x" * 100_000] * (size // 100_000)]
    began = time.monotonic()
    with pytest.raises(muontrap.GuardDied):
        muontrap.run(argv, stdout=muontrap.DEVNULL)
    assert 0.4 <= time.monotonic() - began < 5
    assert muontrap.run(["sh", "-c", "exit 3"]).returncode == 3
    assert current() is not stuck


def test_it_sleeps_when_nothing_happens() -> None:
    """Also after a child has died that is no command's main process: only SIGCHLD tells of that."""
    muontrap.run(["true"])
    before = cpu_time(current().hello.guard_pid)
    muontrap.run(["sh", "-c", "(sleep 0.05 &); exec sleep 0.5"])
    assert cpu_time(current().hello.guard_pid) - before < 0.2


def cpu_time(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as file:
        utime, stime = file.read().rpartition(")")[2].split()[11:13]
    return (int(utime) + int(stime)) / os.sysconf("SC_CLK_TCK")
