"""G5: a failed launch raises what `subprocess.run` raises, and leaves nothing: no process,
descriptor or thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
from arena import Arena
from commands import ordinary_user
from failures import FAILURES, make_folder
from hostlib import (
    GRACE,
    Any,
    contextlib,
    hear,
    kind,
    muontrap,
    names_of_threads,
    open_fds,
    resource,
    say,
    subprocess,
    threading,
)  # fmt: skip

WAYS: dict[str, dict[str, Any]] = {"spawn": {}, "fork": {"no_new_privs": True}}
if os.getuid() == 0:
    WAYS["credentials"] = {"extra_groups": os.getgroups(), "allow_root": True}

as_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


def failing_host(*, folder: str, ours: dict[str, Any]) -> None:
    """Try each case with `subprocess` and with muontrap, and compare what is open before and after."""
    from failures import FAILURES, fill

    muontrap.run(["/bin/true"], **ours)
    for name, case in FAILURES.items():
        args, options = fill(list(case), folder)
        theirs = kind(lambda: subprocess.run(args, check=False, **options))  # noqa: B023 - called at once
        fds, threads = open_fds(), names_of_threads()
        found = kind(lambda: muontrap.run(args, delay_to_sigkill=GRACE, **options, **ours))  # noqa: B023
        # An idle channel may have been used up.
        same = set(open_fds()) <= set(fds) and names_of_threads() == threads
        say(name=name, theirs=theirs, ours=found, same=same, after=[open_fds(), names_of_threads()])
        hear()
    say(works=muontrap.run(["/bin/echo", "works"], capture_output=True, text=True, **ours).stdout)
    hear()


@pytest.fixture(scope="module", params=WAYS)
def failures(request: pytest.FixtureRequest) -> Iterator[dict[str, dict[str, Any]]]:
    """What became of every case, tried in one host."""
    found = {}
    with Arena() as arena:
        make_folder(arena.folder)
        started = arena.host(failing_host, folder=str(arena.folder), ours=WAYS[request.param])
        for name in FAILURES:
            found[name] = answer = started.hear()
            answer["left"] = arena.explain(
                arena.left({started.pid, *arena.named("muontrap-guard"), *arena.named("muontrap-watch")})
            )
            assert answer["name"] == name
            started.order("next")
        found["works"] = started.hear()
        yield found


@pytest.mark.parametrize("case", FAILURES)
def test_same_exception_as_subprocess_and_nothing_left(
    failures: dict[str, dict[str, Any]], case: str
) -> None:
    found = failures[case]
    theirs, ours = found["theirs"], found["ours"]
    assert theirs != ["returned"]
    if case == "closed-descriptor":  # subprocess finds out in the child, and then blames the program
        theirs, ours = theirs[:2], ours[:2]
    assert ours == theirs
    assert found["left"] == "0 left\n"
    assert found["same"], found["after"]


def test_host_still_works_after_all_those(failures: dict[str, dict[str, Any]]) -> None:
    assert failures["works"] == {"works": "works\n"}


def bad_input_host(*, cases: list[tuple[Any, dict[str, Any]]]) -> None:
    say(kinds=[kind(lambda: muontrap.run(args, **options))[0] for args, options in cases])  # noqa: B023
    hear()


def test_bad_input_starts_nothing_not_even_a_guard(arena: Arena) -> None:
    cases = {
        ("ls -l", ()): "TypeError",
        ((), ()): "ValueError",
        (("true",), (("shell", True),)): "TypeError",
        (("true",), (("no_such_option", 1),)): "TypeError",
        (("true",), (("kill_mode", "gently"),)): "ValueError",
        (("true",), (("delay_to_sigkill", -1),)): "ValueError",
        (("true",), (("delay_to_sigkill", "1"),)): "TypeError",
        (("true",), (("timeout", "1"),)): "TypeError",
        (("true",), (("stop_signal", 99),)): "ValueError",
        (("true",), (("umask", 0o10000),)): "ValueError",
        (("true",), (("nice", 99),)): "ValueError",
        (("true",), (("env", 3),)): "TypeError",
        (("a\0b",), ()): "ValueError",
    }
    pairs = [(args if isinstance(args, str) else list(args), dict(options)) for args, options in cases]
    started = arena.host(bad_input_host, cases=pairs)
    assert dict(zip(cases, started.hear()["kinds"], strict=True)) == cases
    arena.assert_left({started.pid})


@pytest.mark.parametrize("option", ["stdin", "stdout", "stderr", "pass_fds"])
def test_the_descriptor_that_is_not_open_is_named(option: str) -> None:
    with pytest.raises(OSError, match=rf"descriptor 987 in {option}"):
        muontrap.run(["true"], **{option: [987] if option == "pass_fds" else 987})


@pytest.mark.parametrize(("fd", "error"), [("five", TypeError), (None, TypeError), (2**40, OverflowError)])
def test_what_is_no_descriptor_is_named(fd: Any, error: type[Exception]) -> None:
    class File:
        def fileno(self) -> Any:
            return fd

    with pytest.raises(error, match=rf"descriptor {fd!r} in stdout"):
        muontrap.run(["true"], stdout=File())


# --- The machine refuses


def fork_limit_host(*, ours: dict[str, Any]) -> None:
    """Fill the user's limit of processes, then launch: fork says EAGAIN."""
    muontrap.run(["/bin/true"], **ours)
    sleepers = []
    with contextlib.suppress(BlockingIOError):
        while True:
            sleepers.append(subprocess.Popen(["/bin/sleep", "1000"]))
    fds = open_fds()
    theirs = kind(lambda: subprocess.run(["/bin/true"], check=False))
    found = [kind(lambda: muontrap.run(["/bin/true"], **ours)) for _ in range(5)]
    same = set(open_fds()) <= set(fds)  # an idle channel may have been used up
    say(theirs=theirs, ours=found, same=same, sleepers=[sleeper.pid for sleeper in sleepers])
    hear()
    for sleeper in sleepers:
        sleeper.kill()
        sleeper.wait()
    say(status=muontrap.run(["/bin/true"], **ours).returncode)
    hear()


@as_root
@pytest.mark.parametrize("way", ["spawn", "fork"])
def test_fork_refused_for_the_limit_of_processes(arena: Arena, way: str) -> None:
    started = arena.host(fork_limit_host, ours=WAYS[way], **ordinary_user("--nproc=12"))
    answer = started.hear()
    assert answer["theirs"][:2] == ["BlockingIOError", 11]
    assert [found[:2] for found in answer["ours"]] == 5 * [["BlockingIOError", 11]]
    assert answer["same"]
    guards = {arena.the("muontrap-guard"), arena.the("muontrap-watch")}
    arena.assert_left({started.pid, *answer["sleepers"], *guards})
    assert started.ask("free") == {"status": 0}


def guard_limit_host() -> None:
    """No process more is allowed before the guard was ever started."""
    sleepers = []
    with contextlib.suppress(BlockingIOError):
        while True:
            sleepers.append(subprocess.Popen(["/bin/sleep", "1000"]))
    found = []
    for _ in range(4):  # starter, watch and guard fail one after the other
        found.append(kind(lambda: muontrap.run(["/bin/true"]))[0])
        sleeper = sleepers.pop()
        sleeper.kill()
        sleeper.wait()
    # A watch and guard that failed count until pid 1 reaps them, which can take it seconds.
    for sleeper in sleepers:
        sleeper.kill()
        sleeper.wait()
    say(kinds=found)
    hear()
    say(status=muontrap.run(["/bin/true"]).returncode)
    hear()


@as_root
def test_guard_refused_for_the_limit_of_processes(arena: Arena) -> None:
    started = arena.host(guard_limit_host, **ordinary_user("--nproc=12"))
    answer = started.hear()
    assert set(answer["kinds"]) <= {"BlockingIOError", "GuardError", "returned"}
    assert answer["kinds"][0] in {"BlockingIOError", "GuardError"}
    arena.wait_left({started.pid, *arena.named("muontrap-guard"), *arena.named("muontrap-watch")}, bound=2)
    assert started.ask("go on") == {"status": 0}


def descriptor_limit_host(*, warm: bool, ours: dict[str, Any]) -> None:
    """Leave the host 0, 1, 2 ... free descriptors, until a launch works."""
    limit = 64
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    if warm:
        muontrap.run(["/bin/true"], **ours)
    for free in range(30):
        taken = []
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        for _ in range(free):
            os.close(taken.pop())
        found = kind(lambda: muontrap.run(["/bin/echo", "x"], capture_output=True, **ours))
        probe = []
        with contextlib.suppress(OSError):
            while True:
                probe.append(os.open("/dev/null", os.O_RDONLY))
        for fd in [*taken, *probe]:
            os.close(fd)
        say(free=free, found=found[:2], still_free=len(probe))
        hear()
        if found == ["returned"]:
            break
    hear()


def guards_limit_host(*, interpreter: str) -> None:
    """Launch, in a thread, until the guard has no descriptor left."""
    from muontrap.host import link

    os.environ["MUONTRAP_PYTHON"] = interpreter
    muontrap.start_guard()
    assert link._links.current is not None
    guard = link._links.current.hello.guard_pid
    running: list[Any] = []
    found: list[Any] = []

    def launch_many() -> None:
        while not found and len(running) < 40:
            launched = kind(lambda: running.append(muontrap.Launcher(["sleep", "1000"]).launch()))
            found.extend([] if launched == ["returned"] else [launched])

    thread = threading.Thread(target=launch_many)
    thread.start()
    thread.join()
    passed = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    long = muontrap.Launcher(["true", *10 * [100_000 * "x"]], pass_fds=passed)
    in_parts = kind(long.launch)
    for process in running:
        process.close()
    again = kind(lambda: muontrap.run(["/bin/true"], check=True))
    say(
        found=found[0][:2],
        in_parts=in_parts[:2],
        again=again,
        same=link._links.current.hello.guard_pid == guard,
    )
    hear()


def test_descriptor_limit_reached_in_the_guard(arena: Arena) -> None:
    """It needs one to read what a thread other than the first may do, and some for a request in parts."""
    python = arena.folder / "python"
    python.write_text(f'#!/bin/sh\nulimit -n 40\nexec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    answer = arena.host(guards_limit_host, interpreter=str(python)).hear()
    refused = ["OSError", 24]
    assert answer == {"found": refused, "in_parts": refused, "again": ["returned"], "same": True}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_descriptor_limit_reached_in_the_host(arena: Arena, warm: bool, way: str) -> None:
    started = arena.host(descriptor_limit_host, warm=warm, ours=WAYS[way])
    while True:
        answer = started.hear()
        own = {started.pid, *arena.named("muontrap-guard"), *arena.named("muontrap-watch")}
        arena.wait_left(own, bound=2)
        if answer["found"] == ["returned"]:
            break
        assert answer["found"] == ["OSError", 24], answer
        if warm or not arena.named("muontrap-guard"):
            assert answer["still_free"] == answer["free"], answer
        started.order("next")
    assert answer["free"] > 2
