"""Who removes the cgroups of a dead guard, and which ones nobody may touch."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from arena import is_alive, wait_readable
from commands import COMMANDS
from ground import BOUND, Ground
from hostlib import GRACE, Any, hear, open_fds, say
from machine import IS_UML, OURS, V2

import muontrap

pytestmark = pytest.mark.needs("group")

FULL = os.environ.get("MUONTRAP_FULL") == "1"
SEQUENTIAL = 40 if IS_UML and not FULL else 1000
AT_ONCE = 50 if FULL or not IS_UML else 12


WITHOUT_KILL = """
from muontrap.containment.groups import Directory
write = Directory.write_if_there
Directory.write_if_there = lambda self, name, value: name != "cgroup.kill" and write(self, name, value)
"""


def host(*, lines: list[list[str]], options: dict[str, Any], patch: str = "") -> None:
    """Launch commands, and more of them when asked to; with a guard that lacks something."""
    from muontrap.host import link

    link._BOOTSTRAP = link._BOOTSTRAP.replace("; run()", f"\n{patch}\nrun()")
    processes = [muontrap.Launcher(line, delay_to_sigkill=GRACE, **options).launch() for line in lines]
    say(pids=[process.pid for process in processes])
    while hear() == "launch":
        muontrap.run(["true"], **options)
        say(launched=True)


def launching_host(*, options: dict[str, Any], threads: int) -> None:
    """Launch again and again, in several threads, until the guard is dead."""

    def launch() -> None:
        while True:
            try:
                muontrap.run(["true"], **options)
            except muontrap.GuardDied:
                break
            say(launched=True)

    workers = [threading.Thread(target=launch) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    hear()


def counting(*, options: dict[str, Any], count: int, at_once: int) -> None:
    """Launch often; tell which descriptors this host has gained."""
    muontrap.run(["true"], **options)
    before = open_fds()
    say(ready=True)
    hear()
    for _ in range(count):
        processes = [muontrap.Launcher(["true"], **options).launch() for _ in range(at_once)]
        for process in processes:
            with process:
                assert process.wait(60) == 0
    say(gained=sorted({*open_fds()} - {*before}))
    hear()


def descriptors_of(guard: int) -> int:
    """How many it has; only root may see them."""
    return len(os.listdir(f"/proc/{guard}/fd")) if os.getuid() == 0 else 0


def start(ground: Ground, *lines: list[str], **options: Any) -> tuple[Any, list[int]]:
    options = {"cgroup_base": ground.base, **options}
    started = ground.host(host, lines=list(lines), options=options)
    return started, started.hear(BOUND)["pids"]


def kill_all_of_muontrap(ground: Ground, *others: int) -> None:
    """Guard, watch and others, before any of them can do something about it."""
    pids = (ground.the("muontrap-watch"), ground.guard(), *others)
    pidfds = [os.pidfd_open(pid) for pid in pids]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:  # the watch first: it would let the guard go on
            os.kill(pid, number)
    for pidfd in pidfds:
        assert wait_readable([pidfd], time.monotonic() + BOUND)
        os.close(pidfd)


# --- None is left


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("count", "at_once"), [(SEQUENTIAL, 1), (2, AT_ONCE)], ids=["sequential", "at-once"])
def test_many_launches_leave_nothing(ground: Ground, count: int, at_once: int) -> None:
    options = {"cgroup": True, "cgroup_base": ground.base}
    started = ground.host(counting, options=options, count=count, at_once=at_once)
    started.hear(BOUND)
    before = descriptors_of(ground.guard())
    started.order("go")
    assert started.hear(600) == {"gained": []}
    # It tells the host first, and then lets go of the last command.
    assert descriptors_of(ground.guard()) < before + 20
    ground.assert_clean()


@pytest.mark.parametrize("command", ["sleeper", "ignore-signals", "unmarked-daemon", "chain"])
def test_the_watch_cleans_up_after_a_dead_guard(ground: Ground, command: str) -> None:
    started, _ = start(ground, COMMANDS[command](ground)[0])
    ground.wait_ready(bound=BOUND)
    watch = os.pidfd_open(ground.the("muontrap-watch"))
    os.kill(ground.guard(), signal.SIGKILL)
    assert wait_readable([watch], time.monotonic() + BOUND)
    os.close(watch)
    ground.assert_left({started.pid})
    assert not ground.groups()


def test_the_host_goes_on_with_a_new_guard(ground: Ground) -> None:
    started, _ = start(ground, ["sleep", "1000"], ["sleep", "1000"])
    kill_all_of_muontrap(ground)
    assert len(ground.groups()) >= 2
    started.ask("launch")
    ground.assert_left({started.pid, *ground.of_muontrap()})
    assert not ground.groups()


@pytest.mark.parametrize("command", ["sleeper", "unmarked-daemon", "tree-of-sessions", "stopped"])
def test_the_next_guard_kills_and_removes(ground: Ground, command: str) -> None:
    """Guard, watch and host are killed at once: nobody is left who could do it."""
    started, _ = start(ground, COMMANDS[command](ground)[0])
    ground.wait_ready(bound=BOUND)
    kill_all_of_muontrap(ground, started.pid)
    started.wait_end()
    assert ground.left()
    assert ground.groups()
    assert ground.run("true", cgroup=True).returncode == 0
    ground.assert_clean()


@pytest.mark.parametrize("patch", ["", WITHOUT_KILL], ids=["as-it-is", "without-cgroup.kill"])
def test_the_next_guard_finds_groups_below(ground: Ground, patch: str) -> None:
    """With processes in them, which the group itself does not list."""
    started, (pid,) = start(ground, ["sleep", "1000"], cgroup=True)
    for group in ground.groups():
        Path(group, "below").mkdir()
        Path(group, "below", "cgroup.procs").write_text(str(pid), "ascii")
    kill_all_of_muontrap(ground, started.pid)
    started.wait_end()
    assert ground.left() == {pid}
    next_host = ground.host(host, lines=[["true"]], options={"cgroup_base": ground.base}, patch=patch)
    next_host.hear(BOUND)
    assert not is_alive(pid)
    next_host.ask("launch")  # after what it has launched first
    assert not ground.groups()


def test_the_next_guard_thaws_what_is_frozen(ground: Ground) -> None:
    started, (pid,) = start(ground, ["sleep", "1000"], cgroup=True)
    assert pid in ground.left()
    for group in ground.groups():
        for file, value in ("cgroup.freeze", "1"), ("freezer.state", "FROZEN"):
            if Path(group, file).exists():
                Path(group, file).write_text(value, "ascii")
    kill_all_of_muontrap(ground, started.pid)
    started.wait_end()
    assert ground.run("true", cgroup=True).returncode == 0
    ground.assert_clean()


@pytest.mark.parametrize("launches", [1, 7, 20])
def test_a_guard_killed_while_it_launches(ground: Ground, launches: int) -> None:
    """It leaves what it leaves; the next one removes it, once no child that it had forked holds a lock."""
    started = ground.host(
        launching_host, options={"cgroup": True, "cgroup_base": ground.base}, threads=2 if IS_UML else 4
    )
    for _ in range(launches):
        started.hear(BOUND)
    kill_all_of_muontrap(ground, started.pid)
    started.wait_end()
    ground.wait_left(bound=BOUND)
    assert ground.run("true", cgroup=True).returncode == 0
    ground.assert_clean()


@pytest.mark.skipif(V2 not in OURS, reason="this machine gives this user no v2 hierarchy")
def test_a_host_in_a_group_that_was_killed_once(ground: Ground) -> None:
    """A process that is born in another group than its parent's is killed if one of them ever was."""
    kill = ground.folder_of(V2) / "host" / "cgroup.kill"
    if not kill.exists():
        pytest.skip("this kernel has no cgroup.kill")
    kill.write_text("1", "ascii")
    started, (pid,) = start(ground, ["sleep", "1000"], cgroup=True)
    started.ask("launch")
    assert is_alive(pid)


# --- What nobody may touch


def test_groups_of_a_living_host_are_left_alone(ground: Ground) -> None:
    started, pids = start(ground, ["sleep", "1000"], ["sleep", "1000"])
    groups = ground.groups()
    assert ground.run("true", cgroup=True).returncode == 0
    assert ground.groups() == groups
    assert all(is_alive(pid) for pid in pids)
    started.ask("launch")
    assert ground.groups() == groups


@pytest.mark.parametrize(
    "name", ["web", "muontrap-web", "muontrap-kept-web", "muontrap", "muontrap-test-12-1", "muontrap-12-34"]
)
@pytest.mark.parametrize("populated", [True, False])
def test_somebody_elses_groups_are_left_alone(ground: Ground, name: str, populated: bool) -> None:
    """Not locked, and not named as muontrap names its own: what a person would call a group."""
    folder = ground.folder_of(V2 if V2 in OURS else "freezer") / name
    (folder / "below").mkdir(parents=True)
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            if populated:
                (folder / "cgroup.procs").write_text(str(other.pid), "ascii")
            assert ground.run("true", cgroup=True).returncode == 0
            assert (folder / "below").is_dir()
            assert other.poll() is None
        finally:
            other.kill()


def test_a_locked_group_is_left_alone(ground: Ground) -> None:
    """Named as if it were muontrap's own: whoever has locked it is alive."""
    folder = ground.folder_of(V2 if V2 in OURS else "freezer") / "muontrap-1a2b3c4-0123456789"
    folder.mkdir()
    lock = os.open(folder, os.O_RDONLY)
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            (folder / "cgroup.procs").write_text(str(other.pid), "ascii")
            assert ground.run("true", cgroup=True).returncode == 0
            assert other.poll() is None
            assert folder.is_dir()
        finally:
            other.kill()
            os.close(lock)


def test_a_living_host_below_an_abandoned_looking_base(ground: Ground) -> None:
    """Its base is named like a group of ours; the next above is another host's base."""
    for point in dict.fromkeys(OURS.values()):
        (point / f"{ground.base}" / "muontrap-app").mkdir()
    started, (pid,) = start(ground, ["sleep", "1000"], cgroup_base=f"{ground.base}/muontrap-app")
    assert ground.run("true", cgroup=True).returncode == 0
    assert is_alive(pid)
    started.ask("launch")
