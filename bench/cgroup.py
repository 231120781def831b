"""What a cgroup costs a launch, and how long it takes to kill 500 processes, with v2, v1 and none."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from functools import partial

from rivals import Report, interleave, timed

import muontrap
from muontrap.host import cgroups
from muontrap.logic.hierarchy import Layout

COMMAND = ["/bin/true"]
PROCESSES = 500
# Each says so when it is there, and then ignores SIGTERM.
CROWD = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range({PROCESSES - 1}):
    if os.fork() == 0:
        os.setsid()
        break
os.write(1, b".")
time.sleep(1000)
"""
FOUND = cgroups.discover()
V1 = Layout(unified=None, controllers=FOUND.controllers)
V2 = Layout(unified=FOUND.unified, controllers={})


def in_layout(layout: Layout, run: Callable[[], object]) -> float:
    """What `run` takes where the machine has just these hierarchies."""
    cgroups.discover = lambda: layout
    try:
        return timed(run)
    finally:
        cgroups.discover = lambda: FOUND


def kill_crowd(layout: Layout, *, cgroup: bool) -> float:
    """Milliseconds from `stop` to its return, when nothing is left of 500 processes."""
    cgroups.discover = lambda: layout
    launcher = muontrap.Launcher(
        [sys.executable, "-c", CROWD], stdout=muontrap.PIPE, bufsize=0, cgroup=cgroup, delay_to_sigkill=0.0
    )
    with launcher.launch() as process:
        assert process.stdout is not None
        poll = select.poll()
        poll.register(process.stdout, select.POLLIN)
        ready = 0
        while ready < PROCESSES:
            assert poll.poll(30_000), f"{ready} of {PROCESSES} processes are there"
            ready += len(os.read(process.stdout.fileno(), 4096))
        start = time.perf_counter()
        process.stop()
        return (time.perf_counter() - start) * 1000


def main() -> None:
    report = Report("Commands with a cgroup.", seconds=5)
    base = "no cgroup, spawn way"
    kinds = {"v2": V2} if FOUND.unified else {}
    if FOUND.controllers:
        kinds["v1"] = V1
    runs = {
        base: partial(timed, partial(muontrap.run, COMMAND)),
        "no cgroup, fork way": partial(timed, partial(muontrap.run, COMMAND, no_new_privs=True)),
    }
    for name, layout in kinds.items():
        runs[f"cgroup=True, {name}"] = partial(in_layout, layout, partial(muontrap.run, COMMAND, cgroup=True))
    limits = {"memory_max": "256M", "pids_max": 64, "cpu_max": 1}
    runs["three limits"] = partial(timed, partial(muontrap.run, COMMAND, limits=limits))
    report.section("a launch of /bin/true", interleave(runs, report.seconds, block=10), base=base)
    crowds = {"no cgroup": partial(kill_crowd, FOUND, cgroup=False)}
    for name, layout in kinds.items():
        crowds[f"cgroup {name}"] = partial(kill_crowd, layout, cgroup=True)
    report.section(f"end of {PROCESSES} processes", interleave(crowds, report.seconds), base="no cgroup")
    report.end()


if __name__ == "__main__":
    main()
