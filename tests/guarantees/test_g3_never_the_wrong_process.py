"""G3: a signal reaches a process of the command, or nobody. A pid that was reused is never signalled."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from arena import Arena, read_stat
from commands import argv, need_program
from hostlib import GRACE, Any, contextlib, hear, muontrap, say, subprocess, sys

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


def after_end_host() -> None:
    """Every way to signal, after the end."""
    process = muontrap.Launcher(["/bin/sh", "-c", "exit 3"]).launch()
    status = process.wait()
    for number in (0, 1, 2, 9, 15, 19, 64):
        process.send_signal(number)
    process.terminate()
    process.kill()
    result = process.stop()
    say(
        statuses=[status, process.poll(), process.wait(), process.returncode, result.returncode],
        reason=result.reason,
    )
    hear()


def test_signals_after_the_end_are_silent(arena: Arena) -> None:
    answer = arena.host(after_end_host).hear()
    assert answer == {"statuses": 5 * [3], "reason": "exited"}


def reuse_host(*, tries: int) -> None:
    """Let another process get the pid of a command that has ended, then send signals through the
    old handle.
    """

    def with_pid(wanted: int) -> Any:
        with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
            file.write(str(wanted - 1))
        return subprocess.Popen(["/bin/sleep", "1000"])

    for _ in range(tries):
        process = muontrap.Launcher(["/bin/true"], delay_to_sigkill=GRACE).launch()
        process.wait()
        bystander = with_pid(process.pid)
        if bystander.pid == process.pid:
            process.send_signal(signal.SIGKILL)
            process.terminate()
            process.kill()
            process.stop()
            say(reused=True, bystander=bystander.poll())
            break
        bystander.kill()
        bystander.wait()
    else:
        say(reused=False)
    hear()


@pytest.mark.skipif(os.getuid() != 0 or not LAST_PID.exists(), reason=f"needs root, and {LAST_PID}")
def test_a_reused_pid_is_not_signalled(arena: Arena) -> None:
    answer = arena.host(reuse_host, tries=50).hear()
    if not answer["reused"]:
        pytest.skip("another process was faster 50 times")
    assert answer["bystander"] is None


def bystander_host(*, line: list[str], bystanders: list[list[str]]) -> None:
    """Other children of the host, and other commands of it, see nothing of the end of one command."""
    children = [subprocess.Popen(other) for other in bystanders]
    others = [muontrap.Launcher(other, delay_to_sigkill=GRACE).launch() for other in bystanders]
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
    say(children=[child.pid for child in children], others=[other.pid for other in others], pid=process.pid)
    hear()
    process.stop()
    say(children=[child.poll() for child in children], others=[other.poll() for other in others])
    hear()


@pytest.mark.slow
@pytest.mark.parametrize("program", ["tree_of_sessions.py", "daemon.py", "chain.py", "fork_bomb.py"])
def test_others_are_left_alone(arena: Arena, program: str) -> None:
    bystanders = [argv(arena, "daemon.py"), argv(arena, "tree_of_sessions.py")]
    started = arena.host(bystander_host, line=argv(arena, program), bystanders=bystanders)
    started.hear()
    arena.wait_ready(5)
    before = len(arena.left())
    assert started.ask("stop") == {"children": [None, None], "others": [None, None]}
    expected = 3 + 2 * (2 + 15)  # host, watch, guard; twice a daemon with its main process, and a tree
    assert len(arena.left()) == expected
    assert before > expected


def namespace_host(*, first: list[str], second: list[str]) -> None:
    """The second command moves a process into the PID namespace that the first one made."""
    other = muontrap.Launcher(first, delay_to_sigkill=GRACE).launch()
    say(pid=other.pid)
    inside = hear()
    process = muontrap.Launcher([*second, inside], delay_to_sigkill=GRACE).launch()
    say(pid=process.pid)
    say(returncode=process.wait(), other=other.poll())
    hear()


@pytest.mark.slow
def test_a_process_moved_below_another_commands_init_is_found_by_its_mark(arena: Arena) -> None:
    """Its parent has ended: its new parent is the other command's. Only the mark says whose it is."""
    need_program("nsenter")
    if subprocess.run([need_program("unshare"), "-Upf", "true"], check=False).returncode:
        pytest.skip("user namespaces are not allowed here")
    second = argv(arena, "move_into_namespace.sh", str(arena.folder / "moved"))
    started = arena.host(namespace_host, first=argv(arena, "enter_pid_namespace.sh"), second=second)
    unshare = started.hear()["pid"]
    arena.wait_ready()
    first = next(pid for pid in arena.left() if read_stat(f"/proc/{pid}/stat")[1] == unshare)
    started.order(str(first))
    started.hear()
    answer = started.hear()
    assert answer == {"returncode": 5, "other": None}
    own = {started.pid, arena.the("muontrap-guard"), arena.the("muontrap-watch")}
    assert arena.left(own) == {unshare, first}


def sibling_hosts_host() -> None:
    processes = [muontrap.Launcher([sys.executable, "-S", "-c", "import signal; signal.pause()"]).launch()]
    say(pid=processes[0].pid)
    with contextlib.suppress(muontrap.GuardDied):
        say(returncode=processes[0].wait())


@pytest.mark.slow
def test_two_hosts_do_not_see_each_other(arena: Arena) -> None:
    """Each has a guard of its own; the end of one is nothing to the other."""
    first, second = arena.host(sibling_hosts_host), arena.host(sibling_hosts_host)
    pids = [first.hear()["pid"], second.hear()["pid"]]
    guards = arena.named("muontrap-guard")
    assert len(guards) == 2
    first.signal(signal.SIGKILL)
    arena.wait_dead(pids[0])
    arena.wait_one_dead(guards)
    assert {second.pid, pids[1]} <= arena.left()
    os.kill(pids[1], signal.SIGTERM)
    assert second.hear() == {"returncode": -signal.SIGTERM}
