"""The ledger against a model of the kernel's numbers: what it calls proved is true."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from muontrap.logic.ledger import Ledger


class Numbers(RuleBasedStateMachine):
    """Pids in a circle, those in use skipped; a guard's launches among what others start.

    Each step along the circle takes a unit of time, or more.
    """

    @initialize(size=st.integers(8, 40), last=st.integers(0, 39))
    def boot(self, size: int, last: int) -> None:
        self.size = size
        self.last = 1 + last % size
        self.ledger = Ledger(self.size)
        self.in_use: set[int] = set()
        self.mains: dict[int, bool] = {}  # pid -> has forked
        self.launched_at: dict[int, int] = {}
        self.now = 0

    def _next(self) -> int:
        """Return how far it is to the number that comes next."""
        return next(
            step
            for step in range(1, self.size + 1)
            if (self.last + step - 1) % self.size + 1 not in self.in_use
        )

    def _allocate(self) -> int:
        step = self._next()
        self.now += step
        self.last = (self.last + step - 1) % self.size + 1
        self.in_use.add(self.last)
        return self.last

    def _has_room(self) -> bool:
        return len(self.in_use) < self.size - 2

    @rule(units=st.integers(0, 50))
    def time_passes(self, units: int) -> None:
        self.now += units

    @precondition(lambda self: self._has_room())
    @rule()
    def launch(self) -> None:
        before = self.now
        pid = self._allocate()
        self.ledger.launched(pid)
        self.mains[pid] = False
        self.launched_at[pid] = before

    @precondition(lambda self: self.mains and self._has_room())
    @rule(index=st.integers(0, 100), lives=st.booleans())
    def a_command_forks_or_makes_a_thread(self, index: int, lives: bool) -> None:
        parent = sorted(self.mains)[index % len(self.mains)]
        self.mains[parent] = True
        self._other(lives)

    @precondition(lambda self: self._has_room())
    @rule(lives=st.booleans())
    def somebody_else_forks(self, lives: bool) -> None:
        self._other(lives)

    def _other(self, lives: bool) -> None:
        pid = self._allocate()
        if not lives:
            self.in_use.discard(pid)

    @precondition(lambda self: self.mains)
    @rule(index=st.integers(0, 100))
    def reap(self, index: int) -> None:
        pid = sorted(self.mains)[index % len(self.mains)]
        del self.mains[pid]
        self.in_use.discard(pid)

    @precondition(lambda self: self.in_use - self.mains.keys())
    @rule(index=st.integers(0, 100))
    def another_ends(self, index: int) -> None:
        others = sorted(self.in_use - self.mains.keys())
        self.in_use.discard(others[index % len(others)])

    @invariant()
    def proved_is_true(self) -> None:
        for pid, has_forked in self.mains.items():
            age = self.now - self.launched_at[pid]
            assert not (self.ledger.never_forked(pid, self.last, age) and has_forked)


TestNumbers = Numbers.TestCase
TestNumbers.settings = settings(stateful_step_count=40)


def test_one_after_the_other() -> None:
    """It proves something: a command alone, and commands that overlap."""
    ledger = Ledger(1)
    for pid in (100, 107, 108, 109):
        ledger.launched(pid)
        assert ledger.never_forked(pid, pid, 0)
    assert [ledger.never_forked(pid, 109, 0) for pid in (100, 107, 108, 109, 110)] == [
        False,
        True,
        True,
        True,
        False,
    ]


def test_after_the_end_of_the_circle() -> None:
    ledger = Ledger(1)
    for pid in (32767, 300, 301):
        ledger.launched(pid)
    assert [ledger.never_forked(pid, 301, 0) for pid in (32767, 300, 301)] == [False, True, True]


@pytest.mark.parametrize("last", [99, 101, 5])
def test_somebody_forked_since(last: int) -> None:
    ledger = Ledger(1)
    ledger.launched(100)
    assert not ledger.never_forked(100, last, 0)


def test_nothing_is_proved_of_nothing() -> None:
    assert not Ledger(1).never_forked(1, 1, 0)


def test_a_run_may_be_older_than_the_circle() -> None:
    """Where launches follow each other for long, it is the age of the command that counts."""
    ledger = Ledger(1)
    for pid in range(100, 200):
        ledger.launched(pid)
    assert ledger.never_forked(198, 199, 0.9)
    assert not ledger.never_forked(100, 199, 1)
