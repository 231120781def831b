"""The window between a model of a pipe and consumers; the cap and the deadline."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from muontrap.logic.window import Cap, Inactivity, Window

SIZES = st.integers(1, 40) | st.just(10_240)


class Flow(RuleBasedStateMachine):
    """A command that writes to two pipes with little room, a reader, and consumers who handle later.

    Every byte has its own number, so that one lost, doubled or out of order is seen.
    """

    @initialize(size=SIZES, capacity=st.integers(1, 30))
    def start(self, size: int, capacity: int) -> None:
        self.window = Window(size)
        self.capacity = capacity
        self.written = [0, 0]
        self.pipes: list[list[int]] = [[], []]
        self.waiting: list[list[int]] = [[], []]
        self.handled: list[list[int]] = [[], []]
        self.is_stopped = False  # what a reader believes that only goes by what it is told

    @rule(stream=st.integers(0, 1), count=st.integers(1, 60))
    def the_command_writes(self, stream: int, count: int) -> None:
        """As much as the pipe takes; it blocks with the rest."""
        count = min(count, self.capacity - len(self.pipes[stream]))
        self.pipes[stream] += range(self.written[stream], self.written[stream] + count)
        self.written[stream] += count

    @precondition(lambda self: not self.is_stopped)
    @rule(stream=st.integers(0, 1), wanted=st.integers(1, 60))
    def read(self, stream: int, wanted: int) -> None:
        assert self.window.room > 0
        count = min(wanted, self.window.room, len(self.pipes[stream]))
        self.window.took(count)
        self.waiting[stream] += self.pipes[stream][:count]
        del self.pipes[stream][:count]
        self.is_stopped = self.window.room == 0

    @precondition(lambda self: any(self.waiting))
    @rule(stream=st.integers(0, 1), count=st.integers(1, 60))
    def acknowledge(self, stream: int, count: int) -> None:
        waiting = self.waiting[stream] or self.waiting[1 - stream]
        handled = self.handled[stream if self.waiting[stream] else 1 - stream]
        count = min(count, len(waiting))
        if self.window.handled(count):
            assert self.is_stopped
            self.is_stopped = False
        handled += waiting[:count]
        del waiting[:count]

    @rule(more=st.integers(1, 60))
    def acknowledge_too_much(self, more: int) -> None:
        before = self.window.unhandled
        for count in (before + more, 0, -more):
            with pytest.raises(ValueError, match=rf" {count} bytes of {before} "):
                self.window.handled(count)
        assert self.window.unhandled == before

    @rule(more=st.integers(1, 60))
    def read_too_much(self, more: int) -> None:
        before = self.window.room
        for count in (before + more, -more):
            with pytest.raises(ValueError, match=rf"{count} bytes .* room for {before}$"):
                self.window.took(count)
        assert self.window.room == before

    @invariant()
    def never_exceeded(self) -> None:
        assert self.window.unhandled == sum(map(len, self.waiting)) <= self.window.size
        assert self.window.room == self.window.size - self.window.unhandled

    @invariant()
    def not_stuck(self) -> None:
        """Reading has stopped exactly while there is no room, and then there is something to handle."""
        assert self.is_stopped == (self.window.room == 0)
        assert not self.is_stopped or any(self.waiting)

    def teardown(self) -> None:
        """Read and handle on until nothing moves: all that was written is there, once, in order."""
        for _ in range(2 * sum(self.written)):
            for stream in (0, 1):
                if self.waiting[stream]:
                    self.acknowledge(stream, 7)
                if not self.is_stopped:
                    self.read(stream, 9)
        assert self.handled == [list(range(count)) for count in self.written]
        assert (self.window.unhandled, self.is_stopped) == (0, False)


TestFlow = Flow.TestCase
TestFlow.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_the_end_of_file_takes_nothing() -> None:
    window = Window(1)
    window.took(1)
    window.took(0)
    assert window.handled(1)


def test_the_size_is_checked() -> None:
    with pytest.raises(ValueError, match="1 byte or more, not 0"):
        Window(0)


@pytest.mark.parametrize("policy", ["stop", "drop"])
@given(chunks=st.lists(st.binary(max_size=9)), most=st.integers(0, 40))
def test_the_first_bytes_are_kept(policy: str, chunks: list[bytes], most: int) -> None:
    cap = Cap(most, policy)  # type: ignore[arg-type]
    kept, total = b"", 0
    for chunk in chunks:
        kept += cap.take(chunk)
        total += len(chunk)
        assert kept == b"".join(chunks)[: min(most, total)]
        assert cap.dropped == max(total - most, 0)
        assert cap.is_exceeded == (total > most)
        assert cap.must_stop == (policy == "stop" and total > most)


def test_nothing_came_that_is_too_much() -> None:
    assert not Cap(0, "stop").must_stop


@pytest.mark.parametrize(("most", "policy", "named"), [(-1, "stop", "-1"), (1, "halt", "'halt'")])
def test_the_cap_is_checked(most: int, policy: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Cap(most, policy)  # type: ignore[arg-type]


def test_each_output_moves_the_deadline() -> None:
    inactivity = Inactivity(2.0, 10.0)
    assert inactivity.deadline == 12.0
    inactivity.restart(11.5)
    assert not inactivity.is_late(13.4)
    assert inactivity.is_late(13.5)


def test_who_may_not_write_is_not_inactive() -> None:
    inactivity = Inactivity(2.0, 10.0)
    inactivity.pause()
    assert inactivity.deadline is None
    assert not inactivity.is_late(1e9)
    inactivity.restart(20.0)
    assert [inactivity.is_late(21.9), inactivity.is_late(22.0)] == [False, True]


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_the_time_is_checked(seconds: float) -> None:
    with pytest.raises(ValueError, match=f"not {seconds!r}"):
        Inactivity(seconds, 0.0)
