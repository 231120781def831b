"""G4: of a command's output, no more is read than the window has room for, however slow the consumer is."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import pytest
from arena import BOUND, Arena, Host, read_stat, read_text, status_of
from hostlib import GRACE, Any, hear, kind, muontrap, open_fds, say, threading

FULL = os.environ.get("MUONTRAP_FULL") == "1"
SECONDS = 5.0 if FULL else 1.0
SPEED = 1e6  # bytes/s
FLOODS = 200
WINDOW = 10_240  # where no other is asked for

pytestmark = pytest.mark.slow


def own(arena: Arena, started: Host) -> set[int]:
    return {started.pid, *arena.named("muontrap-guard"), *arena.named("muontrap-watch")}


def is_blocked_in_write(pid: int) -> bool:
    """Whether a process sleeps in write(2) to a pipe.

    The kernel's function is pipe_write, or anon_pipe_write since 6.15.  A kernel that hides it may
    show the system call; `yes` makes none with descriptor 1 but write, whatever its number is here.
    """
    call = read_text(f"/proc/{pid}/syscall").split()
    function = read_text(f"/proc/{pid}/wchan")
    return read_stat(f"/proc/{pid}/stat")[0] == "S" and (
        function.endswith("pipe_write") or (function in ("", "0") and call[1:2] == ["0x1"])
    )


def wait_blocked(pid: int) -> None:
    """Wait until it is: no event says so."""
    deadline = time.monotonic() + BOUND
    while not is_blocked_in_write(pid):
        assert time.monotonic() < deadline, f"{read_text(f'/proc/{pid}/wchan')}: {status_of(pid)}"


def kibibytes(pid: int, name: str) -> int:
    return int(status_of(pid)[name].split()[0])


# --- One slow consumer


def slow_host(*, way: str, speed: float, rest: float, seconds: float, options: dict[str, Any]) -> None:
    """Read `yes` with so many bytes/s for so long, then not at all until told to stop it; once before
    to warm up.

    The reader rests only when it is that many seconds ahead.
    """
    from reading import Reading

    class Enough(Exception):
        pass

    def read(seconds: float, *, is_warm: bool) -> None:
        begin = time.monotonic()
        total = 0

        def take(_: str, data: bytes) -> None:
            nonlocal total
            total += len(data)
            early = begin + total / speed - time.monotonic()
            if early > rest:
                time.sleep(early)
            if time.monotonic() > begin + seconds:
                if is_warm:
                    say(total=total)
                    hear()
                raise Enough

        with contextlib.suppress(Enough):
            Reading(way, ["yes"], {"stdout": -1, "delay_to_sigkill": GRACE, **options}, take).read()

    read(0.2, is_warm=False)
    say(warm=True)
    hear()
    read(seconds, is_warm=True)
    say(stopped=True)
    hear()


WAYS = ("chunks", "lines", "ends", "callback", "explicit-ack", "run-callable", "launch-callable")


@pytest.mark.parametrize(
    ("way", "window"),
    [*((way, WINDOW) for way in WAYS), ("chunks", 2**20), ("ends", 2**20), ("explicit-ack", 2**20)],
)
def test_a_slow_consumer_holds_the_command_back(arena: Arena, way: str, window: int) -> None:
    options = {} if window == WINDOW else {"stdio_window": window}
    started = arena.host(slow_host, way=way, speed=SPEED, rest=0, seconds=SECONDS, options=options)
    assert started.hear() == {"warm": True}
    # Peak memory counts from here. Where the kernel can't forget the peak before, that counts too.
    with contextlib.suppress(FileNotFoundError):
        Path(f"/proc/{started.pid}/clear_refs").write_text("5", encoding="ascii")
    before = kibibytes(started.pid, "VmRSS")
    started.order("go")
    deadline = time.monotonic() + BOUND
    while not (found := arena.named("yes")):
        assert time.monotonic() < deadline
    wait_blocked(found[0])
    total = started.hear(bound=SECONDS + BOUND)["total"]
    growth = kibibytes(started.pid, "VmHWM") - before
    assert 0.1 * SPEED < total < (SECONDS + BOUND) * SPEED
    assert growth < window / 1024 + 1000, f"{growth} KiB more"
    assert arena.the("yes") == found[0]
    wait_blocked(found[0])
    assert started.ask("stop") == {"stopped": True}
    arena.assert_left(own(arena, started))


# --- The window


def window_host(*, window: int, line: list[str], streams: list[str], count: int) -> None:
    """Take `count` bytes of endless output, acknowledge them late and in any pieces; tell the most
    that was unhandled.
    """
    import random

    rng = random.Random(window)
    changed = threading.Condition()
    given = dict.fromkeys(streams, 0)
    handled = most = 0
    wrong: list[str] = []

    def taker(stream: str):
        def take(data: bytes) -> None:
            nonlocal most
            with changed:
                at = given[stream] % 2
                given[stream] += len(data)
                most = max(most, unhandled())
                if data != (b"y\n" * (len(data) // 2 + 1))[at : at + len(data)]:
                    wrong.append(f"{stream} at {given[stream]}: {data[:40]!r}")
                changed.notify()

        return take

    def unhandled() -> int:
        return sum(given.values()) - handled

    launcher = muontrap.Launcher(line, stdio_window=window, delay_to_sigkill=GRACE)
    takers = {f"on_{stream}": taker(stream) for stream in streams}
    with launcher.launch(**takers, explicit_ack=True) as process:
        while process.poll() is None or unhandled():
            with changed:
                changed.wait_for(unhandled, timeout=0.1)
                piece = min(rng.randint(0, unhandled()) + 1, unhandled())
                handled += piece
            most = max(most, process.reader.unhandled)
            if piece:
                process.reader.ack(piece)
            if handled >= count > 0 and all(given.values()):
                process.kill()
                count = 0
        say(
            most=most, wrong=wrong[:3], all_came=all(given.values()), left=unhandled(),
            too_much=kind(lambda: process.reader.ack(1))[0],
        )  # fmt: skip
    hear()


@pytest.mark.parametrize("streams", [["stdout"], ["stdout", "stderr"]], ids=["stdout", "both"])
@pytest.mark.parametrize("window", [1, 1000, WINDOW, 2**20])
def test_the_window_is_never_exceeded(arena: Arena, window: int, streams: list[str]) -> None:
    line = ["yes"] if len(streams) == 1 else ["/bin/sh", "-c", "yes & exec yes >&2"]
    count = min(1000 * window, 2**24)
    started = arena.host(window_host, window=window, line=line, streams=streams, count=count)
    answer = started.hear(bound=40)
    arena.assert_left(own(arena, started))
    assert 0 < answer.pop("most") <= window
    assert answer == {"wrong": [], "all_came": True, "left": 0, "too_much": "ValueError"}


# --- A command that blocks in write is not inactive


def test_who_blocks_in_write_is_not_inactive(arena: Arena) -> None:
    """The consumer rests again and again for longer than the command may be silent."""
    # Small, so that each way to read looks at the time often.
    options = {"inactivity_timeout": 0.25, "stdio_window": 2000}
    arguments = {"speed": 2e5, "rest": 0.5, "seconds": 1.2, "options": options}
    hosts = {way: arena.host(slow_host, way=way, **arguments) for way in WAYS}
    for started in hosts.values():
        assert started.hear() == {"warm": True}
        started.order("go")
    for way, started in hosts.items():
        assert started.hear().get("total"), f"{way}: stopped, as if it were silent"
    assert len(arena.named("yes")) == len(WAYS)


# --- Many at once


def floods_host(*, count: int, enough: int) -> None:
    """Let that many commands flood callbacks, until each had enough, and again; tell how it stands."""
    launcher = muontrap.Launcher(["yes"], delay_to_sigkill=GRACE)
    changed = threading.Condition()
    taken: list[int] = []
    goal = enough

    def launch() -> muontrap.Process:
        number = len(taken)
        taken.append(0)

        def take(data: bytes) -> None:
            before = taken[number]
            taken[number] += len(data)
            if before < goal <= taken[number]:
                with changed:
                    changed.notify()

        return launcher.launch(on_stdout=take)

    def tell(**what: Any) -> None:
        with changed:
            all_progress = changed.wait_for(lambda: min(taken) >= goal, timeout=40)
        threads = sorted(thread.name for thread in threading.enumerate())
        say(all_progress=all_progress, threads=threads, fds=len(open_fds()), **what)
        hear()

    with launch():  # to warm up
        tell()
    del taken[:]
    processes = [launch() for _ in range(count)]
    tell()
    goal = max(taken) + enough
    tell()
    for process in processes:
        process.kill()
    for process in processes:
        process.close()
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(10)
    tell(reasons=sorted({process.result.reason for process in processes}))


def test_two_hundred_floods_share_one_pump(arena: Arena) -> None:
    """Each consumer makes progress; neither threads nor memory become more, however much flows."""
    started = arena.host(floods_host, count=FLOODS, enough=10 * WINDOW)
    threads = ["MainThread", "muontrap-pump", "muontrap-standby"]
    alone = started.hear()
    assert alone["all_progress"]
    assert alone["threads"] == threads
    sizes = [kibibytes(started.pid, "VmRSS")]
    for _ in range(2):
        started.order("go")
        answer = started.hear(bound=45)
        sizes.append(kibibytes(started.pid, "VmHWM"))
        assert answer["all_progress"]
        assert answer["threads"] == threads
        assert len(arena.named("yes")) == FLOODS
    assert sizes[1] - sizes[0] < FLOODS * WINDOW / 1024 + 1000, sizes
    assert sizes[2] - sizes[1] < 1000, sizes
    started.order("go")
    answer = started.hear(bound=45)
    arena.assert_left(own(arena, started))
    assert answer["reasons"] == ["stopped"]
    assert answer["threads"] == ["MainThread"]
    of_the_guard = alone["fds"] - 4  # of the one command: its status, pidfd, pipe and end
    assert answer["fds"] == of_the_guard
