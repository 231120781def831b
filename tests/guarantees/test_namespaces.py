"""A command runs in the namespaces that its host is in when it launches, as with `subprocess`."""

from __future__ import annotations

import os
import subprocess

import pytest
from arena import Arena
from commands import argv, need_root, ordinary_user, set_user_id_copy
from hostlib import GRACE, NOBODY, Any, ctypes, hear, kind, muontrap, say, signal, threading

pytestmark = pytest.mark.slow

# CLONE_NEW* of sched.h.
KINDS = {
    "cgroup": 0x02000000,
    "ipc": 0x08000000,
    "mnt": 0x00020000,
    "net": 0x40000000,
    "user": 0x10000000,
    "uts": 0x04000000,
}


def need_to_start(before: list[str]) -> None:
    """Skip where that, put before a command line, does not work."""
    if subprocess.run([*before, "true"], capture_output=True, check=False).returncode:
        pytest.skip(f"can't be had here: {before}")


def host(*, name: str, flag: int, how: str) -> None:
    """Launch, leave the namespace, and launch again: in some thread or process."""
    look = ["/bin/readlink", f"/proc/self/ns/{name}"]
    answers: list[Any] = []

    def act() -> None:
        before = muontrap.run(look, capture_output=True, text=True).stdout
        if ctypes.CDLL(None, use_errno=True).unshare(flag):
            raise OSError(ctypes.get_errno(), "unshare")
        after = [muontrap.run(look, capture_output=True, text=True).stdout.strip() for _ in range(2)]
        there = os.readlink(f"/proc/thread-self/ns/{name}")
        answers.extend([before.strip() != there, after == 2 * [there]])

    if how == "thread":
        thread = threading.Thread(target=act)
        thread.start()
        thread.join()
    elif how == "forked-child":
        muontrap.run(look)
        if pid := os.fork():
            os.waitpid(pid, 0)
            return
        act()
    else:
        act()
    say(answers=answers)


@pytest.mark.parametrize("how", ["main-thread", "thread", "forked-child"])
@pytest.mark.parametrize("name", KINDS)
def test_a_command_is_where_its_host_is(arena: Arena, name: str, how: str) -> None:
    need_root()
    if name == "user" and how == "thread":
        pytest.skip("who has threads may not leave its user namespace, unshare(2)")
    need_to_start(["unshare", {"mnt": "--mount"}.get(name, f"--{name}")])
    assert arena.host(host, name=name, flag=KINDS[name], how=how).hear() == {"answers": [True, True]}


def children_host() -> None:
    """Its children will be in a PID namespace that has no process yet."""
    flag = 0x20000000
    muontrap.run(["/bin/true"])
    if ctypes.CDLL(None, use_errno=True).unshare(flag):
        raise OSError(ctypes.get_errno(), "unshare")
    say(kinds=[kind(lambda: muontrap.run(["/bin/true"])) for _ in range(2)])


def foreign_host() -> None:
    say(kinds=[kind(lambda: muontrap.run(["/bin/true"])) for _ in range(2)])


@pytest.mark.parametrize("is_in_it", [False, True])
def test_where_proc_is_of_another_pid_namespace_nothing_runs(arena: Arena, is_in_it: bool) -> None:
    """There the guard would take others for what it has to kill."""
    need_root()
    need_to_start(["unshare", "--pid", "--fork"])
    code, before = (foreign_host, ["unshare", "--pid", "--fork"]) if is_in_it else (children_host, [])
    assert arena.host(code, before=before).hear() == {"kinds": 2 * [["GuardError", None, ""]]}


def test_with_a_proc_of_its_own_commands_run(arena: Arena) -> None:
    need_root()
    before = ["unshare", "--pid", "--fork", "--mount-proc"]
    need_to_start(before)
    assert arena.host(foreign_host, before=before).hear() == {"kinds": 2 * [["returned"]]}


def test_without_proc_nothing_runs(arena: Arena) -> None:
    need_root()
    script = 'mount -t tmpfs none /proc && exec "$@"'
    before = ["unshare", "--mount", "/bin/sh", "-c", script, "sh"]
    need_to_start(before)
    assert arena.host(foreign_host, before=before).hear() == {"kinds": 2 * [["GuardError", None, ""]]}


def leaving_host(*, line: list[str]) -> None:
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
    hear()
    say(reason=process.stop().reason)
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
    hear()


@pytest.mark.parametrize("hidepid", [1, 2])
@pytest.mark.parametrize("program", ["tree_of_sessions.py", "daemon.py"])
def test_an_ordinary_user_to_whom_proc_hides_others(arena: Arena, hidepid: int, program: str) -> None:
    need_root()
    script = f'mount -t proc -o hidepid={hidepid} proc /proc && exec "$@"'
    before = ["unshare", "--mount", "/bin/sh", "-c", script, "sh"]
    need_to_start(before)
    ordinary = ordinary_user()
    line = [ordinary["python"], *argv(arena, program)[1:]]
    started = arena.host(
        leaving_host, line=line, before=before + ordinary["before"], python=ordinary["python"]
    )
    arena.wait_ready()
    assert started.ask("stop") == {"reason": "stopped"}
    arena.wait_ready(2)
    started.signal(signal.SIGKILL)
    arena.wait_left()


def orphan_host(*, line: list[str]) -> None:
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
    hear()
    for _ in range(3):
        muontrap.run(["/bin/true"])
    say(polled=process.poll())
    hear()
    process.stop()
    say(stopped=True)
    hear()


@pytest.mark.parametrize("hidepid", [1, 2])
def test_an_orphan_that_proc_hides_lives_as_long_as_its_command(arena: Arena, hidepid: int) -> None:
    """A set-user-ID program's: the guard can read neither its mark nor when it began."""
    need_root()
    script = f'mount -t proc -o hidepid={hidepid} proc /proc && exec "$@"'
    before = ["unshare", "--mount", "/bin/sh", "-c", script, "sh"]
    need_to_start(before)
    sleep = set_user_id_copy(arena, "/bin/sleep", owner=NOBODY)
    ordinary = ordinary_user()
    line = ["/bin/sh", "-c", f"({sleep} 1000 &); echo ready >{arena.ready}; exec sleep 1000"]
    started = arena.host(
        orphan_host, line=line, before=before + ordinary["before"], python=ordinary["python"]
    )
    arena.wait_ready()
    name = os.path.basename(sleep)
    while not (orphans := arena.named(name)):
        pass
    assert started.ask("run others") == {"polled": None}
    assert arena.named(name) == orphans
    started.ask("stop")
    arena.wait_left({started.pid, *arena.named("muontrap-guard"), *arena.named("muontrap-watch")})
