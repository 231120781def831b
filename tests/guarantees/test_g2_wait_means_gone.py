"""G2: when `wait()` or `run()` returns, no process of the command is left, and all its output is there."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from arena import BOUND, Arena, Host, is_alive, status_of
from commands import COMMANDS, LEAVERS, argv, need_root
from hostlib import GRACE, Any, hear, muontrap, say

pytestmark = pytest.mark.slow

WITHOUT_TERM = {"ignore-signals", "stopped", "pid-namespace"}  # a single SIGTERM does not end these


def own(arena: Arena, started: Host) -> set[int]:
    """The processes that are no command's."""
    return {started.pid, *arena.named("muontrap-guard"), *arena.named("muontrap-watch")}


# --- The main process ends by itself


def run_host(*, line: list[str], options: dict[str, Any]) -> None:
    begin = time.monotonic()
    result = muontrap.run(line, delay_to_sigkill=GRACE, **options)
    say(
        seconds=time.monotonic() - begin,
        returncode=result.returncode,
        stdout=(result.stdout or b"").decode(),
        reason=result.reason,
    )
    hear()


@pytest.mark.parametrize("leaver", LEAVERS)
def test_run_returns_with_all_output_and_nothing_left(arena: Arena, leaver: str) -> None:
    line = ["/bin/sh", "-c", 'echo before; "$@"; echo after $?; exit 9', "sh", *LEAVERS[leaver](arena)[0]]
    started = arena.host(run_host, line=line, options={"capture_output": True})
    answer = started.hear()
    arena.assert_left(own(arena, started))
    arena.wait_ready()
    assert answer["returncode"] == 9
    assert answer["reason"] == "exited"
    lines = answer["stdout"].splitlines()
    assert lines[0] == "before"
    assert lines[-1] == ("after 7" if leaver.startswith("daemon") else "after 0")
    assert answer["seconds"] < BOUND


UNMARKED = """
import os, resource, sys, time
if not os.fork():
    hard = resource.getrlimit(10)[1]
    resource.setrlimit(10, (hard, hard))
    if os.fork():
        os._exit(0)
    with open(sys.argv[1] + ".new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    time.sleep(1000)
os.wait()
time.sleep(1000)
"""


def last_claimant_host(*, line: list[str], count: int) -> None:
    """One command leaves a daemon without a mark; the other starts at once, in the same clock tick."""
    from arena import is_alive

    left = 0
    for number in range(count):
        path = f"{line[-1]}{number}"
        with muontrap.Launcher([*line[:-1], path], delay_to_sigkill=0).launch() as leaver:
            while not os.path.exists(path):
                pass
            with muontrap.Launcher(["cat"], stdin=muontrap.PIPE).launch() as other:
                with open(path) as file:
                    pid = int(file.read())
                leaver.stop()
                assert other.stdin
                other.stdin.close()
                other.wait()
                left += is_alive(pid)
    say(left=left)
    hear()


def test_the_last_that_a_daemon_without_a_mark_may_be_of_ends_with_it(arena: Arena) -> None:
    line = [sys.executable, "-I", "-S", "-c", UNMARKED, str(arena.folder / "pid")]
    assert arena.host(last_claimant_host, line=line, count=8).hear() == {"left": 0}


def hidden_host(*, line: list[str], count: int) -> None:
    from arena import is_alive

    # At once: a moment later the guard has killed it, as an orphan that is nobody's.
    say(left=sum(is_alive(int(muontrap.run(line, capture_output=True).stdout)) for _ in range(count)))
    hear()


def test_the_order_of_pids_alone_is_no_proof(arena: Arena) -> None:
    """In a pid namespace of its own: what is done to its order would give others' numbers away again."""
    need_root()
    alone = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    line = argv(arena, "hidden_pid.py")
    assert arena.host(hidden_host, line=line, count=8, before=alone).hear() == {"left": 0}


@pytest.mark.parametrize("leaver", LEAVERS)
def test_run_returns_when_main_itself_leaves_daemons(arena: Arena, leaver: str) -> None:
    started = arena.host(run_host, line=LEAVERS[leaver](arena)[0], options={"capture_output": True})
    answer = started.hear()
    arena.assert_left(own(arena, started))
    arena.wait_ready()
    expected = (7, "left a daemon\n") if leaver.startswith("daemon") else (0, "")
    assert (answer["returncode"], answer["stdout"]) == expected


@pytest.mark.parametrize("kill_mode", ["mixed", "control-group"])
def test_a_megabyte_of_output_before_a_daemon_holds_the_pipe(arena: Arena, kill_mode: str) -> None:
    script = 'head -c 1000000 /dev/zero | tr "\\0" x; setsid sleep 1000 & exit 3'
    options = {"capture_output": True, "kill_mode": kill_mode}
    answer = arena.host(run_host, line=["/bin/sh", "-c", script], options=options).hear()
    assert answer["returncode"] == 3
    assert answer["stdout"] == "x" * 1_000_000
    arena.assert_left(own(arena, arena.hosts[0]))


def popen_host(*, lines: list[list[str]], how: str, options: dict[str, Any]) -> None:
    """Launch, and end the commands in one of the ways there are, last launched first."""
    options = {"delay_to_sigkill": GRACE, **options}
    processes = [muontrap.Launcher(line, **options).launch() for line in lines]
    say(pids=[process.pid for process in processes])
    hear()
    begin = time.monotonic()
    for process in reversed(processes):
        if how == "stop":
            process.stop()
        elif how == "kill":
            process.kill()
            process.wait()
        elif how == "terminate":
            process.terminate()
            process.wait()
        elif how == "leave":
            with process:
                pass
        elif how == "communicate":
            process.communicate()
        elif how == "wait":
            process.wait()
    results = [process.result for process in processes]
    say(
        seconds=time.monotonic() - begin,
        returncodes=[process.returncode for process in processes],
        reasons=[result.reason for result in results],
        sent=[
            [list(map(float, (s.signal, s.when, s.count))) for s in result.signals_sent] for result in results
        ],
        stdout=[(result.stdout or b"").decode() for result in results],
    )
    hear()


@pytest.mark.parametrize("how", ["wait", "communicate", "stop", "kill"])
@pytest.mark.parametrize("leaver", LEAVERS)
def test_process_handle_of_a_leaver(arena: Arena, leaver: str, how: str) -> None:
    """Whatever is called, before or after the main process has ended by itself: nothing is left
    when it returns.
    """
    started = arena.host(popen_host, lines=LEAVERS[leaver](arena), how=how, options={})
    started.hear()
    started.order("go")
    started.hear()
    arena.assert_left(own(arena, started))


# --- The command is ended


@pytest.mark.parametrize("how", ["stop", "kill", "terminate", "leave"])
@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_left_of_a_stopped_command(arena: Arena, command: str, how: str) -> None:
    if how == "terminate" and command in WITHOUT_TERM:
        pytest.skip("SIGTERM alone does not end it")
    lines = COMMANDS[command](arena)
    started = arena.host(popen_host, lines=lines, how=how, options={})
    started.hear()
    arena.wait_ready(len(lines))
    started.order("go")
    answer = started.hear()
    arena.assert_left(own(arena, started))
    assert answer["seconds"] < BOUND
    if how != "terminate" and "left" not in command:
        assert set(answer["reasons"]) == {"stopped"}


def timeout_host(*, lines: list[list[str]], options: dict[str, Any]) -> None:
    *others, line = lines
    beside = [muontrap.Launcher(other, delay_to_sigkill=GRACE).launch() for other in others]
    begin = time.monotonic()
    try:
        muontrap.run(line, timeout=0.3, delay_to_sigkill=GRACE, **options)
    except muontrap.TimeoutExpired as error:
        say(
            seconds=time.monotonic() - begin,
            output=(error.output or b"").decode(),
            reason=error.result.reason,
        )
    else:
        say(seconds=0)
    for process in beside:
        process.stop()
    say(stopped=True)
    hear()


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_is_left_after_a_timeout(arena: Arena, command: str) -> None:
    started = arena.host(timeout_host, lines=COMMANDS[command](arena), options={"capture_output": True})
    answer = started.hear()
    started.hear()
    arena.assert_left(own(arena, started))
    if "left" not in command:
        assert answer["reason"] == "timeout"
        assert answer["seconds"] >= 0.3


def early_timeout_host(*, line: list[str], timeout: float, options: dict[str, Any]) -> None:
    """Time out while the command is being launched, or just after."""
    muontrap.start_guard()
    say(stands=True)
    for _ in range(20):
        begin = time.monotonic()
        try:
            muontrap.run(line, timeout=timeout, **options)
        except muontrap.TimeoutExpired as error:
            reason = error.result.reason if error.result else "no result"
            say(seconds=time.monotonic() - begin, reason=reason)
        else:
            say(reason="returned")
        hear()
    hear()


@pytest.mark.parametrize("way", [{}, {"no_new_privs": True}], ids=["spawn", "fork"])
@pytest.mark.parametrize("timeout", [0, 0.0003, 0.001, 0.003])
def test_nothing_is_left_after_a_timeout_during_the_launch(
    arena: Arena, timeout: float, way: dict[str, Any]
) -> None:
    line = ["/bin/sh", "-c", "trap '' TERM; setsid sleep 1000 & while :; do sleep 1000; done"]
    options = {"capture_output": True, "delay_to_sigkill": 0.05, **way}
    started = arena.host(early_timeout_host, line=line, timeout=timeout, options=options)
    started.hear()
    for _ in range(20):
        answer = started.hear()
        arena.assert_left(own(arena, started))
        assert answer["reason"] in {"timeout", "no result"}  # there is none if it was never executed
        assert answer["seconds"] < 0.05 + 0.5 + BOUND
        started.order("next")


def test_timeout_carries_the_output_so_far(arena: Arena) -> None:
    line = ["/bin/sh", "-c", "echo so far; setsid sleep 1000 & exec sleep 1000"]
    answer = arena.host(timeout_host, lines=[line], options={"capture_output": True}).hear()
    assert answer["output"] == "so far\n"


# --- Kill modes


def told(arena: Arena) -> set[str]:
    arena.read_words()
    return {word for word in arena.words.split() if word.startswith("SIG")}


def stop_teller(
    arena: Arena, *arguments: str, how: str = "stop", **options: Any
) -> tuple[Host, dict[str, Any], int]:
    line = argv(arena, "tell_signals.py", *arguments)
    started = arena.host(popen_host, lines=[line], how=how, options={"delay_to_sigkill": 2.0, **options})
    pid = started.hear()["pids"][0]
    arena.wait_ready()
    started.order("go")
    return started, started.hear(), pid


def test_mixed_tells_the_main_process_alone(arena: Arena) -> None:
    started, answer, _pid = stop_teller(arena)
    assert told(arena) == {"SIGTERM-main"}
    assert answer["returncodes"] == [0]
    assert answer["seconds"] < 1.5
    arena.assert_left(own(arena, started))


def test_control_group_tells_all(arena: Arena) -> None:
    started, answer, _pid = stop_teller(arena, kill_mode="control-group")
    assert told(arena) == {"SIGTERM-main", "SIGTERM-child", "SIGTERM-grandchild"}
    assert answer["seconds"] < 1.5
    arena.assert_left(own(arena, started))


def test_process_leaves_the_rest_alone(arena: Arena) -> None:
    started, answer, pid = stop_teller(arena, kill_mode="process")
    assert told(arena) == {"SIGTERM-main"}
    assert answer["seconds"] < 1.5
    assert not is_alive(pid)
    assert len(arena.left(own(arena, started))) == 2


def test_stop_signal_is_the_callers_choice(arena: Arena) -> None:
    _started, answer, _pid = stop_teller(arena, stop_signal=int(signal.SIGINT))
    assert told(arena) == {"SIGINT-main"}
    assert [int(number) for number, _when, _count in answer["sent"][0]][:1] == [signal.SIGINT]


def test_no_delay_means_sigkill_at_once(arena: Arena) -> None:
    _started, answer, _pid = stop_teller(arena, delay_to_sigkill=0)
    assert told(arena) == set()
    assert answer["returncodes"] == [-signal.SIGKILL]


def test_kill_does_not_wait_for_the_grace(arena: Arena) -> None:
    _started, answer, _pid = stop_teller(arena, how="kill", delay_to_sigkill=100.0)
    assert told(arena) == set()
    assert answer["seconds"] < BOUND


def test_the_grace_is_given(arena: Arena) -> None:
    """Who ends within the grace is not killed; who does not is killed when it is over, and not before."""
    _started, answer, _pid = stop_teller(arena, "slow")
    assert answer["returncodes"] == [6]
    assert 0.2 <= answer["seconds"] < 1.5


@pytest.mark.parametrize("kill_mode", ["mixed", "control-group", "process"])
def test_sigkill_comes_after_the_grace_and_not_before(arena: Arena, kill_mode: str) -> None:
    options = {"delay_to_sigkill": 0.4, "kill_mode": kill_mode}
    started = arena.host(popen_host, lines=[argv(arena, "ignore_signals.py")], how="stop", options=options)
    started.hear()
    arena.wait_ready()
    started.order("go")
    answer = started.hear()
    assert 0.4 <= answer["seconds"] < 0.4 + BOUND
    (term, term_when, _), (kill, kill_when, _) = answer["sent"][0]
    assert (term, kill) == (signal.SIGTERM, signal.SIGKILL)
    assert kill_when - term_when >= 0.399
    assert answer["returncodes"] == [-signal.SIGKILL]


def test_a_stopped_command_handles_the_stop_signal(arena: Arena) -> None:
    options = {"delay_to_sigkill": 2.0, "stdout": -1}
    started = arena.host(popen_host, lines=[argv(arena, "stopped.py")], how="stop", options=options)
    pid = started.hear()["pids"][0]
    arena.wait_ready()
    deadline = time.monotonic() + BOUND
    while not status_of(pid)["State"].startswith("T"):
        assert time.monotonic() < deadline
    started.order("go")
    answer = started.hear()
    assert answer["returncodes"] == [5]
    assert answer["seconds"] < 1.5


def test_control_group_gives_what_a_leaver_left_its_grace(arena: Arena) -> None:
    """The main process ends by itself: in `control-group` mode the rest is asked before it is killed."""
    script = '"$@" & read -r line <"$0"; exit 4'
    done = arena.folder / "done"
    os.mkfifo(done)
    line = ["/bin/sh", "-c", script, str(done), *argv(arena, "tell_signals.py")]
    options = {"kill_mode": "control-group", "delay_to_sigkill": 2.0}
    started = arena.host(popen_host, lines=[line], how="wait", options=options)
    started.hear()
    arena.wait_ready()
    started.order("go")
    done.write_text("done\n", encoding="ascii")
    answer = started.hear()
    assert told(arena) == {"SIGTERM-main", "SIGTERM-child", "SIGTERM-grandchild"}
    assert answer["returncodes"] == [4]
    arena.assert_left(own(arena, started))
