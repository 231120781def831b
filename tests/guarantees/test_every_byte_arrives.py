"""All that a command wrote before its end arrives, through each way to read, whatever that end is."""

from __future__ import annotations

import functools
import hashlib
import os
import random
import signal
import subprocess

import pytest
from arena import BOUND, Arena, Host, status_of
from hostlib import GRACE, Any, hear, muontrap, say, time
from reading import KEPT, RUN_INTO, WAYS, gives_lines

FULL = os.environ.get("MUONTRAP_FULL") == "1"
FEW = os.environ.get("MUONTRAP_TEST_PAIRS") == "few"
TIMES = 250 if FULL else 1 if FEW else 3  # for each of four choices of streams
ZEROS = 2**31 if FULL else 2**23 if FEW else 2**26
TEXT = 2**30 if FULL else 2**22 if FEW else 2**25

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800 if FULL else 60)]

STREAMS: dict[str, dict[str, Any]] = {
    "stdout": {"stdout": -1},
    "stderr": {"stdout": -3, "stderr": -1},
    "merged": {"stdout": -1, "stderr": -2},
    "apart": {"stdout": -1, "stderr": -1},
}


def own(arena: Arena, started: Host) -> set[int]:
    return {started.pid, *arena.named("muontrap-guard"), *arena.named("muontrap-watch")}


def reading_host(*, jobs: list[dict[str, Any]]) -> None:
    """Run commands, and read each in one way; say what came of it: bytes and SHA-256 of each stream.

    A job has what `Reading` is made of, and may have `times`: all different outcomes are told.
    """
    import hashlib

    from reading import Reading

    def outcome_of(job: dict[str, Any]) -> dict[str, Any]:
        sizes = dict.fromkeys(("stdout", "stderr"), 0)
        sums = {name: hashlib.sha256() for name in sizes}

        def take(name: str, data: bytes) -> None:
            sizes[name] += len(data)
            sums[name].update(data)

        reading = Reading(take=take, **job)
        try:
            outcome = {"returncode": reading.read().returncode}
        except (muontrap.TimeoutExpired, muontrap.GuardDied) as error:
            outcome = {"error": type(error).__name__}
        return {**outcome, **{name: [sizes[name], sums[name].hexdigest()] for name in reading.names}}

    for job in jobs:
        outcomes: list[dict[str, Any]] = []
        for _ in range(job.pop("times", 1)):
            outcome = outcome_of(job)
            if outcome not in outcomes:
                outcomes.append(outcome)
        say(outcomes=outcomes)
    hear()


def all_of(data: bytes, way: str) -> list[Any]:
    """What is to come of these bytes in that way."""
    if gives_lines(way) and not data.endswith(b"\n"):
        data += b"\n"
    return [len(data), hashlib.sha256(data).hexdigest()]


@functools.cache
def text(size: int, seed: int) -> bytes:
    """So many bytes of lines: short ones, empty ones, some that are longer than any read, not all ASCII."""
    rng = random.Random(seed)
    letters = "abcdefghij klmnop \u00e9\u20ac\U0001f600"
    lines = ["".join(rng.choices(letters, k=20_000))]
    while sum(map(len, lines)) < size:
        lines.append("".join(rng.choices(letters, k=rng.choice((0, 1, 20, 80, 80, 200, 1000)))))
    whole = "\n".join(lines).encode()[: size - 1].decode(errors="ignore")
    return whole.encode().ljust(size - 1, b".") + b"\n"


# --- Short output, and the end at once


@pytest.mark.parametrize("way", WAYS)
def test_what_a_command_wrote_just_before_its_end_arrives(arena: Arena, way: str) -> None:
    """Also with a daemon left that holds the pipe open: to stdout, to stderr, to both in one or apart."""
    first, second = text(1_000_000, 1), text(900_001, 2)
    (arena.folder / "first").write_bytes(first)
    (arena.folder / "second").write_bytes(second)
    programs = {
        "zeros": ("head -c 60000 /dev/zero", bytes(60_000), "head -c 59999 /dev/zero", bytes(59_999)),
        "megabyte": ("cat first", first, "cat second", second),
    }
    jobs: list[dict[str, Any]] = []
    expected: list[Any] = []
    for daemon in ("", "(setsid sleep 1000 &); "):
        for write, wrote, write_more, wrote_more in programs.values():
            for streams, options in STREAMS.items():
                if streams in ("stdout", "stderr"):
                    script = f"{daemon} exec {write} {'>&2' if streams == 'stderr' else ''}"
                    came = {streams: wrote}
                else:
                    script = f"{daemon} {write}; exec {write_more} >&2"
                    apart = {"stdout": wrote, "stderr": wrote_more}
                    came = apart if streams == "apart" else {"stdout": wrote + wrote_more}
                line = ["/bin/sh", "-c", script]
                jobs.append({"way": way, "line": line, "options": options, "times": TIMES})
                expected.append({"returncode": 0, **{name: all_of(data, way) for name, data in came.items()}})
    started = arena.host(reading_host, jobs=jobs, env={"PYTHONUTF8": "1"})
    for job, outcome in zip(jobs, expected, strict=True):
        assert started.hear(bound=600)["outcomes"] == [outcome], job
    arena.assert_left(own(arena, started))


# --- Much output


MUCH = {"zeros": (f"head -c {ZEROS} /dev/zero", ZEROS), "text": (f'yes "$0" | head -c {TEXT}', TEXT)}


@functools.cache
def shell_line(script: str) -> list[str]:
    return ["/bin/sh", "-c", script, text(100_000, 6).decode()]


@functools.cache
def sha256sum(script: str) -> str:
    line = shell_line(f"{{ {script}; }} | sha256sum")
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()[0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("much", MUCH)
def test_all_of_much_output_arrives(arena: Arena, much: str, way: str) -> None:
    """Against sha256sum of the same command; an end is added to it where the last line may get one."""
    script, size = MUCH[much]
    end = "; echo" if gives_lines(way) else ""
    job = {"way": way, "line": shell_line(script), "options": {"stdout": -1}}
    answer = arena.host(reading_host, jobs=[job], env={"PYTHONUTF8": "1"}).hear(bound=900)
    expected = [size + bool(end), sha256sum(script + end)]
    assert answer["outcomes"] == [{"returncode": 0, "stdout": expected}]


# --- An end that is not the command's own


def test_a_timeout_delivers_what_came_so_far(arena: Arena) -> None:
    """The last line too, which had no end yet."""
    wrote = text(300_000, 3) + b"and so"
    (arena.folder / "output").write_bytes(wrote)
    line = ["/bin/sh", "-c", "cat output; exec sleep 1000"]
    job = {"line": line, "options": {"stdout": -1, "delay_to_sigkill": GRACE}, "timeout": 0.7}
    ways = ("run", "run-text", *RUN_INTO)
    warming = {"way": "run", "line": ["/bin/true"], "options": {}}
    jobs = [warming, *({"way": way, **job} for way in ways)]
    started = arena.host(reading_host, jobs=jobs, env={"PYTHONUTF8": "1"})
    assert started.hear()["outcomes"] == [{"returncode": 0}]
    for way in ways:
        outcome = {"error": "TimeoutExpired", "stdout": all_of(wrote, way)}
        assert started.hear()["outcomes"] == [outcome], way


def stop(started: Host) -> None:
    """Let a host do nothing at all until SIGCONT."""
    started.signal(signal.SIGSTOP)
    wait_state(started.pid, "T")


def wait_state(pid: int, state: str) -> None:
    """Wait until the kernel says that a process is stopped (T), or asleep (S)."""
    deadline = time.monotonic() + BOUND
    while not status_of(pid)["State"].startswith(state):
        assert time.monotonic() < deadline


def test_what_came_while_the_host_was_stopped_arrives(arena: Arena) -> None:
    """Output and the word of the end are there at the same time, whatever is looked at first."""
    wrote = text(60_000, 4)
    (arena.folder / "output").write_bytes(wrote)
    os.mkfifo(arena.folder / "go")
    script = '(setsid sleep 1000 &); echo ready >"$0"; read -r _ <go; exec cat output'
    line = ["/bin/sh", "-c", script, str(arena.ready)]
    jobs = [{"way": way, "line": line, "options": {"stdout": -1}} for way in WAYS]
    started = arena.host(reading_host, jobs=jobs, env={"PYTHONUTF8": "1"})
    for number, way in enumerate(WAYS, 1):
        arena.wait_ready(number)
        stop(started)
        (arena.folder / "go").write_bytes(b"\n")
        arena.wait_left(own(arena, started))
        started.signal(signal.SIGCONT)
        outcome = {"returncode": 0, "stdout": all_of(wrote, way)}
        assert started.hear()["outcomes"] == [outcome], way


@pytest.mark.parametrize("way", [way for way in WAYS if way not in KEPT])
def test_a_dead_guard_takes_no_output_along(arena: Arena, way: str) -> None:
    """What was written before arrives, and then the error, though both are there at the same time."""
    wrote = text(60_000, 4)
    (arena.folder / "output").write_bytes(wrote)
    os.mkfifo(arena.folder / "go")
    script = 'echo ready >"$0"; read -r _ <go; cat output; echo ready >"$0"; exec sleep 1000'
    job = {"way": way, "line": ["/bin/sh", "-c", script, str(arena.ready)], "options": {"stdout": -1}}
    started = arena.host(reading_host, jobs=[job], env={"PYTHONUTF8": "1"})
    arena.wait_ready()
    stop(started)
    (arena.folder / "go").write_bytes(b"\n")
    arena.wait_ready(2)
    guard = arena.the("muontrap-guard")
    wait_state(guard, "S")  # so it has said that the command was started
    os.kill(guard, signal.SIGKILL)
    arena.wait_left({started.pid})
    started.signal(signal.SIGCONT)
    outcome = {"error": "GuardDied", "stdout": all_of(wrote, way)}
    assert started.hear()["outcomes"] == [outcome]


def test_who_else_holds_the_pipe_does_not_hold_the_end_up(arena: Arena) -> None:
    """This process, which is none of the command's, has the pipe open while the command ends."""
    ways = [way for way in WAYS if way != "file"]
    wrote = text(100_000, 5)
    (arena.folder / "output").write_bytes(wrote)
    os.mkfifo(arena.folder / "end")
    line = ["/bin/sh", "-c", f"cat output; echo ready >{arena.ready}; read -r _ <end; exit 3"]
    jobs = [{"way": way, "line": line, "options": {"stdout": -1}} for way in ways]
    started = arena.host(reading_host, jobs=jobs, env={"PYTHONUTF8": "1"})
    for number, way in enumerate(ways, 1):
        arena.wait_ready(number)
        with open(f"/proc/{arena.the('sh')}/fd/1", "wb"):
            (arena.folder / "end").write_bytes(b"\n")
            outcome = {"returncode": 3, "stdout": all_of(wrote, way)}
            assert started.hear()["outcomes"] == [outcome], way


def test_a_flood_that_was_left_alone_does_not_hold_the_end_up(arena: Arena) -> None:
    """`kill_mode="process"` leaves a child that holds the pipe, and writes on."""
    ways = [way for way in WAYS if way != "file"]
    wrote = text(100_000, 5)
    (arena.folder / "output").write_bytes(wrote)
    line = ["/bin/sh", "-c", "cat output; yes & exit 3"]
    options = {"stdout": -1, "kill_mode": "process"}
    jobs = [{"way": way, "line": line, "options": options} for way in ways]
    started = arena.host(reading_host, jobs=jobs, env={"PYTHONUTF8": "1"})
    for way in ways:
        (outcome,) = started.hear()["outcomes"]
        assert outcome["returncode"] == 3
        assert outcome["stdout"][0] >= len(wrote), way
