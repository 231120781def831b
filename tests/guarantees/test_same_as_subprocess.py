"""What a command finds when it starts is what `subprocess.run` gives it: nothing of the guard's
leaks into it.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from arena import BOUND, Arena
from commands import argv
from hostlib import Any, contextlib, hear, kind, muontrap, resource, say, subprocess, sys, threading, time

from muontrap.kernel.process import Environ, Environments

pytestmark = pytest.mark.slow

WAYS: dict[str, dict[str, Any]] = {"spawn": {}, "fork": {"oom_score_adj": 0}}
if os.getuid() == 0:
    WAYS["credentials"] = {"extra_groups": os.getgroups(), "allow_root": True}

LOOK = """
import os, sys, json
LEAVE_OUT = (
    "Pid", "Tgid", "PPid", "TracerPid", "NS", "Vm", "Rss", "Hugetlb", "voluntary", "nonvoluntary", "Mems",
    "Threads", "SigQ", "x86_", "untag", "Speculation", "Max file locks",
)
def lines(path):
    return [line for line in open(path).read().splitlines() if not line.startswith(LEAVE_OUT)]
fds = [fd for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd)]
print(json.dumps({
    "status": dict(line.split(":", 1) for line in lines("/proc/self/status")),
    "limits": lines("/proc/self/limits"), "oom": lines("/proc/self/oom_score_adj"),
    "cgroup": lines("/proc/self/cgroup"), "fds": sorted(fds), "cwd": os.getcwd(), "env": dict(os.environ),
    "nice": os.nice(0), "affinity": sorted(os.sched_getaffinity(0)), "scheduler": os.sched_getscheduler(0),
    "argv": sys.orig_argv, "leader": [os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid()],
}))
"""
# Python itself ignores SIGPIPE and SIGXFSZ; glibc's posix_spawn leaves its own two, 32 and 33, ignored.
OF_NO_INTEREST = sum(1 << number - 1 for number in (signal.SIGPIPE, signal.SIGXFSZ, 32, 33))


def inheriting_host(*, look: str, ours: dict[str, Any], change: bool) -> None:
    """Change what can be changed of the host after the guard's start; look from inside a command,
    of both kinds.
    """
    muontrap.start_guard()
    if change:
        os.chdir("/usr")
        os.umask(0o027)
        os.nice(3)
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.environ["ADDED"] = "later"
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        resource.setrlimit(resource.RLIMIT_STACK, (4 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    line = [sys.executable, "-S", "-E", "-c", look]
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    theirs = subprocess.run(line, start_new_session=True, check=False, **options)
    found = muontrap.run(line, **options, **ours)
    say(theirs=theirs.stdout, ours=found.stdout, errors=found.stderr)
    hear()


@pytest.mark.parametrize("change", [False, True], ids=["as-started", "host-changed"])
@pytest.mark.parametrize("way", WAYS)
def test_a_command_finds_what_subprocess_gives(arena: Arena, way: str, change: bool) -> None:
    import json

    answer = arena.host(inheriting_host, look=LOOK, ours=WAYS[way], change=change).hear()
    assert answer["ours"], answer["errors"]
    theirs, ours = json.loads(answer["theirs"]), json.loads(answer["ours"])
    for found in (theirs, ours):
        assert found["fds"] == ["0", "1", "2"]
        found["ignored"] = int(found["status"].pop("SigIgn"), 16) & ~OF_NO_INTEREST
        found["blocked"] = int(found["status"].pop("SigBlk"), 16)
    if change:  # muontrap resets what the host ignores and blocks; subprocess keeps it
        assert (ours["ignored"], ours["blocked"]) == (0, 0)
        theirs.update(ignored=0, blocked=0)
    assert ours == theirs


def large_host(*, ours: dict[str, Any]) -> None:
    """Requests that do not fit in one packet, from several threads at once."""
    results: list[Any] = []
    env = {f"NAME{number}": 1000 * "e" for number in range(300)}
    args = [10_000 * "a" for _ in range(80)]

    def launch() -> None:
        line = ["/bin/sh", "-c", 'echo $# ${#1} "${#NAME299}"', "sh", *args]
        found = muontrap.run(line, env=env, capture_output=True, text=True, **ours)
        results.append(found.stdout)

    threads = [threading.Thread(target=launch) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say(results=results)
    fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(400)]
    line = [sys.executable, "-S", "-c", "import os; print(len(os.listdir('/proc/self/fd')) - 1)"]
    say(fds=muontrap.run(line, pass_fds=fds, capture_output=True, text=True, **ours).stdout)
    hear()


@pytest.mark.parametrize("way", WAYS)
def test_large_requests(arena: Arena, way: str) -> None:
    started = arena.host(large_host, ours=WAYS[way])
    assert started.hear(bound=40) == {"results": 8 * ["80 10000 1000\n"]}
    assert started.hear() == {"fds": "403\n"}


def closed_host(*, ours: dict[str, Any]) -> None:
    """A daemon's host: descriptors 0, 1 and 2 are closed, and so are taken by whatever is opened first."""
    for fd in (0, 1, 2):
        os.close(fd)
    found = muontrap.run(["/bin/sh", "-c", "cat; echo err >&2"], input=b"in", capture_output=True, **ours)
    say(
        stdout=found.stdout.decode(),
        stderr=found.stderr.decode(),
        status=muontrap.run(["/bin/true"]).returncode,
    )
    hear()


@pytest.mark.parametrize("way", WAYS)
def test_a_host_without_standard_descriptors(arena: Arena, way: str) -> None:
    answer = arena.host(closed_host, ours=WAYS[way]).hear()
    assert answer == {"stdout": "in", "stderr": "err\n", "status": 0}


def signals_host(*, ours: dict[str, Any]) -> None:
    """Signals that interrupt every call of the host, all the time, change nothing."""
    count = []
    signal.signal(signal.SIGALRM, lambda *_: count.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    results = [
        muontrap.run(["/bin/echo", "x"], capture_output=True, timeout=20, **ours).stdout for _ in range(50)
    ]
    signal.setitimer(signal.ITIMER_REAL, 0)
    say(right=results == 50 * [b"x\n"], interrupted=len(count) > 10)
    hear()


@pytest.mark.parametrize("way", WAYS)
def test_a_host_that_is_interrupted_all_the_time(arena: Arena, way: str) -> None:
    assert arena.host(signals_host, ours=WAYS[way]).hear() == {"right": True, "interrupted": True}


def interrupt_host(*, line: list[str]) -> None:
    try:
        muontrap.run(line, capture_output=True, delay_to_sigkill=0.1)
    except KeyboardInterrupt:
        say(interrupted=True)
    hear()


@pytest.mark.parametrize("program", ["sleeper.py", "ignore_signals.py", "daemon.py"])
def test_ctrl_c_in_the_host_leaves_nothing(arena: Arena, program: str) -> None:
    started = arena.host(interrupt_host, line=argv(arena, program))
    arena.wait_ready()
    started.signal(signal.SIGINT)
    assert started.hear() == {"interrupted": True}
    arena.assert_left({started.pid, arena.the("muontrap-guard"), arena.the("muontrap-watch")})


def input_host() -> None:
    begin = time.monotonic()
    unread = kind(lambda: muontrap.run(["/bin/true"], input=10_000_000 * b"x"))
    stuck = kind(lambda: muontrap.run(["/bin/sleep", "1000"], input=10_000_000 * b"x", timeout=0.3))
    both = muontrap.run(["/bin/cat"], input=3_000_000 * b"x", capture_output=True)
    say(unread=unread, stuck=stuck[0], both=len(both.stdout), seconds=time.monotonic() - begin)
    hear()


def test_input_that_nobody_reads(arena: Arena) -> None:
    answer = arena.host(input_host).hear()
    assert answer.pop("seconds") < BOUND
    assert answer == {"unread": ["returned"], "stuck": "TimeoutExpired", "both": 3_000_000}


def regroup_host(*, line: list[str], name: str) -> None:
    """A command in the host's session leaves its process group for the guard's; then it is signalled."""
    process = muontrap.Launcher(line, start_new_session=False, delay_to_sigkill=0.1).launch()
    say(pid=process.pid)
    hear()
    with contextlib.suppress(ProcessLookupError):
        getattr(process, name)()
    status = muontrap.run(["/bin/true"]).returncode
    say(status=status, stopped=process.stop().returncode)
    hear()


@pytest.mark.parametrize("name", ["terminate", "kill", "stop"])
def test_a_command_that_leaves_its_process_group_does_not_break_the_guard(arena: Arena, name: str) -> None:
    regroup = "import os, signal, sys; os.setpgid(0, os.getpgid(os.getppid())); "
    regroup += "open(sys.argv[1], 'w').write('ready\\n'); signal.pause()"
    line = [sys.executable, "-S", "-E", "-c", regroup, str(arena.ready)]
    started = arena.host(regroup_host, line=line, name=name)
    started.hear()
    arena.wait_ready()
    answer = started.ask("go")
    assert answer["status"] == 0
    assert answer["stopped"] in (-signal.SIGTERM, -signal.SIGKILL)


def priority_host(*, bomb: list[str]) -> None:
    """Launch while the guard hunts a fork bomb, and so may have raised its own priority."""
    process = muontrap.Launcher(bomb, delay_to_sigkill=0).launch()
    say(pid=process.pid)
    hear()
    found = []
    thread = threading.Thread(target=process.stop)
    thread.start()
    line = [sys.executable, "-S", "-E", "-c", "import os; print(os.nice(0), os.sched_getscheduler(0))"]
    for _ in range(8):
        found.append(muontrap.run(line, capture_output=True, text=True).stdout)
    thread.join()
    say(found=sorted(set(found)))
    hear()


def test_a_raised_priority_is_not_inherited(arena: Arena) -> None:
    started = arena.host(priority_host, bomb=argv(arena, "fork_bomb.py", "sessions"))
    started.hear()
    arena.wait_ready()
    assert started.ask("go") == {"found": ["0 0\n"]}


def test_unbuffered_text_reaches_the_command_at_once() -> None:
    cat = muontrap.Launcher(["cat"], stdin=muontrap.PIPE, stdout=muontrap.PIPE, text=True, bufsize=0)
    with cat.launch() as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("x\n")
        assert process.stdout.readline() == "x\n"


def test_a_host_with_a_variable_that_has_no_name() -> None:
    """It starts a guard all the same."""
    program = "import muontrap; print(muontrap.run(['env'], capture_output=True, check=True).stdout)"
    variables = {b"": b"x", b"PYTHONPATH": os.fsencode(Path(muontrap.__file__).parents[1]), b"A": b"b"}
    with Environ(Environments({}).strings(variables, inherits=False)):
        said = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, check=True).stdout
    assert b"A=b" in said
