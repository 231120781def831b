"""G1: however the host program ends, every process that its commands started is dead soon after.

Deaths x commands. The verdict is the kernel's: the list of processes in the arena. Only those that
are no part of the commands may be on it (the program that the host became, a sibling it had
forked). Times: MUONTRAP_MEASURE=1.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence

import pytest
from arena import BOUND, Arena, Host, is_alive
from commands import COMMANDS, argv, locks_limit, need_program, need_root
from hostlib import GRACE, Any, die, fork_behind_pythons_back, hear, kind, muontrap, say, threading

Measure = Callable[[float], None]

pytestmark = pytest.mark.slow

# Longer than "grace + 100 ms on an idle machine", which the bench measures: this machine is loaded.
WITHIN = GRACE + BOUND
HOSTS_OWN_DEATHS = ("return", "exception", "sys-exit", "os-exit", "segv", "execv")
DEATHS_BY_SIGNAL = {"sigterm": signal.SIGTERM, "sigkill": signal.SIGKILL}


def host(*, argvs: list[list[str]], options: dict[str, Any], without: list[str] | None = None) -> None:
    if without:
        from layers import switch_off

        switch_off(*without)
    processes = [muontrap.Launcher(line, delay_to_sigkill=GRACE, **options).launch() for line in argvs]
    groups = [list(process.cgroup.paths.values()) if process.cgroup else [] for process in processes]
    say(pids=[process.pid for process in processes], groups=groups)
    while order := hear():
        if order == "fork":
            say(sibling=fork_behind_pythons_back())
        elif order == "os-fork":
            if not (sibling := os.fork()):
                signal.pause()
            say(sibling=sibling)
        elif order == "launch":
            try:
                processes.append(muontrap.Launcher(argvs[0], delay_to_sigkill=GRACE, **options).launch())
            except muontrap.GuardDied:
                say(refused="GuardDied")
            else:
                say(pid=processes[-1].pid)
        elif order == "wait":
            say(kinds=[kind(process.wait)[0] for process in processes])
        elif order in ("return", "exception", "sys-exit", "os-exit", "segv", "execv"):
            break
    die(order)


def start_without(
    arena: Arena, command: str, without: Sequence[str], **options: Any
) -> tuple[Host, list[int], list[list[str]]]:
    """A host whose commands all stand as their programs want to, without some layers of containment
    (layers.py); also the cgroups of each command.
    """
    argvs = COMMANDS[command](arena)
    started = arena.host(host, argvs=argvs, options=options, without=list(without))
    answer = started.hear()
    arena.wait_ready(len(argvs))
    return started, answer["pids"], answer["groups"]


def start(arena: Arena, command: str, **options: Any) -> tuple[Host, list[int]]:
    """A host whose commands all stand as their programs want to."""
    started, pids, _groups = start_without(arena, command, (), **options)
    return started, pids


def kill_at_once(*pids: int) -> float:
    """SIGKILL several processes, as nearly in one instant as there is."""
    moment = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    return moment


# --- The death of the host, and its accomplices: each returns the moment, and who may live on


def death_of_its_own(how: str) -> Callable[[Arena, Host], tuple[float, set[int]]]:
    def happen(_arena: Arena, started: Host) -> tuple[float, set[int]]:
        moment = started.order(how)
        if how == "execv":
            return moment, {started.pid}
        return started.wait_end(), set()

    return happen


def death_by_signal(number: int) -> Callable[[Arena, Host], tuple[float, set[int]]]:
    return lambda _arena, started: (started.signal(number), set())


def death_with_sibling(_arena: Arena, started: Host) -> tuple[float, set[int]]:
    sibling = started.ask("fork")["sibling"]
    return started.signal(signal.SIGKILL), {sibling}


def execv_with_forked_child(_arena: Arena, started: Host) -> tuple[float, set[int]]:
    sibling = started.ask("os-fork")["sibling"]
    return started.order("execv"), {sibling, started.pid}


def guard_and_host(arena: Arena, started: Host) -> tuple[float, set[int]]:
    return kill_at_once(arena.the("muontrap-guard"), started.pid), set()


def watch_and_host(arena: Arena, started: Host) -> tuple[float, set[int]]:
    return kill_at_once(arena.the("muontrap-watch"), started.pid), set()


def stopped_guard_then_host(arena: Arena, started: Host) -> tuple[float, set[int]]:
    os.kill(arena.the("muontrap-guard"), signal.SIGSTOP)
    return started.signal(signal.SIGKILL), set()


def stopped_watch_then_host(arena: Arena, started: Host) -> tuple[float, set[int]]:
    os.kill(arena.the("muontrap-watch"), signal.SIGSTOP)
    return started.signal(signal.SIGKILL), set()


def guard_alone(arena: Arena, started: Host) -> tuple[float, set[int]]:
    return kill_at_once(arena.the("muontrap-guard")), {started.pid}


def watch_then_host(arena: Arena, started: Host) -> tuple[float, set[int]]:
    os.kill(arena.the("muontrap-watch"), signal.SIGKILL)
    return started.signal(signal.SIGKILL), set()


def host_then_guard(arena: Arena, started: Host) -> tuple[float, set[int]]:
    """The guard dies while it stops the commands of a dead host."""
    guard = arena.the("muontrap-guard")
    moment = started.signal(signal.SIGKILL)
    started.wait_end()
    with contextlib.suppress(ProcessLookupError):
        os.kill(guard, signal.SIGKILL)
    return moment, set()


DEATHS: dict[str, Callable[[Arena, Host], tuple[float, set[int]]]] = {
    **{how: death_of_its_own(how) for how in HOSTS_OWN_DEATHS},
    **{name: death_by_signal(number) for name, number in DEATHS_BY_SIGNAL.items()},
    "sigkill-with-sibling": death_with_sibling,
    "execv-with-forked-child": execv_with_forked_child,
    "guard": guard_alone,
    "guard-and-host": guard_and_host,
    "watch-and-host": watch_and_host,
    "watch-then-host": watch_then_host,
    "host-then-guard": host_then_guard,
    "guard-stopped-then-host": stopped_guard_then_host,
    "watch-stopped-then-host": stopped_watch_then_host,
}


PAIRS = [(death, command) for death in DEATHS for command in COMMANDS]


@pytest.mark.parametrize(("death", "command"), PAIRS)
def test_nothing_is_left(arena: Arena, measure: Measure, death: str, command: str) -> None:
    started, _pids = start(arena, command)
    moment, spared = DEATHS[death](arena, started)
    measure(arena.wait_left(spared, bound=WITHIN) - moment)
    assert all(is_alive(pid) for pid in spared)


def running_host(*, line: list[str], options: dict[str, Any]) -> None:
    muontrap.run(line, delay_to_sigkill=GRACE, **options)


@pytest.mark.parametrize("number", DEATHS_BY_SIGNAL.values(), ids=DEATHS_BY_SIGNAL)
@pytest.mark.parametrize(
    "options", [{}, {"capture_output": True, "timeout": 1000}], ids=["plain", "captured"]
)
@pytest.mark.parametrize("command", ["sleeper", "ignore-signals", "daemon", "fork-bomb"])
def test_nothing_is_left_of_a_host_that_dies_in_run(
    arena: Arena, measure: Measure, command: str, options: dict[str, Any], number: int
) -> None:
    (line,) = COMMANDS[command](arena)
    started = arena.host(running_host, line=line, options=options)
    arena.wait_ready()
    moment = started.signal(number)
    measure(arena.wait_left(bound=WITHIN) - moment)


@pytest.mark.parametrize("kill_mode", ["control-group", "mixed"])
@pytest.mark.parametrize(
    "command", ["sleeper", "ignore-signals", "tree-of-sessions", "chain", "daemonize-on-term"]
)
def test_nothing_is_left_in_either_kill_mode(
    arena: Arena, measure: Measure, kill_mode: str, command: str
) -> None:
    started, _pids = start(arena, command, kill_mode=kill_mode)
    moment = started.signal(signal.SIGKILL)
    measure(arena.wait_left(bound=WITHIN) - moment)


@pytest.mark.parametrize(
    "option", [{"no_new_privs": True}, {"extra_groups": []}], ids=["fork", "credentials"]
)
@pytest.mark.parametrize("command", ["sleeper", "daemon", "tree-of-sessions"])
def test_nothing_is_left_on_the_other_ways(
    arena: Arena, measure: Measure, command: str, option: dict[str, Any]
) -> None:
    if "extra_groups" in option:
        need_root()
    started, _pids = start(arena, command, **option)
    moment = started.signal(signal.SIGKILL)
    measure(arena.wait_left(bound=WITHIN) - moment)


def test_limits_were_really_shed(arena: Arena) -> None:
    """What the su commands are here for: one process of theirs does not carry the command's mark."""
    started, pids = start(arena, "su-daemon")
    mark = locks_limit(pids[0])
    assert mark != "unlimited"
    guards = {arena.the("muontrap-guard"), arena.the("muontrap-watch"), started.pid}
    limits = [locks_limit(pid) for pid in arena.left(guards)]
    if set(limits) == {mark}:
        pytest.skip("this machine's PAM leaves limits as they are")
    assert mark in limits


# --- Guard and watch


def test_guard_killed_tells_the_host_within_a_second(arena: Arena, measure: Measure) -> None:
    started, _pids = start(arena, "su-daemon-beside")
    started.order("wait")
    moment = kill_at_once(arena.the("muontrap-guard"))
    assert set(started.hear(bound=1 + GRACE)["kinds"]) == {"GuardDied"}
    measure(time.monotonic() - moment)
    arena.assert_left({started.pid})


def test_guard_killed_while_nobody_waits_tells_it_later(arena: Arena) -> None:
    started, _pids = start(arena, "sleeper")
    kill_at_once(arena.the("muontrap-guard"))
    arena.wait_left({started.pid})
    assert started.ask("wait") == {"kinds": ["GuardDied"]}


def test_next_launch_after_the_guards_death_has_a_new_guard(arena: Arena) -> None:
    started, _pids = start(arena, "sleeper")
    kill_at_once(arena.the("muontrap-guard"))
    arena.wait_left({started.pid})
    pid = started.ask("launch")["pid"]
    arena.wait_ready(2)
    assert is_alive(pid)
    started.signal(signal.SIGKILL)
    arena.wait_left(bound=WITHIN)


def test_a_launch_may_race_with_the_guards_death(arena: Arena) -> None:
    """It works, or it raises GuardDied and nothing of it is left; the next one works."""
    started, _pids = start(arena, "sleeper")
    kill_at_once(arena.the("muontrap-guard"))
    while (answer := started.ask("launch")).get("refused") == "GuardDied":
        arena.assert_left({started.pid})
    pid = answer["pid"]
    arena.wait_ready(2)
    assert is_alive(pid)
    started.signal(signal.SIGKILL)
    arena.wait_left(bound=WITHIN)


@pytest.mark.parametrize("command", ["sleeper", "daemon", "su-daemon", "chain"])
def test_watch_killed_commands_go_on_and_the_next_launch_has_a_new_pair(arena: Arena, command: str) -> None:
    started, pids = start(arena, command)
    guard, watch = arena.the("muontrap-guard"), arena.the("muontrap-watch")
    kill_at_once(watch)
    arena.wait_dead(watch)
    pids.append(started.ask("launch")["pid"])
    arena.wait_ready(2)
    assert all(is_alive(pid) for pid in pids)
    assert guard in arena.named("muontrap-guard")
    arena.the("muontrap-watch")
    assert len(arena.named("muontrap-guard")) == 2
    moment = started.signal(signal.SIGKILL)
    assert arena.wait_left(bound=WITHIN) - moment < WITHIN


def test_stopped_guard_goes_on(arena: Arena) -> None:
    """Somebody stops the guard once: it is continued, and the commands do not notice."""
    started, pids = start(arena, "sleeper")
    os.kill(arena.the("muontrap-guard"), signal.SIGSTOP)
    pids.append(started.ask("launch")["pid"])
    arena.wait_ready(2)
    assert all(is_alive(pid) for pid in pids)


def test_stopped_watch_goes_on_or_is_replaced(arena: Arena) -> None:
    started, pids = start(arena, "sleeper")
    os.kill(arena.the("muontrap-watch"), signal.SIGSTOP)
    pids.append(started.ask("launch")["pid"])
    arena.wait_ready(2)
    assert all(is_alive(pid) for pid in pids)
    started.signal(signal.SIGKILL)
    arena.wait_left(bound=WITHIN)


@pytest.mark.parametrize("command", ["sleeper", "ignore-signals", "stopped", "main-thread-ends"])
def test_guard_watch_and_host_killed_at_once_pdeathsig_holds(
    arena: Arena, measure: Measure, command: str
) -> None:
    started, _pids = start(arena, command, pdeathsig=int(signal.SIGKILL))
    moment = kill_at_once(arena.the("muontrap-watch"), arena.the("muontrap-guard"), started.pid)
    measure(arena.wait_left(bound=WITHIN) - moment)


@pytest.mark.parametrize("command", ["daemon", "tree-of-sessions", "chain", "fork-bomb"])
def test_guard_and_watch_killed_at_once_the_host_sweeps(arena: Arena, measure: Measure, command: str) -> None:
    """The guarantee asks for one of guard and watch; with the host alive, it sweeps by itself."""
    started, _pids = start(arena, command)
    started.order("wait")
    moment = kill_at_once(arena.the("muontrap-watch"), arena.the("muontrap-guard"))
    assert started.hear(bound=WITHIN) == {"kinds": ["GuardDied"]}
    dying = {*arena.named("muontrap-guard"), *arena.named("muontrap-watch")}
    arena.assert_left({started.pid} | dying)  # of the command
    measure(arena.wait_left({started.pid}) - moment)


def test_guard_killed_under_a_stopped_watch_the_host_wakes_it(arena: Arena) -> None:
    started, _pids = start(arena, "su-daemon" if os.getuid() == 0 else "unmarked-daemon")
    started.order("wait")
    os.kill(arena.the("muontrap-watch"), signal.SIGSTOP)
    kill_at_once(arena.the("muontrap-guard"))
    assert started.hear(bound=WITHIN) == {"kinds": ["GuardDied"]}
    arena.assert_left({started.pid})


@pytest.mark.parametrize("command", ["sleeper", "daemon", "tree-of-sessions", "chain", "fork-bomb"])
def test_nothing_is_left_where_no_mark_fits(arena: Arena, command: str) -> None:
    """The hard limit of RLIMIT_LOCKS is too low for a mark: descent and time must do."""
    prlimit = need_program("prlimit")
    argvs = COMMANDS[command](arena)
    started = arena.host(host, argvs=argvs, options={}, before=[prlimit, "--locks=1000:1000"])
    pid = started.hear()["pids"][0]
    arena.wait_ready()
    assert locks_limit(pid) == "1000"
    started.signal(signal.SIGKILL)
    arena.wait_left(bound=WITHIN)


def execv_itself_host(*, line: list[str]) -> None:
    """Become another program that uses muontrap too, in the same process."""
    import sys

    if "SECOND" not in os.environ:
        process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
        say(pid=process.pid)
        hear()
        os.environ["SECOND"] = "1"
        for fd in map(int, sys.argv[-2:]):
            os.set_inheritable(fd, True)
        os.execv(sys.executable, sys.orig_argv)
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
    say(pid=process.pid)
    hear()


def test_execv_of_a_program_that_is_a_host_too(arena: Arena) -> None:
    started = arena.host(execv_itself_host, line=argv(arena, "daemon.py"))
    first = started.hear()["pid"]
    arena.wait_ready()
    guard = arena.the("muontrap-guard")
    second = started.ask("execv")["pid"]
    arena.wait_ready(2)
    arena.wait_dead(first)
    arena.wait_dead(guard)
    assert is_alive(second)
    arena.wait_count({"sleep": 1, "muontrap-guard": 1, "muontrap-watch": 1})
    started.signal(signal.SIGKILL)
    arena.wait_left(bound=WITHIN)


@pytest.mark.parametrize("then", ["sigkill", "wait"])
@pytest.mark.parametrize("again", [[], ["again"]], ids=["once", "again"])
@pytest.mark.parametrize("number", ["SIGSTOP", "SIGKILL", "SIGTERM", "SIGTSTP", "SIGSEGV"])
def test_command_attacks_its_guard(
    arena: Arena, measure: Measure, number: str, again: list[str], then: str
) -> None:
    """A command with the host's uid can end the guard. It gains nothing: it dies, and the host is
    told in a second.
    """
    go = arena.folder / "go"
    os.mkfifo(go)
    line = argv(arena, "signal_guard.py", number, str(go), *again)
    started = arena.host(host, argvs=[argv(arena, "sleeper.py"), line], options={})
    started.hear()
    arena.wait_ready(2)
    if then == "wait":
        started.order("wait")
    moment = time.monotonic()
    go.write_bytes(b".")
    guard_ends = number == "SIGKILL" or (number == "SIGSTOP" and bool(again))
    if then == "wait" and guard_ends:
        assert set(started.hear(bound=1.5)["kinds"]) == {"GuardDied"}
        arena.assert_left({started.pid})
    else:
        if not guard_ends:
            arena.wait_ready(1, "sent")
        moment = started.signal(signal.SIGKILL)
        arena.wait_left(bound=WITHIN)
    measure(time.monotonic() - moment)


# --- The first milliseconds


def early_host(
    *, line: list[str], warm: bool, delay: float | None, options: dict[str, Any], without: list[str]
) -> None:
    if without:
        from layers import switch_off

        switch_off(*without)
    if warm:
        muontrap.start_guard()
    say(stands=True)
    hear()
    if delay is not None:

        def exec_soon() -> None:
            end = time.monotonic() + delay
            while time.monotonic() < end:
                time.sleep(0)
            die("execv")

        threading.Thread(target=exec_soon).start()
    for _ in range(3):
        muontrap.Launcher(line, delay_to_sigkill=GRACE, **options).launch()
    hear()


def die_early(
    arena: Arena,
    death: str,
    milliseconds: float,
    program: str,
    *,
    warm: bool = True,
    without: Sequence[str] = (),
    **options: Any,
) -> float:
    """Start a host that launches, let it die that soon; the seconds until nothing is left."""
    delay = milliseconds / 1000 if death == "execv" else None
    line = argv(arena, program)
    started = arena.host(
        early_host, line=line, warm=warm, delay=delay, options=options, without=list(without)
    )
    started.hear()
    moment = started.order("go")
    if death == "execv":
        arena.wait_ready(1, "became")
        return arena.wait_left({started.pid}, bound=WITHIN) - moment
    while time.monotonic() - moment < milliseconds / 1000:
        pass
    started.signal(signal.SIGKILL)
    return arena.wait_left(bound=WITHIN) - moment


@pytest.mark.parametrize("program", ["sleeper.py", "daemon.py"])
@pytest.mark.parametrize("milliseconds", [0, 0.3, 1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("death", ["sigkill", "execv"])
def test_death_in_the_first_milliseconds_of_a_launch(
    arena: Arena, measure: Measure, death: str, warm: bool, milliseconds: float, program: str
) -> None:
    measure(die_early(arena, death, milliseconds, program, warm=warm))
