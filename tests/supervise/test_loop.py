"""The loop of a tree by itself: what it calls, in which order, and what it is left with."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from arena import BOUND
from hostlib import open_fds

from muontrap.supervise.loop import READ, WRITE, Loop


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """In place of what is for trees: here the loop has something to complain about."""
    before = open_fds()
    yield
    assert open_fds() == before


@pytest.fixture
def loop() -> Iterator[Loop]:
    one = Loop()
    yield one
    one.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    yield reading, writing
    for fd in reading, writing:
        os.close(fd)


def run(loop: Loop) -> None:
    """Run it until somebody stops it."""
    late = loop.later(2 * BOUND, pytest.fail, "nobody has stopped the loop")
    loop.run()
    loop.cancel(late)


# --- Order and time


def test_what_is_to_be_called_soon_is_called_in_order(loop: Loop) -> None:
    said: list[Any] = []

    def again() -> None:
        said.append("again")
        loop.soon(said.append, "last")
        loop.soon(loop.stop)

    loop.soon(said.append, 1)
    loop.soon(again)
    loop.soon(said.append, 2)
    run(loop)
    assert said == [1, "again", 2, "last"]


def test_timers_are_called_in_time_and_in_the_order_of_their_times(loop: Loop) -> None:
    said: list[str] = []
    begin = time.monotonic()
    for name, seconds in ("c", 0.06), ("a", 0.02), ("stop", 0.08), ("b", 0.04):
        loop.later(seconds, loop.stop if name == "stop" else said.append, *[name][: name != "stop"])
    run(loop)
    assert said == ["a", "b", "c"]
    assert 0.08 <= time.monotonic() - begin < BOUND


@pytest.mark.parametrize("seconds", [-5, 0, -float("inf")])
def test_a_time_that_has_passed_is_now(loop: Loop, seconds: float) -> None:
    loop.later(seconds, loop.stop)
    run(loop)


@pytest.mark.parametrize("seconds", [1e9, 1e300, float("inf")])
def test_a_time_that_never_comes_keeps_nobody_from_waiting(loop: Loop, seconds: float) -> None:
    loop.later(seconds, pytest.fail)
    threading.Timer(0.05, loop.from_thread, [loop.stop]).start()
    loop.run()


def test_a_cancelled_timer_is_not_called_whenever_that_is(loop: Loop) -> None:
    said: list[str] = []
    first = loop.later(0, said.append, "first")
    third = loop.later(0.02, said.append, "third")
    loop.later(0.01, loop.cancel, third)
    loop.cancel(first)
    loop.cancel(first)
    loop.cancel(None)
    last = loop.later(0.04, loop.stop)
    run(loop)
    loop.cancel(last)  # it was called
    assert said == []


def test_cancelled_timers_are_not_kept(loop: Loop) -> None:
    kept = [loop.later(1000, print) for _ in range(10)]
    for _ in range(10_000):
        loop.cancel(loop.later(500, print, "x" * 1000))
    assert len(loop._timers) < 300
    assert all(timer in loop._timers for timer in kept)
    times = iter(range(100))
    for _ in times:  # and they do not outvote those that came later
        loop.later(0, loop.stop)
    run(loop)


def test_a_function_that_wants_to_be_called_for_ever_keeps_no_timer_and_no_descriptor_waiting(
    loop: Loop, pipe: tuple[int, int]
) -> None:
    said: list[str] = []

    def for_ever() -> None:
        loop.soon(for_ever)

    def hear() -> None:
        said.append(os.read(pipe[0], 100).decode())
        loop.later(0, loop.stop)

    for_ever()
    loop.listen(pipe[0], hear)
    os.write(pipe[1], b"x")
    run(loop)
    assert said == ["x"]


# --- Descriptors


def test_a_descriptor_is_listened_to_until_it_is_ignored(loop: Loop, pipe: tuple[int, int]) -> None:
    said: list[bytes] = []

    def hear() -> None:
        said.append(os.read(pipe[0], 1))
        if len(said) == 2:
            loop.ignore(pipe[0])
            loop.ignore(pipe[0])
            loop.later(0.05, loop.stop)

    os.write(pipe[1], b"abc")
    loop.listen(pipe[0], hear)
    run(loop)
    assert said == [b"a", b"b"]


def test_what_is_listened_for_can_be_changed(loop: Loop, pipe: tuple[int, int]) -> None:
    loop.listen(pipe[1], pytest.fail, READ)
    loop.listen(pipe[1], loop.stop, WRITE)
    run(loop)


def test_a_number_that_comes_up_again_in_the_same_batch_is_another_descriptor(loop: Loop) -> None:
    """Both pipes can be read; whichever is served first closes the other, and opens one with its numbers."""
    pipes = {os.pipe() for _ in range(2)}
    said: list[int] = []

    def replace(mine: tuple[int, int]) -> None:
        loop.ignore(mine[0])
        [other] = pipes - {mine}
        loop.ignore(other[0])
        for fd in other:
            os.close(fd)
        assert os.pipe() == other
        loop.listen(other[0], lambda: said.append(os.read(other[0], 1)[0]))
        loop.later(0.05, loop.stop)

    for each in pipes:
        os.write(each[1], b"x")
        loop.listen(each[0], lambda each=each: replace(each))  # type: ignore[misc]
    run(loop)
    assert said == []  # the new one is empty: to read it would block
    for each in pipes:
        for fd in each:
            os.close(fd)


def test_the_other_end_of_one_that_is_written_to_may_go(loop: Loop) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    os.write(writing, b"x" * 2**20)
    loop.listen(writing, loop.stop, WRITE)
    threading.Timer(0.05, os.close, [reading]).start()
    run(loop)
    loop.ignore(writing)
    os.close(writing)


# --- Other threads


def test_calls_from_threads_are_all_made_in_the_order_of_each(loop: Loop) -> None:
    said: list[tuple[int, int]] = []
    threads = [
        threading.Thread(target=lambda me=me: [loop.from_thread(said.append, (me, n)) for n in range(1000)])  # type: ignore[misc]
        for me in range(4)
    ]
    for thread in threads:
        thread.start()

    def look() -> None:
        if len(said) == 4000:
            loop.stop()
        else:
            loop.later(0.001, look)

    look()
    run(loop)
    for me in range(4):
        assert [n for who, n in said if who == me] == list(range(1000))


def test_a_call_from_a_thread_ends_a_wait(loop: Loop) -> None:
    begin = time.monotonic()
    threading.Timer(0.1, loop.from_thread, [loop.stop]).start()
    run(loop)
    assert 0.05 < time.monotonic() - begin < BOUND


def test_an_interrupted_call_holds_up_no_other(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def interrupt(*_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "eventfd_write", interrupt)
    with pytest.raises(KeyboardInterrupt):
        loop.from_thread(calls.append, "interrupted")
    monkeypatch.undo()
    loop.from_thread(calls.append, "next")
    loop.from_thread(loop.stop)
    loop.run()
    assert calls == ["next"]


def test_a_signals_handler_may_ask_in_the_middle_of_the_same(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.eventfd_write
    calls: list[str] = []

    def handle(fd: int, value: int) -> None:
        monkeypatch.undo()
        loop.from_thread(calls.append, "handler")
        write(fd, value)

    monkeypatch.setattr(os, "eventfd_write", handle)
    loop.from_thread(calls.append, "thread")
    loop.from_thread(loop.stop)
    loop.run()
    assert calls == ["handler", "thread"]


def test_who_asks_before_the_end_is_called_and_after_it_is_told(loop: Loop) -> None:
    said: list[str] = []
    loop.soon(loop.stop)
    run(loop)
    assert loop.from_thread(said.append, "before")
    loop.refuse()
    assert not loop.from_thread(said.append, "after")
    assert said == ["before"]


@pytest.mark.parametrize("_", range(50))
def test_whoever_asks_while_it_ends_is_called_or_told(loop: Loop, _: int) -> None:
    answers: list[list[bool]] = [[True], [True]]
    called: list[int] = []
    barrier = threading.Barrier(3)

    def ask(mine: list[bool]) -> None:
        barrier.wait()
        while mine[-1]:
            mine.append(loop.from_thread(called.append, 1))

    threads = [threading.Thread(target=ask, args=[mine]) for mine in answers]
    for thread in threads:
        thread.start()
    barrier.wait()
    loop.later(0.002, loop.stop)
    run(loop)
    loop.refuse()
    for thread in threads:
        thread.join()
    assert len(called) == sum(mine.count(True) - 1 for mine in answers)


# --- What goes wrong, and the end


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_what_a_function_raises_is_logged_and_the_others_are_called(
    loop: Loop, pipe: tuple[int, int], caplog: pytest.LogCaptureFixture, error: type[BaseException]
) -> None:
    said: list[str] = []

    def fail(where: str = "on a descriptor") -> None:
        loop.ignore(pipe[0])
        raise error(where)

    loop.soon(fail, "soon")
    loop.soon(said.append, "soon")
    loop.later(0, fail, "later")
    loop.soon(loop.later, 0.01, said.append, "later")
    os.write(pipe[1], b"x")
    loop.listen(pipe[0], fail)
    loop.from_thread(fail, "from a thread")
    loop.soon(loop.later, 0.05, loop.stop)
    run(loop)
    assert said == ["soon", "later"]
    for where in "soon", "later", "on a descriptor", "from a thread":
        assert f"{error.__name__}: {where}" in caplog.text


def test_a_stop_does_not_wait_for_what_is_pending_and_it_can_go_on(loop: Loop, pipe: tuple[int, int]) -> None:
    said: list[str] = []
    loop.listen(pipe[0], lambda: said.append(os.read(pipe[0], 1).decode()))
    loop.later(1000, pytest.fail)
    loop.soon(loop.soon, said.append, "next time")
    loop.soon(loop.stop)
    run(loop)
    assert said == []
    os.write(pipe[1], b"x")
    loop.later(0.02, loop.stop)
    run(loop)
    assert sorted(said) == ["next time", "x"]


def test_no_descriptor_is_left_and_nothing_is_referred_to(pipe: tuple[int, int]) -> None:
    before = open_fds()
    loop = Loop()
    pending: list[Callable[..., object]] = [lambda: None for _ in range(3)]
    loop.listen(pipe[0], pending[0])
    loop.later(1000, pending[1])
    loop.from_thread(loop.soon, pending[2])
    loop.close()
    assert open_fds() == before
    assert (loop._handlers, loop._timers, list(loop._soon)) == ({}, [], [])
