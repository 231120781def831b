"""Callbacks: one thread for all commands; what a callback does that blocks, raises, or asks for the end."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from arena import BOUND, Arena, is_alive, wait_readable
from hostlib import GRACE, close_idle_channels, hear, kind, muontrap, open_fds, say
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import muontrap.host.delivery
import muontrap.host.link
import muontrap.host.pump
import muontrap.host.status
from muontrap import PIPE, Launcher, Process
from muontrap.logic.command import DEFAULT_WINDOW

pytestmark = pytest.mark.slow

NOISE = 2.0  # seconds that a loaded machine may add to a bound


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


ECHO = Launcher(["echo", "x"])
STAYS = Launcher(sh("echo x; exec sleep 1000"))
YES = Launcher(["yes"])


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("muontrap")]


def join_ours() -> None:
    """Wait until the pump's threads have ended, as nobody needs them."""
    while threads := ours():  # one may start another, before it ends
        for thread in threads:
            thread.join(BOUND)
            assert not thread.is_alive()


def wait_both() -> list[threading.Thread]:
    """Wait until the pump's first thread has started the second."""
    deadline = time.monotonic() + BOUND
    while len(ours()) < 2:
        assert time.monotonic() < deadline
    return sorted(ours(), key=lambda thread: thread.name)


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """No thread and no descriptor more than before."""
    muontrap.start_guard()
    join_ours()
    gc.collect()
    close_idle_channels()
    before = open_fds()
    yield
    gc.collect()
    join_ours()
    close_idle_channels()
    assert open_fds() == before


class Blocker:
    """A callback that says that it was called, and returns when it is released."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.released = threading.Event()
        self.data = b""

    def __call__(self, data: bytes) -> None:
        self.data += data
        self.called.set()
        assert self.released.wait(4 * BOUND)

    def wait(self) -> None:
        assert self.called.wait(BOUND)


@pytest.fixture
def blockers() -> Iterator[list[Blocker]]:
    """Three of them, which are released at the end whatever happens."""
    made = [Blocker() for _ in range(3)]
    yield made
    for blocker in made:
        blocker.released.set()


def wait_done(process: Process) -> None:
    """Wait until callbacks have all, or one has raised."""
    assert process.reader is not None
    assert wait_readable([process.reader.fileno()], time.monotonic() + BOUND)


# --- What callbacks are given


def test_callbacks_get_all_of_each_stream_in_order() -> None:
    data = b"".join(b"%d\n" % number for number in range(60_000))
    out, err = [], []
    with Launcher(["tee", "/dev/stderr"], stdin=PIPE).launch(
        on_stdout=out.append, on_stderr=err.append
    ) as process:
        assert process.stdin is not None
        process.stdin.write(data)
        process.stdin.close()
        assert process.wait(4 * BOUND) == 0
    assert b"".join(out) == b"".join(err) == data
    assert all(0 < len(piece) <= DEFAULT_WINDOW for piece in out + err)


def test_all_commands_have_one_thread_which_is_not_that_of_the_launch() -> None:
    threads: set[int] = set()
    names: set[str] = set()

    def note(_: bytes) -> None:
        threads.add(threading.get_ident())
        names.add(threading.current_thread().name)

    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(STAYS.launch(on_stdout=note)) for _ in range(20)]
        assert [thread.name for thread in wait_both()] == ["muontrap-pump", "muontrap-standby"]
        assert all(thread.daemon for thread in ours())
        for process in processes:
            process.kill()
            process.wait(BOUND)
    assert names == {"muontrap-pump"}
    assert threading.get_ident() not in threads


def test_a_command_has_one_call_at_a_time(blockers: list[Blocker]) -> None:
    """Both streams, also while a call lasts so long that other threads serve the others."""
    blocker, busy, most, calls = blockers[0], 0, 0, 0
    enough = threading.Event()

    def take(_: bytes) -> None:
        nonlocal busy, most, calls
        busy += 1
        most = max(most, busy)
        calls += 1
        if calls == 3:
            blocker(b"")
        elif calls == 100:
            enough.set()
        busy -= 1

    with Launcher(sh("yes & yes >&2")).launch(on_stdout=take, on_stderr=take):
        blocker.wait()
        for _ in range(5):
            with ECHO.launch(on_stdout=lambda _: None) as other:
                other.wait(BOUND)
        assert calls == 3
        blocker.released.set()
        assert enough.wait(BOUND)
    assert most == 1


def test_one_stream_may_have_a_callback_and_the_other_none() -> None:
    out: list[bytes] = []
    launcher = Launcher(sh("echo out; echo err >&2; cat"), stdin=PIPE, stderr=PIPE)
    with launcher.launch(on_stdout=out.append) as process:
        assert process.stdout is None
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"in\n")
        process.stdin.close()
        assert process.stderr.read() == b"err\n"
        process.wait(BOUND)
    assert b"".join(out) == b"out\nin\n"


def test_without_callbacks_there_is_no_thread() -> None:
    with Launcher(["/bin/true"], stdout=PIPE).launch() as process:
        assert process.reader is None
        assert ours() == []


def test_a_launch_that_fails_leaves_nothing() -> None:
    with pytest.raises(FileNotFoundError):
        Launcher(["/no/such/program"]).launch(on_stdout=print)


def test_what_a_command_wrote_comes_whoever_holds_the_pipe() -> None:
    out: list[bytes] = []
    launcher = Launcher(sh("sleep 1000 & echo $!; exec head -c 100000 /dev/zero"), kill_mode="process")
    with launcher.launch(on_stdout=out.append) as process:
        process.wait(BOUND)
    holder, _, zeros = b"".join(out).partition(b"\n")
    os.kill(int(holder), signal.SIGKILL)
    assert zeros == 100_000 * b"\0"


@pytest.mark.parametrize("window", [1, 5000, 2**20])
def test_every_byte_of_commands_that_end_at_once(window: int) -> None:
    for size in (0, 1, 4096, 10_240, 10_241):
        out: list[bytes] = []
        launcher = Launcher(
            ["head", "-c", str(size if window > 1 else size // 10), "/dev/zero"], stdio_window=window
        )
        with launcher.launch(on_stdout=out.append) as process:
            process.wait(BOUND)
        assert b"".join(out) == (size if window > 1 else size // 10) * b"\0"


# --- A callback that blocks


def test_a_callback_that_blocks_holds_up_its_own_command_alone(blockers: list[Blocker]) -> None:
    first, second = blockers[0], []
    with STAYS.launch(on_stdout=first) as process, YES.launch(on_stdout=first):
        first.wait()
        for number in range(10):
            with Launcher(["echo", str(number)]).launch(on_stdout=second.append) as other:
                assert other.wait(BOUND) == 0
        assert second == [b"%d\n" % number for number in range(10)]
        assert process.poll() is None
        first.released.set()


def test_three_block_at_once_and_go_on_when_released(blockers: list[Blocker]) -> None:
    second: list[bytes] = []
    launchers = [Launcher(sh(f"echo {name}; read -r _; echo more"), stdin=PIPE) for name in "abc"]
    with contextlib.ExitStack() as stack:
        processes = []
        for launcher, blocker in zip(launchers, blockers, strict=True):
            processes.append(stack.enter_context(launcher.launch(on_stdout=blocker)))
            blocker.wait()
        with ECHO.launch(on_stdout=second.append) as other:
            assert other.wait(BOUND) == 0
        assert len(ours()) == 3 + 2
        for process, blocker in zip(processes, blockers, strict=True):
            assert process.stdin is not None
            process.stdin.close()
            with pytest.raises(muontrap.TimeoutExpired):
                process.wait(0.01)
            assert process.poll() is None
            blocker.released.set()
        for process, blocker, name in zip(processes, blockers, b"abc", strict=True):
            assert process.wait(BOUND) == 0
            assert blocker.data == b"%c\nmore\n" % name
    assert second == [b"x\n"]


def test_who_was_slow_gets_a_thread_of_its_own_until_it_is_quick(blockers: list[Blocker]) -> None:
    """So that one who is always slow does not hold up the others each time."""
    names: list[str] = []
    called = threading.Semaphore(0)

    def take(data: bytes) -> None:
        names.append(threading.current_thread().name)
        if not blockers[0].called.is_set():
            blockers[0](data)
        called.release()

    with Launcher(["cat"], stdin=PIPE, bufsize=0).launch(on_stdout=take) as process:
        assert process.stdin is not None
        process.stdin.write(b"x")
        blockers[0].wait()
        with ECHO.launch(on_stdout=lambda _: None) as other:
            other.wait(BOUND)
        blockers[0].released.set()
        assert called.acquire(timeout=BOUND)
        while len(names) < 2 or (
            names[-1] == "muontrap-slow" and len(names) < 100
        ):  # the machine may be slow
            process.stdin.write(b"x")
            assert called.acquire(timeout=BOUND)
    assert (names[:2], names[-1]) == (["muontrap-pump", "muontrap-slow"], "muontrap-pump")


def test_wait_and_poll_wait_for_the_callback_of_a_command_that_is_gone(blockers: list[Blocker]) -> None:
    blocker = blockers[0]
    with ECHO.launch(on_stdout=blocker) as process:
        blocker.wait()
        assert wait_readable([process.pidfd], time.monotonic() + BOUND)
        with pytest.raises(muontrap.TimeoutExpired):
            process.wait(0.1)
        assert process.poll() is None
        assert process.reader is not None
        assert not process.reader.is_done
        assert select.select([process, process.reader], [], [], 0)[0] == []
        blocker.released.set()
        assert wait_readable([process.fileno()], time.monotonic() + BOUND)
        assert process.poll() == 0
        assert process.wait(0) == 0
        assert process.reader.is_done
        assert select.select([process.reader], [], [], 0)[0]


def test_stop_does_not_wait_for_callbacks(blockers: list[Blocker]) -> None:
    with STAYS.launch(on_stdout=blockers[0]) as process:
        blockers[0].wait()
        assert process.stop().reason == "stopped"
        blockers[0].released.set()


def test_close_waits_a_second_for_a_callback(blockers: list[Blocker]) -> None:
    """And the callback then returns into something that is closed."""
    blocker = blockers[0]
    process = Launcher(sh("echo x; echo y >&2; exec yes")).launch(on_stdout=blocker, on_stderr=blocker)
    blocker.wait()
    begin = time.monotonic()
    process.close()
    assert 0.9 < time.monotonic() - begin < 1.0 + NOISE
    assert not is_alive(process.pid)
    with ECHO.launch(on_stdout=lambda _: None) as other:  # which may have the descriptors of the first
        other.wait(BOUND)
    blocker.released.set()


def test_close_has_callbacks_get_the_rest() -> None:
    """What the command wrote while it was being stopped."""
    out: list[bytes] = []
    begun = threading.Event()

    def take(data: bytes) -> None:
        out.append(data)
        begun.set()

    script = "trap 'head -c 50000 /dev/zero; exit' TERM; printf x; sleep 1000 & wait"
    with Launcher(sh(script)).launch(on_stdout=take):
        assert begun.wait(BOUND)
    assert b"".join(out) == b"x" + 50_000 * b"\0"


def test_callbacks_get_the_rest_also_after_an_exception() -> None:
    """The command's last words are wanted most then."""
    out: list[bytes] = []
    begun = threading.Event()

    def take(data: bytes) -> None:
        out.append(data)
        begun.set()
        time.sleep(0.05)  # it works that long

    def fail(process: Process) -> None:
        with process:
            assert begun.wait(BOUND)
            raise KeyError("block")

    script = "trap 'head -c 50000 /dev/zero; exit' TERM; printf x; sleep 1000 & wait"
    process = Launcher(sh(script)).launch(on_stdout=take)
    with pytest.raises(KeyError, match="block"):
        fail(process)
    assert b"".join(out) == b"x" + 50_000 * b"\0"


def test_another_thread_may_close_what_this_one_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """At any instant; here, just after this one has seen that callbacks have not had all."""
    given = threading.Event()
    process = YES.launch(on_stdout=lambda _: given.set(), explicit_ack=True)
    assert given.wait(BOUND)
    closer = threading.Thread(target=process.close)
    is_done = muontrap.host.delivery.Reader.is_done.fget  # type: ignore[attr-defined]

    def look(reader: muontrap.Reader) -> bool:
        seen = bool(is_done(reader))
        if threading.current_thread() is not closer:
            if closer.ident is None:
                closer.start()
            closer.join(BOUND)
        return seen

    monkeypatch.setattr(muontrap.host.delivery.Reader, "is_done", property(look))
    assert process.wait(BOUND) == -signal.SIGTERM


def test_many_slow_floods_are_not_inactive() -> None:
    """Each waits longer for its turn than it may be silent; what it wrote meanwhile is in its pipe."""
    turns = [0] * 10
    changed = threading.Event()
    launcher = Launcher(["yes"], inactivity_timeout=0.1)

    def taker(number: int) -> Callable[[bytes], None]:
        def take(_: bytes) -> None:
            turns[number] += 1
            if min(turns) == 4:
                changed.set()
            if not changed.is_set():
                time.sleep(0.02)  # it works that long

        return take

    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(launcher.launch(on_stdout=taker(number))) for number in range(10)]
        assert changed.wait(2 * BOUND)
    assert {process.result.reason for process in processes if process.result} == {"stopped"}


def test_each_command_has_its_own_time_of_silence() -> None:
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                Launcher(["sleep", "1000"], inactivity_timeout=seconds).launch(on_stdout=print)
            )
            for seconds in (1e12, 0.4, 0.2, 1e12)
        ]
        walls = []
        for process in processes[1:3]:
            process.wait(BOUND)
            assert process.result is not None
            assert process.result.reason == "inactivity"
            walls.append(process.result.usage.wall)
        assert 0.4 <= walls[0] < 0.4 + NOISE
        assert 0.2 <= walls[1] < walls[0]
        assert [process.poll() for process in processes[::3]] == [None, None]


# --- A callback that raises

ERRORS = [ValueError("mine"), SystemExit(3), KeyboardInterrupt("mine")]
errors = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


class Raiser:
    """A callback that raises, always the same."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.calls = 0

    def __call__(self, _: Any) -> None:
        self.calls += 1
        raise self.error.with_traceback(None)


@errors
def test_wait_and_poll_raise_what_a_callback_has_raised(error: BaseException) -> None:
    """Each time; the others go on, the command goes on until it is closed, and that is silent then."""
    raiser, others = Raiser(error), []
    heard = threading.Semaphore(0)

    def take(data: bytes) -> None:
        others.append(data)
        heard.release()

    with YES.launch(on_stdout=raiser) as process, STAYS.launch(on_stdout=take) as second:
        lengths = set()
        for ask in (process.wait, process.wait, process.wait):
            with pytest.raises(type(error)) as caught:
                ask()
            assert caught.value is error
            lengths.add(len(caught.traceback))
        assert len(lengths) == 1
        for ask in (process.poll, lambda: process.wait(0)):
            with pytest.raises(type(error)) as caught:
                ask()
            assert caught.value is error
        assert process.reader is not None
        assert process.reader.error is error
        assert process.reader.is_done
        assert is_alive(process.pid)
        with ECHO.launch(on_stdout=take) as third:
            assert third.wait(BOUND) == 0
        assert all(heard.acquire(timeout=BOUND) for _ in range(2))
        assert second.poll() is None
        process.close()
        assert not is_alive(process.pid)
    assert raiser.calls == 1
    assert others == 2 * [b"x\n"]


@errors
def test_close_raises_it_if_nobody_was_told(error: BaseException) -> None:
    raiser = Raiser(error)
    process = STAYS.launch(on_stdout=raiser)
    wait_done(process)
    with pytest.raises(type(error)) as caught:
        process.close()
    assert caught.value is error
    process.close()
    assert not is_alive(process.pid)


@errors
def test_what_ends_the_block_wins(error: BaseException) -> None:
    def fail(process: Process) -> None:
        with process:
            wait_done(process)
            raise KeyError("block")

    process = STAYS.launch(on_stdout=Raiser(error))
    with pytest.raises(KeyError, match="block") as caught:
        fail(process)
    assert caught.value.__context__ is None
    assert not is_alive(process.pid)


def test_the_callback_of_one_stream_ends_the_reading_of_both() -> None:
    out: list[bytes] = []
    raiser = Raiser(ValueError("mine"))
    launcher = Launcher(sh("echo x >&2; read -r _; echo y; exec sleep 1000"), stdin=PIPE)
    with launcher.launch(on_stdout=out.append, on_stderr=raiser) as process:
        wait_done(process)
        assert process.stdin is not None
        process.stdin.close()
        with pytest.raises(ValueError, match="mine"):
            process.wait(BOUND)
    assert out == []


def test_the_last_line_may_raise() -> None:
    """It comes with the end of the command."""
    raiser = Raiser(ValueError("mine"))
    with Launcher(["printf", "last"]).launch(into=raiser) as process, pytest.raises(ValueError, match="mine"):
        process.wait(BOUND)
    assert raiser.calls == 1


def test_a_blocked_callback_may_raise_at_last(blockers: list[Blocker]) -> None:
    def take(data: bytes) -> None:
        blockers[0](data)
        raise ValueError("mine")

    with STAYS.launch(on_stdout=take) as process:
        blockers[0].wait()
        with ECHO.launch(on_stdout=lambda _: None) as other:
            other.wait(BOUND)
        blockers[0].released.set()
        with pytest.raises(ValueError, match="mine"):
            process.wait(BOUND)


# --- A callback that asks for something


class Asker:
    """A callback that does something with its own process, once it may have that."""

    def __init__(self, ask: Callable[[Process], object]) -> None:
        self.ask = ask
        self.launched = threading.Event()
        self.answered = threading.Event()
        self.answer: Any = None

    def __call__(self, _: bytes) -> None:
        assert self.launched.wait(BOUND)
        if self.answer is None:
            try:
                self.answer = self.ask(self.process) or "done"
            except Exception as error:
                self.answer = error
            self.answered.set()

    def launch(self, launcher: Launcher, **arguments: Any) -> Process:
        self.process = launcher.launch(on_stdout=self, **arguments)
        self.launched.set()
        return self.process


def test_a_callback_may_stop_its_command() -> None:
    asker = Asker(lambda process: process.stop())
    with asker.launch(YES) as process:
        assert process.wait(BOUND) == -signal.SIGTERM
    assert asker.answer.reason == "stopped"
    del asker.process


def test_a_callback_may_close_its_command() -> None:
    """Which is then stopped, closed, and not waited for."""
    begin = time.monotonic()
    asker = Asker(lambda process: process.close())
    process = asker.launch(YES)
    assert asker.answered.wait(BOUND)
    assert asker.answer == "done"
    assert time.monotonic() - begin < 0.9 + GRACE
    assert not is_alive(process.pid)
    process.close()
    del asker.process


@pytest.mark.parametrize("name", ["wait", "poll"])
def test_a_callback_may_not_wait_for_itself(name: str) -> None:
    asker = Asker(lambda process: getattr(process, name)())
    with asker.launch(ECHO) as process:
        assert process.wait(BOUND) == 0
    assert isinstance(asker.answer, RuntimeError)
    assert "can't wait for its own command" in str(asker.answer)
    del asker.process


def test_a_callback_may_launch() -> None:
    """With callbacks, and wait for that."""
    inner: list[bytes] = []

    def ask(_: Process) -> object:
        with ECHO.launch(on_stdout=inner.append) as process:
            process.wait(BOUND)
        return muontrap.run(["echo", "y"], capture_output=True).stdout

    asker = Asker(ask)
    with asker.launch(ECHO) as process:
        assert process.wait(2 * BOUND) == 0
    assert (inner, asker.answer) == ([b"x\n"], b"y\n")
    del asker.process


def test_a_callback_may_acknowledge() -> None:
    total = 0

    def take(data: bytes) -> None:
        nonlocal total
        assert launched.wait(BOUND)
        total += len(data)
        reader = process.reader
        assert reader is not None
        assert reader.unhandled == len(data)
        reader.ack(len(data))

    launched = threading.Event()
    launcher = Launcher(["head", "-c", "1000000", "/dev/zero"], stdio_window=20_000)
    process = launcher.launch(on_stdout=take, explicit_ack=True)
    launched.set()
    with process:
        assert process.wait(BOUND) == 0
    assert total == 1_000_000


# --- Acknowledgement


def test_what_can_not_be_acknowledged() -> None:
    given = threading.Event()
    with Launcher(sh("printf 12345; exec sleep 1000")).launch(
        on_stdout=lambda _: given.set(), explicit_ack=True
    ) as process:
        assert given.wait(BOUND)
        reader = process.reader
        assert reader is not None
        for count in (6, 0, -1):
            with pytest.raises(ValueError, match=f"acknowledge {count} bytes of 5 "):
                reader.ack(count)
        reader.ack(2)
        assert reader.unhandled == 3
        with pytest.raises(ValueError, match="acknowledge 4 bytes of 3 "):
            reader.ack(4)


def test_without_explicit_ack_there_is_nothing_to_acknowledge(blockers: list[Blocker]) -> None:
    with STAYS.launch(on_stdout=blockers[0]) as process:
        blockers[0].wait()
        assert process.reader is not None
        assert process.reader.unhandled == 2
        with pytest.raises(ValueError, match="explicit_ack=True was not given"):
            process.reader.ack(1)
        blockers[0].released.set()


def test_reading_stops_with_the_window_and_goes_on_with_each_acknowledgement() -> None:
    """Also when the command is gone; what is left unacknowledged at the end does not matter."""
    data = bytes(range(200))
    out: list[bytes] = []
    full = threading.Semaphore(0)

    def take(piece: bytes) -> None:
        out.append(piece)
        full.release(len(piece))

    launcher = Launcher(["cat"], stdin=PIPE, stdio_window=40)
    with launcher.launch(on_stdout=take, explicit_ack=True) as process:
        assert process.stdin is not None
        assert process.reader is not None
        process.stdin.write(data)
        process.stdin.close()
        window = 20
        for _ in range(window):
            assert full.acquire(timeout=BOUND)
        assert wait_readable([process.pidfd], time.monotonic() + BOUND)
        with pytest.raises(muontrap.TimeoutExpired):
            process.wait(0.05)
        assert (process.reader.unhandled, sum(map(len, out))) == (window, window)
        for at in range(window, 200):
            process.reader.ack(1)
            assert full.acquire(timeout=BOUND)
            assert sum(map(len, out)) == at + 1
        assert process.wait(BOUND) == 0
        assert process.reader.unhandled == window
        process.reader.ack(window)
    assert b"".join(out) == data


def test_any_thread_may_acknowledge() -> None:
    total = 0
    lock = threading.Condition()
    unhandled = 0

    def take(data: bytes) -> None:
        nonlocal total, unhandled
        with lock:
            total += len(data)
            unhandled += len(data)
            lock.notify_all()

    def claim() -> int:
        nonlocal unhandled
        with lock:
            lock.wait_for(lambda: unhandled or ended)
            piece = min(unhandled, 1000)
            unhandled -= piece
            return piece

    def handle() -> None:
        while piece := claim():
            process.reader.ack(piece)  # type: ignore[union-attr]

    ended = False
    threads = [threading.Thread(target=handle) for _ in range(4)]
    with Launcher(["head", "-c", "500000", "/dev/zero"]).launch(on_stdout=take, explicit_ack=True) as process:
        for thread in threads:
            thread.start()
        assert process.wait(2 * BOUND) == 0
        with lock:
            ended = True
            lock.notify_all()
        for thread in threads:
            thread.join(BOUND)
        assert process.reader is not None
        assert process.reader.unhandled == 0
    assert total == 500_000


@pytest.mark.parametrize("late", [True, False])
def test_closing_what_was_never_acknowledged(late: bool) -> None:
    """Nobody will acknowledge it, so it is not waited for; who does so later does no harm."""
    given = threading.Event()
    process = YES.launch(on_stdout=lambda _: given.set(), explicit_ack=True)
    assert given.wait(BOUND)
    reader = process.reader
    assert reader is not None
    deadline = time.monotonic() + BOUND
    while reader.unhandled < DEFAULT_WINDOW:
        assert time.monotonic() < deadline
    begin = time.monotonic()
    process.close()
    assert time.monotonic() - begin < 0.9
    assert not is_alive(process.pid)
    if late:
        reader.ack(DEFAULT_WINDOW)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    window=st.integers(1, 30),
    steps=st.lists(st.integers(1, 60) | st.integers(-60, -1), max_size=25),
)
def test_any_sequence_of_writes_and_acknowledgements(window: int, steps: list[int]) -> None:
    """Every byte arrives once, in order; the window is never exceeded; nothing is stuck."""
    lock = threading.Condition()
    out = b""
    written = handled = most = 0

    def take(data: bytes) -> None:
        nonlocal out, most
        with lock:
            out += data
            most = max(most, len(out) - handled)
            lock.notify_all()

    with Launcher(["cat"], stdin=PIPE, bufsize=0, stdio_window=2 * window).launch(
        on_stdout=take, explicit_ack=True
    ) as process:
        assert process.stdin is not None
        assert process.reader is not None

        def wait_all_given() -> None:
            with lock:
                assert lock.wait_for(lambda: len(out) == min(written, handled + window), BOUND), (
                    out,
                    handled,
                )

        for step in [*steps, -10_000]:
            if step > 0:
                process.stdin.write(bytes(number % 251 for number in range(written, written + step)))
                written += step
            goal = min(handled - step, written)
            while handled < goal:
                wait_all_given()
                piece = min(goal, len(out)) - handled
                handled += piece
                process.reader.ack(piece)
            wait_all_given()
        process.stdin.close()
        assert process.wait(BOUND) == 0
    assert out == bytes(number % 251 for number in range(written))
    assert most <= window


# --- Garbage


def test_a_process_that_is_dropped_stops_its_command() -> None:
    given = threading.Event()
    process = YES.launch(on_stdout=lambda _: given.set())
    assert given.wait(BOUND)
    pidfd = os.pidfd_open(process.pid)
    with pytest.warns(ResourceWarning, match=f"command {process.pid} still runs"):
        del process
    assert wait_readable([pidfd], time.monotonic() + BOUND)
    os.close(pidfd)


def test_it_is_stopped_also_where_warnings_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """They can't be raised from a finalizer: Python shows them."""
    shown: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(unraisable.exc_type))
    process = STAYS.launch(on_stdout=lambda _: None)
    pidfd = os.pidfd_open(process.pid)
    del process
    assert shown == [ResourceWarning]
    assert wait_readable([pidfd], time.monotonic() + BOUND)
    os.close(pidfd)


def test_a_process_that_is_dropped_while_its_callback_blocks(blockers: list[Blocker]) -> None:
    process = STAYS.launch(on_stdout=blockers[0])
    blockers[0].wait()
    pidfd = os.pidfd_open(process.pid)
    with pytest.warns(ResourceWarning, match="still runs"):
        del process
    assert wait_readable([pidfd], time.monotonic() + BOUND)
    os.close(pidfd)
    blockers[0].released.set()


def test_a_finalizer_waits_for_no_lock() -> None:
    """It may run in a thread that has a lock which the holder of the pump's lock waits for."""
    processes = [STAYS.launch(on_stdout=lambda _: None)]
    pidfd = os.pidfd_open(processes[0].pid)

    def drop() -> None:
        with pytest.warns(ResourceWarning, match="still runs"):
            processes.clear()

    dropper = threading.Thread(target=drop)
    with muontrap.host.pump._pump.lock:
        dropper.start()
        dropper.join(BOUND)
        assert not dropper.is_alive()
    assert wait_readable([pidfd], time.monotonic() + BOUND)
    os.close(pidfd)


def test_what_is_over_is_not_kept() -> None:
    """Not by a deadline that is far away either, while others are served."""
    with STAYS.launch(on_stdout=lambda _: None):
        launcher = Launcher(["echo", "x"], inactivity_timeout=1000)
        with launcher.launch(on_stdout=lambda _: None) as process:
            process.wait(BOUND)
        gone = threading.Event()
        weakref.finalize(process.reader, gone.set)
        del process
        assert gone.wait(BOUND)


def interrupting_host(*, step: int, most: int, events: list[str]) -> None:
    """Run a finalizer that closes a process at each instant of the pump's own code: in one round at
    the first of them, in the next `step` later.

    A finalizer runs wherever a thread allocates: here it does wherever Python's profiler is called.
    """
    import select
    import sys

    class Closer:
        def __init__(self, process: Any) -> None:
            self.process = process

        def __del__(self) -> None:
            self.process.close()

    armed: list[Any] = []
    countdown = 0
    wrong: list[str] = []
    sys.unraisablehook = lambda unraisable: wrong.append(repr(unraisable.exc_value))

    def interrupt(frame: Any, event: str, _: object) -> None:
        nonlocal countdown
        name = frame.f_code.co_filename
        if armed and event in events and name.endswith(("pump.py", "delivery.py", "threading.py")):
            countdown -= 1
            if countdown < 0:
                with contextlib.suppress(IndexError):  # another thread was quicker
                    armed.pop()

    echo = muontrap.Launcher(["echo", "x"])
    stays = muontrap.Launcher(["sleep", "1000"], delay_to_sigkill=GRACE)
    released = threading.Event()
    pidfds = []
    for first in range(0, most, step):
        threading.setprofile(interrupt)
        process = stays.launch(on_stdout=print)
        pidfds.append(os.pidfd_open(process.pid))
        closer = Closer(process)
        del process
        countdown = first
        sys.setprofile(interrupt)
        armed.append(closer)
        del closer
        with (
            echo.launch(on_stdout=lambda _: released.wait(20)) as blocked,
            echo.launch(on_stdout=lambda _: None) as other,
        ):
            other.wait(20)
            released.set()
            blocked.wait(20)
        sys.setprofile(None)
        threading.setprofile(None)
        released.clear()
        is_over = not armed  # asked once: another thread may still take it
        say(first=first, is_over=is_over, wrong=wrong)
        if not is_over:
            break
    armed.clear()
    for pidfd in pidfds:
        select.select([pidfd], [], [], 20)
        os.close(pidfd)
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(20)
    say(threads=threading.active_count(), wrong=wrong)
    hear()


def test_a_finalizer_may_close_a_process_at_any_instant(arena: Arena) -> None:
    """It waits for no thread that waits for it, and leaves nothing half done."""
    hosts = [
        arena.host(interrupting_host, step=3, most=2000, events=events)
        for events in (["call", "return"], ["c_call"])
    ]
    for started in hosts:
        while (answer := started.hear(bound=30)).get("is_over"):
            pass
        if "first" in answer:
            assert answer["first"] > 50
            answer = started.hear(bound=30)
        assert answer == {"threads": 1, "wrong": []}


def test_nobody_waits_who_keeps_the_pump_from_going_on() -> None:
    """As a finalizer does that runs between two lines of the pump's: closing is done a moment later."""
    process = STAYS.launch(on_stdout=lambda _: None)
    pidfd = os.pidfd_open(process.pid)
    with muontrap.host.pump._pump.lock:
        with pytest.raises(RuntimeError, match="this finalizer can't wait"):
            process.wait()
        with pytest.raises(muontrap.TimeoutExpired):
            process.wait(0.01)
        assert process.poll() is None
        process.close()
    assert wait_readable([pidfd], time.monotonic() + BOUND)
    os.close(pidfd)


@pytest.mark.parametrize("arguments", [{}, {"on_stdout": lambda _: None}], ids=["pipe", "callback"])
@pytest.mark.parametrize("args", [["echo", "x"], ["sleep", "1000"]], ids=["ended", "running"])
def test_a_process_in_a_cycle_leaves_no_descriptor(args: list[str], arguments: dict[str, Any]) -> None:
    """Whose finalizer is run after that of its socket, and with another that closes it."""

    class Closer:
        def __init__(self, process: Process) -> None:
            self.process = process
            self.itself = self

        def __del__(self) -> None:
            self.process.close()

    process = Launcher(args, stdout=PIPE).launch(**arguments)
    if args[0] == "echo":
        wait_readable([process.fileno()], time.monotonic() + BOUND)
    Closer(process)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        del process
        gc.collect()


@pytest.mark.parametrize("act", [Process.poll, Process.wait, Process.close], ids=lambda act: act.__name__)
@pytest.mark.parametrize("word", ["started", "ended"])
def test_a_finalizer_may_interrupt_who_asks_for_its_own_command(
    act: Callable[[Process], object], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets an error; nothing hangs, nobody misses what was said, and no descriptor stays."""
    process = Launcher(["sleep", "1000"]).begin()
    if word == "ended":
        process.wait_started(BOUND)
        process.kill()
    errors: list[BaseException] = []

    def interrupted(*args: Any) -> Any:
        packet = receive(*args)
        with pytest.raises(RuntimeError, match="this finalizer, or signal's handler, can't ask") as caught:
            act(process)
        errors.append(caught.value)
        return packet

    receive = muontrap.host.status.receive
    wait_readable([process.fileno()], time.monotonic() + BOUND)
    monkeypatch.setattr(muontrap.host.status, "receive", interrupted)
    if (act, word) == (Process.close, "started"):
        with pytest.raises(ValueError, match="closed before its end"):
            process.poll()
    else:
        assert process.poll() == (-signal.SIGKILL if word == "ended" else None)
    monkeypatch.undo()
    assert len(errors) == 1
    assert process.pid > 0
    process.close()


# --- Many


def test_two_hundred_launches_in_a_loop() -> None:
    """What may stay of them, `nothing_stays` says."""
    out: list[bytes] = []
    for _ in range(200):
        with ECHO.launch(on_stdout=out.append) as process:
            assert process.wait(BOUND) == 0
    assert out == 200 * [b"x\n"]


def test_the_threads_of_one_command_end_though_the_next_is_busy() -> None:
    for _ in range(3):
        join_ours()
        with Launcher(["cat"], stdin=PIPE).launch(on_stdout=lambda _: None) as process:
            first, second = wait_both()
            assert process.stdin is not None
            process.stdin.close()
            process.wait(BOUND)
        first.join(BOUND)
        with YES.launch(on_stdout=lambda _: None):
            second.join(BOUND)
            assert not second.is_alive()


def test_many_threads_launch_at_once() -> None:
    wrong: list[Any] = []

    def launch(number: int) -> None:
        for turn in range(10):
            out: list[str] = []
            args = ["seq", str(number), str(number + turn)]
            with Launcher(args, text=True).launch(into=out) as process:
                process.wait(2 * BOUND)
            if out != [str(each) for each in range(number, number + turn + 1)]:
                wrong.append((number, turn, out))

    threads = [threading.Thread(target=launch, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(6 * BOUND)
        assert not thread.is_alive()
    assert wrong == []


# --- No more threads


@pytest.mark.parametrize("had", [0, 1, 2])
def test_a_host_that_can_have_no_more_threads(
    had: int, monkeypatch: pytest.MonkeyPatch, blockers: list[Blocker]
) -> None:
    """Without any, a launch says so; without one that stands by, a callback that blocks blocks all."""
    real, started = threading.Thread.start, 0

    def start(thread: threading.Thread) -> None:
        nonlocal started
        if started == had:
            raise RuntimeError("can't start new thread")
        started += 1
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    if not had:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            STAYS.launch(on_stdout=print)
        return
    second: list[bytes] = []
    blocker = blockers[0]
    launcher = Launcher(sh("echo x; read -r _; echo more"), stdin=PIPE)
    with launcher.launch(on_stdout=blocker) as process, ECHO.launch(on_stdout=second.append) as other:
        blocker.wait()
        if had == 2:
            assert other.wait(BOUND) == 0
        else:
            with pytest.raises(muontrap.TimeoutExpired):
                other.wait(0.2)
        blocker.released.set()
        assert other.wait(BOUND) == 0
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(BOUND) == 0
    assert (blocker.data, second) == (b"x\nmore\n", [b"x\n"])


def test_who_relied_on_a_thread_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    others: list[Process] = []

    def start(_: threading.Thread) -> None:
        others.append(STAYS.launch(on_stdout=print))
        monkeypatch.undo()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        STAYS.launch(on_stdout=print)
    with others[0], pytest.raises(RuntimeError, match="can't start new thread"):
        others[0].wait(BOUND)


# --- Forks, deaths, ends


def fork_host(*, how: str) -> None:
    """Fork while the pump serves a command, and another one's callback blocks."""
    given = threading.Event()
    blocked, released = threading.Event(), threading.Event()
    out: list[bytes] = []

    def take(data: bytes) -> None:
        out.append(data)
        given.set()

    def block(_: bytes) -> None:
        blocked.set()
        released.wait(20)

    cat = muontrap.Launcher(["cat"], stdin=-1, bufsize=0).launch(on_stdout=take)
    echo = muontrap.Launcher(["echo", "x"]).launch(on_stdout=block)
    blocked.wait(20)
    pid = os.fork()
    if not pid:
        status = 0
        if how == "launch":
            own: list[bytes] = []
            with muontrap.Launcher(["echo", "own"]).launch(on_stdout=own.append) as process:
                process.wait(20)
            status = 7 if own == [b"own\n"] else 8
        elif how == "drop":
            del cat, echo
            gc.collect()
        elif how == "close":
            for process in (cat, echo):
                status += kind(process.wait)[0] != "ValueError"
                process.close()
        os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    cat.stdin.write(b"after\n")
    given.wait(20)
    released.set()
    cat.stdin.close()
    say(status=status, waits=[cat.wait(20), echo.wait(20)], out=[data.decode() for data in out])
    hear()


@pytest.mark.parametrize(("how", "status"), [("launch", 7), ("drop", 0), ("close", 0), ("nothing", 0)])
def test_a_forked_child_does_not_touch_its_parents_pump(arena: Arena, how: str, status: int) -> None:
    """And has one of its own."""
    started = arena.host(fork_host, how=how)
    assert started.hear(bound=30) == {"status": status, "waits": [0, 0], "out": ["after\n"]}


def dead_guard_host() -> None:
    """The guard is killed while a callback blocks."""
    blocked, released = threading.Event(), threading.Event()
    out = b""

    def take(data: bytes) -> None:
        nonlocal out
        out += data
        blocked.set()
        released.wait(20)

    process = muontrap.Launcher(["/bin/sh", "-c", "head -c 50000 /dev/zero; exec sleep 1000"]).launch(
        on_stdout=take
    )
    blocked.wait(20)
    say(blocked=True)
    hear()
    early = kind(lambda: process.wait(0.2))[0]
    released.set()
    late = kind(lambda: process.wait(20))[0]
    say(early=early, late=late, count=len(out), closed=kind(process.close)[0])
    hear()


def test_callbacks_get_the_rest_though_the_guard_was_killed(arena: Arena) -> None:
    started = arena.host(dead_guard_host)
    started.hear()
    os.kill(arena.the("muontrap-guard"), signal.SIGKILL)
    arena.wait_left({started.pid})
    answer = started.ask("go")
    assert answer == {"early": "TimeoutExpired", "late": "GuardDied", "count": 50_000, "closed": "returned"}


def ending_host(*, how: str) -> None:
    """The host comes to its end while its callbacks are called."""
    import collections

    given = threading.Event()
    kept = collections.deque(maxlen=3)

    def take(data: bytes) -> None:
        kept.append(data)
        given.set()
        if how == "blocked":
            threading.Event().wait()

    processes = [
        muontrap.Launcher(["yes"]).launch(on_stdout=take if how == "blocked" else kept.append)
        for _ in range(2)
    ]
    if how == "blocked":
        given.wait(20)
    say(pids=[process.pid for process in processes])
    hear()
    globals()["processes"] = processes


@pytest.mark.parametrize("how", ["served", "blocked"])
def test_a_host_ends_though_callbacks_are_called(arena: Arena, how: str) -> None:
    hosts = [arena.host(ending_host, how=how) for _ in range(4)]
    for started in hosts:
        started.hear()
        started.order("end")
    for started in hosts:
        started.wait_end()
    arena.wait_left()
