"""Commands that try to get away from their cgroup, or make it hard to end it: nothing is left of them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import COMMANDS, LEAVERS, need_root
from ground import BOUND, Ground, group_of
from hostlib import GRACE, NOBODY, Any, hear, say
from machine import IS_UML, OURS, V2

import muontrap

pytestmark = pytest.mark.needs("group")

# Moves to another group of each hierarchy that it can, and says how many these were.
MOVE = """
moved=0
for group in {groups}; do
    {{ echo $$ >$group/cgroup.procs; }} 2>/dev/null && moved=$((moved + 1))
done
"""


def host(*, line: list[str], options: dict[str, Any], patch: str, how: str) -> None:
    """Run a command with a guard that lacks something; end it in one way or the other."""
    from muontrap.host import link

    link._BOOTSTRAP = link._BOOTSTRAP.replace("; run()", f"\n{patch}\nrun()")
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE, **options).launch()
    say(pid=process.pid, containment=process.containment)
    hear()
    if how == "kill":
        process.kill()
    elif how == "stop":
        process.stop()
    process.wait(60)
    say(ended=True)
    hear()


def moves_to(folder: str) -> str:
    """A script that moves its shell to this group of all hierarchies."""
    return MOVE.format(groups=" ".join(str(point / folder) for point in dict.fromkeys(OURS.values())))


# --- Out of the cgroup


@pytest.mark.parametrize("folder", ["", "{base}", "{base}/host"])
def test_a_command_of_another_user_can_not_move(ground: Ground, folder: str) -> None:
    """To any group: the root, the base, a sibling."""
    need_root()
    script = moves_to(folder.format(base=ground.base)) + "echo $moved; cat /proc/self/cgroup"
    limits = {"cgroup_controllers": [name for name in ("memory", "pids") if name in OURS]}
    result = ground.run("sh", "-c", script, cgroup=True, user=NOBODY, **limits)
    moved, *lines = result.stdout.splitlines()
    assert moved == "0"
    assert any(f"/{ground.base}/muontrap-" in line for line in lines)


@pytest.mark.parametrize("how", ["exit", "kill", "stop"])
def test_what_moved_itself_is_found(ground: Ground, how: str) -> None:
    """The main process stays in, or has ended; who moved is another, in a session of its own."""
    mover = moves_to(f"{ground.base}/host") + "echo moved $moved; exec sleep 1000"
    rest = "read line" if how == "exit" else "exec sleep 1000"
    script = f"(setsid sh -c '{mover}' &); {rest}"
    pipes = {"stdin": muontrap.PIPE, "stdout": muontrap.PIPE}
    with ground.launch("sh", "-c", script, cgroup=True, **pipes) as process:
        assert process.stdout
        moved = int(process.stdout.readline().split()[1])
        assert moved == len(set(OURS.values()))
        assert process.stdin
        process.stdin.write("end\n")
        process.stdin.flush()
        if how != "exit":
            getattr(process, how)()
        process.wait(BOUND)
        ground.assert_clean()


@pytest.mark.parametrize("how", ["wait", "kill", "stop"])
@pytest.mark.parametrize("command", ["unmarked-daemon", "unmarked-chain"])
def test_what_changed_its_tag_is_in_the_cgroup(ground: Ground, command: str, how: str) -> None:
    line = (LEAVERS if how == "wait" else COMMANDS)[command](ground)[0]
    with ground.launch(*line, cgroup=True, env_update={"MUONTRAP_READY": str(ground.ready)}) as process:
        ground.wait_ready()
        if how != "wait":
            getattr(process, how)()
        process.wait(BOUND)
        ground.assert_clean()


# --- Hard to end


def freeze(folder: Path) -> None:
    """Freeze a group, of either version, and wait until it is."""
    deadline = time.monotonic() + BOUND
    if (folder / "cgroup.freeze").exists():
        with open(folder / "cgroup.events", encoding="ascii") as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            (folder / "cgroup.freeze").write_text("1", "ascii")
            while "frozen 1" not in events.read():
                assert time.monotonic() < deadline
                poll.poll(1000)
                events.seek(0)
    else:
        (folder / "freezer.state").write_text("FROZEN", "ascii")
        while (folder / "freezer.state").read_text("ascii") != "FROZEN\n":
            assert time.monotonic() < deadline


@pytest.mark.parametrize("how", ["kill", "stop", "timeout"])
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_frozen_command_is_ended(ground: Ground, version: str, how: str) -> None:
    name = "freezer" if version == "v1" else V2
    if name not in OURS:
        pytest.skip(f"this machine gives this user no {name or 'v2 hierarchy'}")
    options = {"cgroup_controllers": ["freezer"]} if version == "v1" else {"cgroup": True}
    with ground.launch("sh", "-c", "sleep 1000 & wait", **options) as process:
        freeze(group_of(process.pid, name))
        if how == "timeout":
            with pytest.raises(muontrap.TimeoutExpired):
                process.wait(0.01)
        getattr(process, "stop" if how == "timeout" else how)()
        process.wait(BOUND)
        ground.assert_clean()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_frozen_command_can_handle_its_stop_signal(ground: Ground, version: str) -> None:
    name = "freezer" if version == "v1" else V2
    if name not in OURS:
        pytest.skip(f"this machine gives this user no {name or 'v2 hierarchy'}")
    options = {"cgroup_controllers": ["freezer"]} if version == "v1" else {"cgroup": True}
    script = "trap 'exit 3' TERM; echo there; read line"
    pipes = {"stdin": muontrap.PIPE, "stdout": muontrap.PIPE}
    with ground.launch("sh", "-c", script, delay_to_sigkill=20, **pipes, **options) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        freeze(group_of(process.pid, name))
        assert process.stop().returncode == 3
        ground.assert_clean()


def test_a_frozen_group_of_its_own_is_ended(ground: Ground) -> None:
    """The command freezes a part of itself, in a group below its own."""
    name = "freezer" if "freezer" in OURS else V2
    options = {"cgroup_controllers": ["freezer"]} if name else {"cgroup": True}
    with ground.launch("sh", "-c", "sleep 1000 & echo $!; wait", stdout=muontrap.PIPE, **options) as process:
        below = group_of(process.pid, name) / "below"
        below.mkdir()
        assert process.stdout
        (below / "cgroup.procs").write_text(process.stdout.readline(), "ascii")
        freeze(below)
        process.kill()
        process.wait(BOUND)
        ground.assert_clean()


@pytest.mark.parametrize("how", ["exit", "kill"])
def test_groups_that_it_made_are_removed(ground: Ground, how: str) -> None:
    """Three deep, with processes in them, some empty."""
    name = V2 if V2 in OURS else next(name for name in ("freezer", "pids") if name in OURS)
    rest = "read line" if how == "exit" else "exec sleep 1000"
    script = f"""
        mkdir -p $0/a/b/c $0/d
        setsid sh -c 'echo $$ >$0/a/b/c/cgroup.procs; echo there; exec sleep 1000' $0 &
        {rest}
    """
    options = {"stdin": muontrap.PIPE, "stdout": muontrap.PIPE, "cgroup_path": f"{ground.base}/own"}
    folder = OURS[name] / f"{ground.base}/own"
    with ground.launch("sh", "-c", script, str(folder), **options) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        assert str(folder / "a/b/c") in ground.groups()
        assert process.stdin
        process.stdin.write("end\n")
        process.stdin.flush()
        if how == "kill":
            process.kill()
        process.wait(BOUND)
        ground.assert_clean()


# Puts a thread of its own into a threaded group of its own, and has another process there.
THREADED = """
import os, sys, threading
own = sys.argv[1]
os.mkdir(own + "/threads")
open(own + "/threads/cgroup.type", "w").write("threaded")
def move():
    open(own + "/threads/cgroup.threads", "w").write(str(threading.get_native_id()))
    os.write(1, b"there\\n")
    threading.Event().wait()
if not os.fork():
    os.setsid()
    open(own + "/threads/cgroup.procs", "w").write("0")
    threading.Thread(target=move).start()
    threading.Event().wait()
threading.Event().wait()
"""


@pytest.mark.skipif(V2 not in OURS, reason="this machine gives this user no v2 hierarchy")
@pytest.mark.parametrize("how", ["kill", "stop"])
def test_a_threaded_group_of_its_own_is_removed(ground: Ground, how: str) -> None:
    """Whose processes only the group above can list."""
    own = ground.folder_of(V2) / "own"
    line = [sys.executable, "-S", "-E", "-c", THREADED, str(own)]
    with ground.launch(*line, cgroup_path=f"{ground.base}/own", stdout=muontrap.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        getattr(process, how)()
        process.wait(BOUND)
        ground.assert_clean()


LACKING = {
    "cgroup.kill": "('cgroup.kill',)",
    "cgroup.kill and freezers": "('cgroup.kill', 'cgroup.freeze', 'freezer.state')",
}
WITHOUT = """
from muontrap.containment.groups import Directory
write = Directory.write_if_there
Directory.write_if_there = lambda self, name, value: name not in {names} and write(self, name, value)
"""


@pytest.mark.parametrize("lacking", LACKING)
@pytest.mark.parametrize(
    ("command", "how"),
    [
        ("fork-bomb", "kill"),
        ("unmarked-chain", "stop"),
        ("ignore-signals", "kill"),
        ("stopped-children", "stop"),
    ],
)
def test_kernels_that_can_not_kill_or_freeze(ground: Ground, lacking: str, command: str, how: str) -> None:
    if IS_UML and command == "fork-bomb":
        pytest.skip("300 processes take long here")
    patch = WITHOUT.format(names=LACKING[lacking])
    line = COMMANDS[command](ground)[0]
    started = ground.host(
        host, line=line, patch=patch, how=how, options={"cgroup": True, "cgroup_base": ground.base}
    )
    answer = started.hear()
    assert answer["containment"][0].startswith("cgroup")
    ground.wait_ready(bound=BOUND)
    started.order("end")
    started.hear(BOUND)
    ground.assert_clean()


@pytest.mark.parametrize("how", ["kill", "wait"])
@pytest.mark.parametrize("lacking", ["nothing", *LACKING])
def test_what_was_put_into_the_group_ends_with_it(ground: Ground, lacking: str, how: str) -> None:
    """By somebody else: neither a descendant of the command, nor tagged, nor started after it."""
    patch = WITHOUT.format(names=LACKING.get(lacking, ()))
    options = {"cgroup": True, "cgroup_base": ground.base}
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            started = ground.host(host, line=["sleep", "1000"], patch=patch, how=how, options=options)
            main = started.hear(BOUND)["pid"]
            for group in ground.groups():
                Path(group, "cgroup.procs").write_text(str(other.pid), "ascii")
            started.order("end")
            if how == "wait":
                os.kill(main, signal.SIGKILL)
            started.hear(BOUND)
            assert other.wait(BOUND) == -9
            assert not ground.groups()
        finally:
            other.kill()


def test_groups_below_groups_are_removed_however_deep(ground: Ground) -> None:
    with (
        ground.launch("sleep", "1000") as other,
        ground.launch("sleep", "1000", cgroup=True) as process,
    ):
        assert process.cgroup
        for group in process.cgroup.paths.values():
            folder = os.open(group, os.O_PATH)
            for _ in range(1100):  # more than Python may have calls within calls
                os.mkdir("a", dir_fd=folder)
                above, folder = folder, os.open("a", os.O_PATH, dir_fd=folder)
                os.close(above)
            os.close(folder)
        process.kill()
        process.wait(2 * BOUND)
        assert not any(map(os.path.exists, process.cgroup.paths.values()))
        assert other.poll() is None


@pytest.mark.parametrize("how", ["wait", "kill", "stop"])
def test_a_zombie_whose_threads_live(ground: Ground, how: str) -> None:
    """`cgroup.kill` leaves it out."""
    table = LEAVERS if how == "wait" else COMMANDS
    with ground.launch(*table["main-thread-ends"](ground)[0], cgroup=True) as process:
        ground.wait_ready()
        if how != "wait":
            getattr(process, how)()
        process.wait(BOUND)
        ground.assert_clean()


@pytest.mark.parametrize("command", ["fork-bomb", "chain", "daemonize-on-term", "tree-of-sessions"])
def test_what_runs_away_is_caught(ground: Ground, command: str) -> None:
    with ground.launch(*COMMANDS[command](ground)[0], cgroup=True) as process:
        ground.wait_ready(bound=BOUND)
        process.kill()
        process.wait(BOUND)
        ground.assert_clean()


# --- What is to be left alone


@pytest.mark.parametrize("kind", ["exit", "stop"])
def test_kill_mode_process_leaves_processes_and_their_group(ground: Ground, kind: str) -> None:
    """With the groups in it that a daemon has made for itself, though there is nothing in them yet."""
    name = V2 if V2 in OURS else next(name for name in ("freezer", "pids") if name in OURS)
    script = "setsid sleep 1000 & echo $!; read line"
    options = {"stdin": muontrap.PIPE, "stdout": muontrap.PIPE, "kill_mode": "process", "cgroup": True}
    with ground.launch("sh", "-c", script, **options) as process:
        assert process.stdout
        left = int(process.stdout.readline())
        group = group_of(process.pid, name)
        (group / "own").mkdir()
        assert process.stdin
        if kind == "exit":
            process.stdin.write("end\n")
            process.stdin.flush()
        else:
            process.stop()
        process.wait(BOUND)
    assert ground.left() - ground.of_muontrap() == {left}
    assert group_of(left, name) == group
    assert (group / "own").is_dir()
    # Nor does the next guard take them, nor what a guard does for the command after that.
    started = ground.host(host, line=["true"], patch="", how="wait", options={"cgroup_base": ground.base})
    started.hear()
    started.order("end")
    started.hear()
    assert ground.left() - ground.of_muontrap() - {started.pid} == {left}
    assert group_of(left, name) == group
    assert (group / "own").is_dir()


def test_an_empty_group_of_kill_mode_process_is_removed(ground: Ground) -> None:
    assert ground.run("true", cgroup=True, kill_mode="process").returncode == 0
    assert ground.run("true", cgroup=True).returncode == 0  # the guard does one thing after the other
    ground.assert_clean()
