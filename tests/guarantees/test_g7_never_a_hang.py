"""G7: every call returns within its bound, whatever a command does, and whatever thread or process asks."""

from __future__ import annotations

import os
import signal
import time

import pytest
from arena import BOUND, Arena, Host, is_alive, read_stat
from commands import COMMANDS, argv
from hostlib import (
    GRACE,
    Any,
    contextlib,
    fork_behind_pythons_back,
    gc,
    hear,
    kind,
    muontrap,
    open_fds,
    say,
    subprocess,
    threading,
)

pytestmark = pytest.mark.slow

HOSTILE = (
    "sleeper.py",
    "ignore_signals.py",
    "chain.py",
    "fork_bomb.py",
    "fork_bomb.py sessions",
    "chatter.py",
    "daemonize_on_term.py",
    "stopped.py",
    "main_thread_ends.py",
)
NOISE = 2.0  # seconds that a loaded machine may add to a bound


def own(arena: Arena, started: Host) -> set[int]:
    return {started.pid, *arena.named("muontrap-guard"), *arena.named("muontrap-watch")}


# --- Bounds


def bound_host(*, line: list[str], timeout: float, options: dict[str, Any]) -> None:
    muontrap.start_guard()
    begin = time.monotonic()
    try:
        muontrap.run(line, timeout=timeout, delay_to_sigkill=GRACE, **options)
    except muontrap.TimeoutExpired as error:
        say(seconds=time.monotonic() - begin, reason=error.result.reason)
    hear()


@pytest.mark.parametrize("captured", [True, False], ids=["captured", "plain"])
@pytest.mark.parametrize("program", HOSTILE)
def test_run_returns_within_timeout_and_grace_and_half_a_second(
    arena: Arena, program: str, captured: bool
) -> None:
    options = {"capture_output": True} if captured else {"stdout": subprocess.DEVNULL}
    started = arena.host(bound_host, line=argv(arena, *program.split()), timeout=0.5, options=options)
    answer = started.hear()
    arena.assert_left(own(arena, started))
    assert answer["reason"] == "timeout"
    assert 0.5 <= answer["seconds"] < 0.5 + GRACE + 0.5 + NOISE


def test_a_traced_zombie_does_not_hold_the_end_up(arena: Arena) -> None:
    """A debugger outside the command has seized its main process, and never waits for it: it is
    never reaped.
    """
    started = arena.host(traced_host, line=argv(arena, "sleeper.py"))
    pid = started.hear()["pid"]
    arena.wait_ready()
    tracer = arena.host(tracer_host, line=argv(arena, "trace_from_outside.py", str(pid)))
    arena.wait_ready(1, "traced", "refused")
    if "refused" in arena.words:
        pytest.skip("tracing is not allowed here")
    answer = started.ask("stop")
    assert answer["seconds"] < GRACE + 0.5 + NOISE
    assert not is_alive(pid)
    tracer.signal(signal.SIGKILL)


def traced_host(*, line: list[str]) -> None:
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
    say(pid=process.pid)
    hear()
    begin = time.monotonic()
    process.stop()
    say(seconds=time.monotonic() - begin)
    hear()


def tracer_host(*, line: list[str]) -> None:
    with subprocess.Popen(line):
        hear()


def flood_host(*, lines: list[list[str]]) -> None:
    """Commands that flood, fork and stop beside one that is to be quick."""
    beside = [muontrap.Launcher(line, stdout=-1, delay_to_sigkill=GRACE).launch() for line in lines]
    hear()
    begin = time.monotonic()
    for _ in range(5):
        muontrap.run(["/bin/echo", "quick"], capture_output=True, timeout=10)
    say(seconds=time.monotonic() - begin, beside=[process.poll() for process in beside])
    for process in beside:
        process.stop()
    say(stopped=True)
    hear()


def test_a_flood_blocks_nobody_else(arena: Arena) -> None:
    lines = [argv(arena, name) for name in ("chatter.py", "fork_bomb.py", "chain.py", "stopped.py")]
    started = arena.host(flood_host, lines=lines)
    arena.wait_ready(4)
    answer = started.ask("go")
    assert answer["beside"] == 4 * [None]
    assert answer["seconds"] < BOUND
    started.hear()
    arena.assert_left(own(arena, started))


def poll_host() -> None:
    process = muontrap.Launcher(["/bin/sleep", "1000"], delay_to_sigkill=GRACE).launch()
    begin = time.monotonic()
    polled = process.poll()
    waited = kind(lambda: process.wait(timeout=0.2))
    spoken = kind(lambda: process.communicate(timeout=0.2))
    say(polled=polled, waited=waited[0], spoken=spoken[0], seconds=time.monotonic() - begin)
    process.kill()
    say(returncode=process.wait())
    hear()


def test_wait_and_communicate_keep_their_timeouts(arena: Arena) -> None:
    started = arena.host(poll_host)
    answer = started.hear()
    assert (answer["polled"], answer["waited"], answer["spoken"]) == (
        None,
        "TimeoutExpired",
        "TimeoutExpired",
    )
    assert 0.4 <= answer["seconds"] < 0.4 + NOISE
    assert started.hear() == {"returncode": -signal.SIGKILL}


# --- Threads, SIGCHLD, statuses


def threads_host(*, count: int) -> None:
    """Launch from many threads at once; every one gets its own output and status."""
    results: dict[int, Any] = {}

    def run(number: int) -> None:
        result = muontrap.run(
            ["/bin/sh", "-c", f"echo {number}; exit {number}"], capture_output=True, text=True
        )
        results[number] = [result.stdout, result.returncode]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(right=results == {number: [f"{number}\n", number] for number in range(count)}, results=results)
    hear()


def test_fifty_launches_from_fifty_threads(arena: Arena) -> None:
    started = arena.host(threads_host, count=50)
    answer = started.hear(bound=40)
    assert answer["right"], answer
    arena.assert_left({started.pid, arena.the("muontrap-guard"), arena.the("muontrap-watch")})


def short_thread_host(*, options: dict[str, Any]) -> None:
    """The thread that launches (and so starts the guard) ends; its command lives on."""
    processes = []
    launch = lambda: processes.append(muontrap.Launcher(["/bin/sleep", "1000"], **options).launch())  # noqa: E731
    for _ in range(2):
        thread = threading.Thread(target=launch)
        thread.start()
        thread.join()
    muontrap.run(["/bin/true"])
    say(polls=[process.poll() for process in processes])
    hear()


@pytest.mark.parametrize("options", [{}, {"pdeathsig": 9}], ids=["plain", "pdeathsig"])
def test_a_command_outlives_the_thread_that_launched_it(arena: Arena, options: dict[str, Any]) -> None:
    started = arena.host(short_thread_host, options=options)
    assert started.hear() == {"polls": [None, None]}
    assert len(arena.named("sleep")) == 2


def waiters_host() -> None:
    """Several threads wait for one process, another ends it."""
    process = muontrap.Launcher(["/bin/sleep", "1000"], delay_to_sigkill=GRACE).launch()
    statuses: list[int] = []
    threads = [threading.Thread(target=lambda: statuses.append(process.wait())) for _ in range(5)]
    for thread in threads:
        thread.start()
    process.terminate()
    for thread in threads:
        thread.join(10)
    say(statuses=statuses)
    hear()


def test_any_number_of_threads_may_wait(arena: Arena) -> None:
    assert arena.host(waiters_host).hear() == {"statuses": 5 * [-signal.SIGTERM]}


def sigchld_host(*, how: str) -> None:
    if how == "ignored":
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    elif how == "reaper":  # a host that waits for whatever child it has, in a loop

        def reap(*_: object) -> None:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass

        signal.signal(signal.SIGCHLD, reap)
    statuses = [muontrap.run(["/bin/sh", "-c", f"exit {status}"]).returncode for status in (0, 1, 7, 255)]
    signals = [muontrap.run(["/bin/sh", "-c", f"kill -{number} $$"]).returncode for number in (9, 15, 6)]
    say(statuses=statuses, signals=signals, children=kind(lambda: os.waitpid(-1, os.WNOHANG)))
    hear()


@pytest.mark.parametrize("how", ["ignored", "reaper", "default"])
def test_sigchld_of_the_host_does_not_matter(arena: Arena, how: str) -> None:
    answer = arena.host(sigchld_host, how=how).hear()
    assert answer["statuses"] == [0, 1, 7, 255]
    assert answer["signals"] == [-9, -15, -6]
    assert answer["children"][0] == "ChildProcessError"  # the host has no child that it does not know


def statuses_host() -> None:
    launch = muontrap.run
    say(exits=[launch(["/bin/sh", "-c", f"exit {status}"]).returncode for status in range(256)])
    fatal = [n for n in range(1, 65) if n not in {17, 18, 19, 20, 21, 22, 23, 28, 32, 33}]
    options = {"rlimits": {4: (0, 0)}}  # no core dumps
    results = {
        number: launch(["/bin/sh", "-c", f"kill -{number} $$; exit 99"], **options) for number in fatal
    }
    say(wrong={n: r.returncode for n, r in results.items() if r.returncode != -n or r.reason != "signal"})
    hear()


def test_all_256_statuses_and_every_fatal_signal(arena: Arena) -> None:
    started = arena.host(statuses_host)
    assert started.hear(bound=60)["exits"] == list(range(256))
    assert started.hear(bound=60) == {"wrong": {}}


def signalling_host(*, how: str) -> None:
    """Ask for something again and again until the command ends by itself: some request comes too late."""
    kinds: set[str] = set()
    begin = time.monotonic()
    for number in range(200):
        process = muontrap.Launcher(["/bin/sleep", "0.002"]).launch()
        if how == "stop":
            time.sleep(0.0015 + number % 20 * 0.0001)  # no event says that it is about to end
            kinds.add(kind(process.stop)[0])
        else:
            while process.poll() is None:
                process.send_signal(0)
        kinds.add(kind(process.wait)[0])
    say(kinds=sorted(kinds), seconds=time.monotonic() - begin)
    hear()


@pytest.mark.parametrize("how", ["signal", "stop"])
def test_a_request_may_cross_with_the_end(arena: Arena, how: str) -> None:
    answer = arena.host(signalling_host, how=how).hear(bound=45)
    assert answer["kinds"] == ["returned"]


# --- Handles


def handle_host(*, line: list[str], how: str) -> None:
    import warnings

    process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
    pid = process.pid
    say(pid=pid)
    hear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if how == "with":
            with process:
                pass
        elif how == "exception":
            with contextlib.suppress(KeyError), process:
                raise KeyError
        elif how == "garbage":
            del process
            gc.collect()
    say(warnings=[warning.category.__name__ for warning in caught])
    hear()


@pytest.mark.parametrize("how", ["with", "exception", "garbage"])
@pytest.mark.parametrize("program", ["sleeper.py", "ignore_signals.py", "daemon.py"])
def test_a_handle_that_is_left_stops_its_command(arena: Arena, program: str, how: str) -> None:
    started = arena.host(handle_host, line=argv(arena, program), how=how)
    started.hear()
    arena.wait_ready()
    answer = started.ask("go")
    if how == "garbage":
        assert answer == {"warnings": ["ResourceWarning"]}
        arena.wait_left(own(arena, started), bound=GRACE + BOUND)
    else:
        assert answer == {"warnings": []}
        arena.assert_left(own(arena, started))


def fileno_host() -> None:
    import select

    process = muontrap.Launcher(["/bin/sh", "-c", "read -r _; exit 3"], stdin=-1).launch()
    early = select.select([process], [], [], 0)[0]
    process.stdin.close()
    late = select.select([process], [], [], 10)[0]
    say(early=len(early), late=len(late), polled=process.poll())
    hear()


def test_fileno_is_readable_at_the_end_and_not_before(arena: Arena) -> None:
    assert arena.host(fileno_host).hear() == {"early": 0, "late": 1, "polled": 3}


# --- Fork in the host


def fork_host(*, how: str) -> None:
    """A forked child of the host ends in each way; its parent's command must not notice."""
    process = muontrap.Launcher(["/bin/sleep", "1000"], delay_to_sigkill=GRACE).launch()
    pid = os.fork()
    if not pid:
        if how == "exit":
            raise SystemExit(0)
        if how == "launch":
            status = muontrap.run(["/bin/sh", "-c", "exit 5"]).returncode
            os._exit(status)
        if how == "leave-block":
            with process:
                raise SystemExit(0)
        if how == "collect":
            del process
            gc.collect()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    muontrap.run(["/bin/true"])
    say(status=status, polled=process.poll())
    hear()
    process.stop()
    say(stopped=True)
    hear()


@pytest.mark.parametrize("how", ["exit", "os-exit", "launch", "leave-block", "collect"])
def test_a_forked_child_of_the_host_does_not_stop_its_commands(arena: Arena, how: str) -> None:
    started = arena.host(fork_host, how=how)
    assert started.hear() == {"status": 5 if how == "launch" else 0, "polled": None}
    assert len(arena.named("sleep")) == 1
    started.ask("stop")
    arena.wait_left(own(arena, started), bound=GRACE + BOUND)
    assert len(arena.named("muontrap-guard")) == 1 or how == "launch"


def children_host(*, count: int) -> None:
    """Fork children that stay while commands run."""
    process = muontrap.Launcher(["/bin/sleep", "1000"]).launch()
    guard: Any = muontrap.host.link._links.current
    folder = f"/proc/{guard.hello.guard_pid}/fd"
    before = len(os.listdir(folder))
    for _ in range(count):
        threads = [threading.Thread(target=muontrap.run, args=(["/bin/sleep", "0.2"],)) for _ in range(12)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        if not os.fork():
            say(sockets=[name for name in open_fds() if "socket:" in name])
            hear()
            os._exit(0)
        for thread in threads:
            thread.join()
    deadline = time.monotonic() + 5  # the guard tidies up after it has told the end
    while (more := len(os.listdir(folder)) - before) > 8 and time.monotonic() < deadline:
        muontrap.run(["/bin/true"])
    say(more=more)
    process.close()
    hear()


def test_a_forked_child_keeps_no_channel(arena: Arena) -> None:
    """The guard would have to keep its end, of what the host has closed, for as long as the child lives."""
    started = arena.host(children_host, count=4)
    for _ in range(4):
        assert started.hear() == {"sockets": []}
    assert started.hear()["more"] <= 8, "the channels that are kept for the next launches"


def forking_thread_host(*, count: int) -> None:
    """Fork (as `subprocess` and `multiprocessing` do) while other threads launch."""
    stop = threading.Event()
    statuses: list[int] = []

    def launch() -> None:
        while not stop.is_set():
            statuses.append(muontrap.run(["/bin/true"], timeout=20).returncode)

    threads = [threading.Thread(target=launch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(count):
        if not (pid := os.fork()):
            os._exit(0)
        os.waitpid(pid, 0)
    stop.set()
    for thread in threads:
        thread.join(20)
    say(statuses=sorted(set(statuses)), alive=[thread.is_alive() for thread in threads])
    hear()


@pytest.mark.filterwarnings("ignore")
def test_fork_while_other_threads_launch(arena: Arena) -> None:
    answer = arena.host(forking_thread_host, count=50).hear(bound=50)
    assert answer == {"statuses": [0], "alive": 3 * [False]}


def forked_channel_host(*, count: int) -> None:
    """Fork children that stay, while another thread opens channels; then the guard dies."""
    processes: list[Any] = []
    children: list[int] = []
    launcher = muontrap.Launcher(["/bin/sleep", "1000"])
    processes.append(launcher.launch())

    def launch() -> None:
        while len(children) < count:
            processes.append(launcher.launch())

    thread = threading.Thread(target=launch)
    thread.start()
    while len(children) < count:
        children.append(os.fork())
        if not children[-1]:
            signal.pause()
    thread.join()
    guard: Any = muontrap.host.link._links.current
    os.kill(guard.hello.guard_pid, signal.SIGKILL)
    kinds = {kind(lambda process=process: process.wait(timeout=10))[0] for process in processes}
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    say(kinds=list(map(str, kinds)))
    hear()


@pytest.mark.filterwarnings("ignore")
def test_a_fork_while_a_channel_is_opened_does_not_hide_the_guards_death(arena: Arena) -> None:
    """The child would have the guard's end of it, too, for as long as it lives."""
    answer = arena.host(forked_channel_host, count=40).hear(bound=50)
    assert answer == {"kinds": ["GuardDied"]}


def leaked_fork_host() -> None:
    """A C library of the host has forked: its child holds every descriptor. Commands end as if it did not."""
    process = muontrap.Launcher(["/bin/cat"], stdin=-1, stdout=-1, delay_to_sigkill=GRACE).launch()
    sibling = fork_behind_pythons_back()
    process.terminate()
    say(sibling=sibling, returncode=process.wait(timeout=10))
    say(status=muontrap.run(["/bin/sh", "-c", "exit 4"], timeout=10).returncode)
    hear()


def test_a_fork_behind_pythons_back_does_not_matter(arena: Arena) -> None:
    started = arena.host(leaked_fork_host)
    sibling = started.hear()
    assert sibling["returncode"] == -signal.SIGTERM
    assert started.hear() == {"status": 4}
    arena.assert_left({*own(arena, started), sibling["sibling"]})


# --- A host inside a command of another host


def outer_host(*, inner: list[str], grace: float) -> None:
    processes = [
        muontrap.Launcher(inner, pass_fds=[], delay_to_sigkill=grace).launch(),
        muontrap.Launcher(["/bin/sleep", "1000"], delay_to_sigkill=grace).launch(),
    ]
    say(pids=[process.pid for process in processes])
    while order := hear():
        processes[int(order)].stop()
        say(stopped=order)


INNER = """
import sys, time, muontrap
processes = [muontrap.Launcher(line, delay_to_sigkill=0.1).launch() for line in {lines!r}]
time.sleep(1000)
"""


@pytest.mark.parametrize(
    "death", ["outer", "outer-guard", "inner", "inner-and-its-guard", "inner-guard-and-watch", "stop"]
)
@pytest.mark.parametrize("command", ["sleeper", "daemon", "su-daemon", "ignore-signals"])
def test_nested_hosts(arena: Arena, command: str, death: str) -> None:
    import sys

    lines = COMMANDS[command](arena)
    inner = [sys.executable, "-c", INNER.format(lines=lines)]
    started = arena.host(outer_host, inner=inner, grace=GRACE)
    inner_pid, other = started.hear()["pids"]
    arena.wait_ready()
    guards, watches = arena.named("muontrap-guard"), arena.named("muontrap-watch")
    assert (len(guards), len(watches)) == (2, 2)
    outer_guard = read_stat(f"/proc/{other}/stat")[1]
    outer_pair = {outer_guard, read_stat(f"/proc/{outer_guard}/stat")[1]}
    inner_guard, inner_watch = {*guards, *watches} - outer_pair
    if inner_guard not in guards:
        inner_guard, inner_watch = inner_watch, inner_guard
    if death == "outer":
        started.signal(signal.SIGKILL)
        arena.wait_left(bound=2 * GRACE + BOUND)
    elif death == "outer-guard":
        os.kill(outer_guard, signal.SIGKILL)
        arena.wait_left({started.pid}, bound=2 * GRACE + BOUND)
    elif death == "stop":
        started.ask("0")
        check_inner_gone(arena, started, {other, *outer_pair}, marked=command != "su-daemon", bound=0)
    else:
        victims = {
            "inner": [inner_pid], "inner-and-its-guard": [inner_pid, inner_guard],
            "inner-guard-and-watch": [inner_pid, inner_guard, inner_watch],
        }[death]  # fmt: skip
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        marked, bound = command != "su-daemon", 2 * GRACE + BOUND
        check_inner_gone(arena, started, {other, *outer_pair}, marked=marked, bound=bound)


def check_inner_gone(arena: Arena, started: Host, spared: set[int], *, marked: bool, bound: float) -> None:
    """Nothing of the inner host is left.

    What has neither mark nor parent belongs, by its time, to the outer host's other command as well:
    it may live until that has ended too, and not longer.
    """
    if marked:
        arena.wait_left({started.pid, *spared}, bound=bound)
        assert all(map(is_alive, spared))
    else:
        started.ask("0")
        started.ask("1")
        arena.assert_left({started.pid, *arena.named("muontrap-guard"), *arena.named("muontrap-watch")})
