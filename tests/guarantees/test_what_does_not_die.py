"""Processes that SIGKILL does not reach, and such as may not be signalled: reported within the bound, never
waited for, nobody else's; and those of the first kind are hunted on.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from arena import BOUND, Arena, CgroupLedger, Host, is_alive, read_text
from commands import ORDINARY, need_root, ordinary_user, set_user_id_copy
from hostlib import GRACE, Any, hear, muontrap, say, threading, time

pytestmark = pytest.mark.slow

NOISE = 2.0  # seconds that a loaded machine may add to a bound


def own(arena: Arena, started: Host) -> set[int]:
    return {started.pid, *arena.named("muontrap-guard"), *arena.named("muontrap-watch")}


@contextmanager
def freezer(arena: Arena) -> Iterator[list[str]]:
    """A command that freezes itself in a group of v1, where SIGKILL waits until it is thawed: at the end.

    In v2 a frozen process dies of it.
    """
    ledger = arena.ledger
    if not (isinstance(ledger, CgroupLedger) and Path(ledger.path, "freezer.state").exists()):
        pytest.skip("needs a freezer of cgroup v1")
    group = ledger.path / "frozen"
    group.mkdir()
    (arena.folder / "state").symlink_to(group / "freezer.state")
    script = f"echo $$ >{group}/cgroup.procs; echo ready >{arena.ready}; echo FROZEN >{group}/freezer.state"
    yield ["/bin/sh", "-c", script]
    ledger.freeze(frozen=False)


def wait_frozen(arena: Arena) -> None:
    """Wait until the command has done it, to which it says "ready" before."""
    arena.wait_ready()
    deadline = time.monotonic() + BOUND
    while read_text(f"{arena.folder}/state") != "FROZEN":
        assert time.monotonic() < deadline


def run_host(*, line: list[str]) -> None:
    begin = time.monotonic()
    try:
        muontrap.run(line, timeout=1.5, delay_to_sigkill=GRACE)
    except muontrap.TimeoutExpired as error:
        result: Any = error.result
    say(seconds=time.monotonic() - begin, pids=result.unkillable, reason=result.reason)
    try:
        result.check_returncode()
    except muontrap.CalledProcessError as error:
        say(returncode=error.returncode, text=str(error))
    begin = time.monotonic()
    others = [muontrap.run(["/bin/true"]) for _ in range(3)]
    say(
        others=[[other.returncode, other.unkillable] for other in others],
        seconds=time.monotonic() - begin,
    )
    hear()


def test_run_says_what_did_not_die(arena: Arena) -> None:
    with freezer(arena) as line:
        host = arena.host(run_host, line=line)
        answer = host.hear()
        (pid,) = answer["pids"]
        assert pid in arena.left()
        assert answer["reason"] == "timeout"
        assert answer["seconds"] < 1.5 + GRACE + 0.5 + NOISE
        said = host.hear()
        assert said["returncode"] is None
        assert f"still running are {pid}" in said["text"]
        answer = host.hear()
        assert answer["others"] == 3 * [[0, []]]
        assert answer["seconds"] < NOISE
    arena.wait_left(own(arena, host))  # it was still hunted


def process_host(*, line: list[str]) -> None:
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
    hear()
    begin = time.monotonic()
    pid, result = process.pid, process.stop()
    waits = [process.wait(timeout=0), process.poll(), process.returncode]
    say(is_it=result.unkillable == (pid,), waits=waits, seconds=time.monotonic() - begin)
    begin = time.monotonic()
    process.close()
    say(seconds=time.monotonic() - begin)
    hear()


@pytest.mark.parametrize("death", ["none", "before", "after"])
def test_it_is_hunted_on(arena: Arena, death: str) -> None:
    """Also when the host dies: before it was found to be unkillable, or afterwards."""
    with freezer(arena) as line:
        host = arena.host(process_host, line=line)
        wait_frozen(arena)
        if death != "before":
            answer = host.ask("stop")
            assert (answer["is_it"], answer["waits"]) == (True, 3 * [None])
            assert answer["seconds"] < GRACE + 0.5 + NOISE
            assert host.hear()["seconds"] < NOISE
        if death != "none":
            host.signal(signal.SIGKILL)
            host.wait_end()
    arena.wait_left(own(arena, host) if death == "none" else ())


def stopped_guard_host(*, line: list[str]) -> None:
    """Both are stopped, so that neither wakes the other, when the command runs."""
    muontrap.start_guard()
    hello: Any = muontrap.host.link._links.current
    pids = (hello.hello.watch_pid, hello.hello.guard_pid)

    def stop() -> None:
        hear()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)

    thread = threading.Thread(target=stop)
    thread.start()
    begin = time.monotonic()
    try:
        muontrap.run(line, timeout=4, delay_to_sigkill=GRACE)
    except muontrap.TimeoutExpired as error:
        say(seconds=time.monotonic() - begin, result=error.result)
    thread.join()
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    say(returncode=muontrap.run(["/bin/true"]).returncode)
    hear()


def test_run_returns_although_the_guard_says_nothing(arena: Arena) -> None:
    script = f"echo ready >{arena.ready}; exec sleep 1000"
    host = arena.host(stopped_guard_host, line=["/bin/sh", "-c", script])
    arena.wait_ready()
    answer = host.ask("stop them")
    assert answer["result"] is None
    assert answer["seconds"] < 4 + GRACE + 0.5 + NOISE
    assert host.hear() == {"returncode": 0}
    arena.wait_left(own(arena, host))


def standstill_host(*, line: list[str]) -> None:
    process = muontrap.Launcher(line).launch()
    hello: Any = muontrap.host.link._links.current
    hear()
    process.kill()
    say(pids=(hello.hello.watch_pid, hello.hello.guard_pid))
    hear()
    say(returncode=process.wait(30), unkillable=process.result.unkillable)


def test_time_in_which_the_machine_stood_still_is_none_in_which_nothing_died(arena: Arena) -> None:
    """As when a virtual machine is moved: command, guard and watch all go on at the same time."""
    with freezer(arena) as line:
        host = arena.host(standstill_host, line=line)
        wait_frozen(arena)
        pids = host.ask("kill")["pids"]
        time.sleep(0.1)  # the guard has seen that the command does not die at once
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(0.5)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        arena.ledger.freeze(frozen=False)
        assert host.ask("wait") == {"returncode": -signal.SIGKILL, "unkillable": []}


def spared_host(*, line: list[str]) -> None:
    process = muontrap.Launcher(line, delay_to_sigkill=1.5, kill_mode="process").launch()
    hello: Any = muontrap.host.link._links.current
    say(pids=(hello.hello.watch_pid, hello.hello.guard_pid))
    hear()
    process.close()


def test_a_guard_that_stood_still_with_its_watch_is_not_stuck(arena: Arena) -> None:
    """Killed, it could not tell the watch what was to be left alone."""
    pid = f"{arena.folder}/pid"
    daemon = f"setsid sh -c 'echo $$ >{pid}; echo ready >{arena.ready}; exec sleep 1000' &"
    os.mkfifo(arena.folder / "never")
    main = f"trap 'echo told >{arena.ready}' TERM; {daemon} while :; do read _; done <>{arena.folder}/never"
    host = arena.host(spared_host, line=["sh", "-c", main])
    watch, guard = host.hear()["pids"]
    arena.wait_ready()
    host.signal(signal.SIGKILL)
    arena.wait_ready(1, "told")  # the guard knows of its death, has woken the watch up, and the grace runs
    for each in watch, guard:
        os.kill(each, signal.SIGSTOP)
    time.sleep(2.8)
    os.kill(watch, signal.SIGCONT)
    with contextlib.suppress(ProcessLookupError):  # the watch has woken it up, and it was quick
        os.kill(guard, signal.SIGCONT)
    arena.wait_dead(watch)
    assert arena.left() == {int(read_text(pid))}


def root_host(*, line: list[str]) -> None:
    """A command of root's is not this host's to signal; one before and one after it have nothing of it."""
    before = muontrap.Launcher(["/bin/sleep", "1000"]).launch()
    results = []
    for options in {"timeout": 0.5}, {}:
        try:
            results.append(
                muontrap.run([*line, *([] if options else ["1"])], delay_to_sigkill=GRACE, **options)
            )
        except muontrap.TimeoutExpired as error:
            results.append(error.result)
    after = [muontrap.run(["/bin/true"], timeout=10) for _ in range(2)]
    say(
        ended=[[each.reason, each.returncode, each.not_permitted] for each in results],
        others=[[each.returncode, each.not_permitted] for each in (*after, before.stop())],
    )
    hear()
    say(others=muontrap.run(["/bin/true"], timeout=10).not_permitted)
    hear()


@pytest.mark.parametrize("has_mark", [True, False])
def test_what_may_not_be_signalled_is_left_and_named_once(arena: Arena, has_mark: bool) -> None:
    """As what sudo(8) leaves, which sheds the mark as well, where PAM resets the limits."""
    setpriv = set_user_id_copy(arena, "/usr/bin/setpriv", owner=0)
    shed = [] if has_mark else ["/usr/bin/prlimit", "--locks=unlimited:unlimited"]
    line = [setpriv, "--reuid=0", *shed, "/bin/sh", "-c", '[ "$1" ] || exec sleep 1000', "sh"]
    host = arena.host(root_host, line=line, **ordinary_user())
    answer = host.hear(bound=30)
    (reason, returncode, pids), other = answer["ended"]
    assert (reason, returncode) == ("timeout", None)
    assert other == ["exited", 0, []]
    assert answer["others"] == [[0, []], [0, []], [-signal.SIGTERM, []]]
    (pid,) = pids
    assert arena.left() - own(arena, host) == {pid}
    os.kill(pid, signal.SIGKILL)
    arena.wait_left(own(arena, host))
    assert host.ask("again") == {"others": []}


def later_host(*, line: list[str]) -> None:
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE).launch()
    hear()
    result = process.stop()
    say(not_permitted=list(result.not_permitted) == [process.pid], pid=process.pid)
    process.close()
    while hear():
        say(after=muontrap.run(["/bin/true"]).not_permitted)


def test_what_it_starts_later_is_killed_as_soon_as_it_may_be(arena: Arena) -> None:
    """And what it starts later that may not be signalled either is no other command's."""
    setpriv = set_user_id_copy(arena, "/usr/bin/setpriv", owner=0)
    for name in "go", "end":
        os.mkfifo(arena.folder / name)
    roots = f"/bin/sh -c 'echo $$ >pid; echo ready >{arena.ready}; exec sleep 1000'"
    two = f"({roots} & exec /usr/bin/setpriv --reuid={ORDINARY} /bin/sleep 1000 &)"
    script = f"echo ready >{arena.ready}; read _ <go; {two}; read _ <end"
    line = [setpriv, "--reuid=0", "/bin/sh", "-c", script]
    host = arena.host(later_host, line=line, **ordinary_user())
    arena.wait_ready()
    answer = host.ask("stop")
    assert answer["not_permitted"]
    (arena.folder / "go").write_bytes(b"\n")
    arena.wait_ready(2)
    (arena.folder / "end").write_bytes(b"\n")  # its end makes them the guard's children
    arena.wait_dead(answer["pid"])
    pid = int((arena.folder / "pid").read_text())
    deadline = time.monotonic() + BOUND
    while arena.left() != own(arena, host) | {pid} and time.monotonic() < deadline:
        assert host.ask("run another") == {"after": []}
    assert arena.left() == own(arena, host) | {pid}
    os.kill(pid, signal.SIGKILL)
    arena.wait_left(own(arena, host))


def sparing_host(*, line: list[str]) -> None:
    process = muontrap.Launcher(line, delay_to_sigkill=GRACE, kill_mode="process").launch()
    hear()
    say(not_permitted=list(process.stop().not_permitted) == [process.pid], pid=process.pid)
    process.close()
    while hear():
        say(after=muontrap.run(["/bin/true"]).returncode)


def test_what_kill_mode_process_leaves_is_left_though_its_main_process_was_refused(arena: Arena) -> None:
    setpriv = set_user_id_copy(arena, "/usr/bin/setpriv", owner=0)
    sleeps = f"/bin/sh -c 'echo $$ >pid; echo ready >{arena.ready}; exec sleep 1000'"
    left = f"(/usr/bin/setpriv --reuid={ORDINARY} {sleeps} &)"
    (arena.folder / "pid").touch()
    (arena.folder / "pid").chmod(0o666)
    os.mkfifo(arena.folder / "end")
    line = [setpriv, "--reuid=0", "/bin/sh", "-c", f"{left}; read _ <end"]
    host = arena.host(sparing_host, line=line, **ordinary_user())
    arena.wait_ready()
    pid = int((arena.folder / "pid").read_text())
    answer = host.ask("stop")
    assert answer["not_permitted"]
    assert is_alive(pid)
    (arena.folder / "end").write_bytes(b"\n")
    arena.wait_dead(answer["pid"])
    assert host.ask("run another") == {"after": 0}
    assert arena.left() == own(arena, host) | {pid}


def init_host() -> None:
    """Be pid 1 of a namespace, and in the cgroup of a command: there SIGKILL does nothing to it."""
    with muontrap.Launcher(["/bin/cat"], stdin=-1, limits={"pids_max": 50}).launch() as process:
        assert process.cgroup
        folders = list(process.cgroup.paths.values())
        for folder in folders:
            with open(f"{folder}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("1")
        begin = time.monotonic()
        process.communicate(timeout=20)
        say(seconds=time.monotonic() - begin, pids=process.result.unkillable)
        for folder in folders:
            with open(f"{os.path.dirname(folder)}/cgroup.procs", "w", encoding="ascii") as file:
                file.write("1")
    hear()


def test_who_ignores_sigkill_is_reported(arena: Arena) -> None:
    """It sleeps all the time: that it is in no uninterruptible sleep is no reason to wait for ever."""
    need_root()
    before = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    answer = arena.host(init_host, before=before).hear(bound=30)
    assert answer["pids"] == [1]
    assert answer["seconds"] < 0.4 + NOISE
