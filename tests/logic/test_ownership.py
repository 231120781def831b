"""The rule of descent, tag and time, against a model of processes that knows the true owners.

The model is the kernel's part (birth with the parent's tag, orphans to the guard, a clock in ticks
in which much happens at once) and the guard's (what it kills, and when).
"""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from muontrap.logic.ownership import NOBODY, claimants

GUARD, NESTED = 7, 8
NUMBERS = st.integers(1, 5)
RUNNING = st.dictionaries(NUMBERS, st.integers(0, 6), max_size=5)


@given(number=NUMBERS, start=st.integers(0, 6), running=RUNNING)
def test_a_tag_decides_alone(number: int, start: int, running: dict[int, int]) -> None:
    expected = {number} if number in running else NOBODY
    assert claimants((GUARD, number), start, GUARD, running) == expected
    assert claimants((NESTED, number), start, GUARD, running) == NOBODY


@given(start=st.integers(0, 6), running=RUNNING)
def test_without_a_tag_time_decides(start: int, running: dict[int, int]) -> None:
    claimed = claimants(None, start, GUARD, running)
    assert claimed <= running.keys()
    for number, began in running.items():
        assert (number in claimed) == (began <= start)


class Proc:
    """A process of the model; `owner` is the truth, which the rule does not see."""

    def __init__(
        self,
        parent: Proc | None,
        *,
        start: int,
        tag: tuple[int, int] | None,
        owner: int,
        nested: bool = False,
    ) -> None:
        self.parent = parent  # None: the guard
        self.start = start
        self.tag = tag
        self.owner = owner
        self.nested = nested  # left by a guard inside the command that is dead
        self.alive = True


class World(RuleBasedStateMachine):
    """Commands that fork, exit, daemonize and shed tags; a guard that ends them by the rule."""

    @initialize()
    def begin(self) -> None:
        self.now = 100
        self.numbers = itertools.count(1)
        self.procs: list[Proc] = []
        self.running: dict[int, Proc] = {}
        self.ended: set[int] = set()

    @rule()
    def a_tick_passes(self) -> None:
        self.now += 1

    @precondition(lambda self: len(self.running) < 4)
    @rule()
    def launch(self) -> None:
        number = next(self.numbers)
        main = Proc(None, start=self.now, tag=(GUARD, number), owner=number)
        self.procs.append(main)
        self.running[number] = main

    @precondition(lambda self: any(proc.alive for proc in self.procs) and len(self.procs) < 40)
    @rule(index=st.integers(0, 1000), twice=st.booleans())
    def fork(self, index: int, twice: bool) -> None:
        parent = self._some(index)
        for _ in range(1 + twice):
            parent = Proc(parent, start=self.now, tag=parent.tag, owner=parent.owner, nested=parent.nested)
            self.procs.append(parent)

    @precondition(lambda self: any(proc.alive for proc in self.procs))
    @rule(index=st.integers(0, 1000))
    def exits(self, index: int) -> None:
        self._die(self._some(index))

    @precondition(lambda self: any(proc.alive for proc in self.procs))
    @rule(index=st.integers(0, 1000))
    def sheds_its_tag(self, index: int) -> None:
        self._some(index).tag = None

    @precondition(lambda self: any(proc.alive for proc in self.procs))
    @rule(index=st.integers(0, 1000), number=NUMBERS)
    def a_nested_guard_and_its_watch_are_killed(self, index: int, number: int) -> None:
        """What they had comes to this guard with their tag."""
        parent = self._some(index)
        self.procs.append(Proc(None, start=self.now, tag=(NESTED, number), owner=parent.owner, nested=True))

    @precondition(lambda self: self.running)
    @rule(index=st.integers(0, 1000))
    def end(self, index: int) -> None:
        self._end(sorted(self.running)[index % len(self.running)])

    @rule()
    def the_guard_reaps(self) -> None:
        """Orphans of nobody are killed, with what they leave, until there is none."""
        while orphans := [proc for proc in self._orphans() if not self._claimants(proc)]:
            for proc in orphans:
                assert proc.owner not in self.running or proc.nested, "killed under a running command"
                self._die(proc)

    @invariant()
    def the_true_owner_claims_an_orphan(self) -> None:
        for proc in self._orphans():
            claimed = self._claimants(proc)
            if proc.nested and proc.tag:
                assert claimed == NOBODY
            elif proc.tag:
                assert claimed == ({proc.owner} if proc.owner in self.running else NOBODY)
            else:
                assert proc.owner in claimed or proc.owner not in self.running

    @invariant()
    def what_has_kept_its_tag_does_not_outlive_its_command(self) -> None:
        for proc in self.procs:
            if proc.alive and proc.tag and not proc.nested:
                assert proc.owner not in self.ended

    def teardown(self) -> None:
        """When all commands have ended, nothing is left."""
        if hasattr(self, "running"):
            for number in sorted(self.running):
                self._end(number)
            assert not [proc for proc in self.procs if proc.alive]

    def _end(self, number: int) -> None:
        """Do as the guard: kill all that hangs below, or is the command's alone, or wears its tag."""
        while found := self._left_of(number):
            for proc in found:
                assert proc.owner not in self.running or proc.owner == number or proc.nested
                self._die(proc)
        del self.running[number]
        self.ended.add(number)
        self.the_guard_reaps()

    def _left_of(self, number: int) -> list[Proc]:
        roots = [proc for proc in self._orphans() if self._claimants(proc) <= {number}]
        roots.append(self.running[number])
        found = {id(proc): proc for proc in self.procs if proc.alive and proc.tag == (GUARD, number)}
        found |= {id(proc): proc for proc in self.procs if proc.alive and self._hangs_below(proc, roots)}
        return list(found.values())

    def _hangs_below(self, proc: Proc | None, roots: list[Proc]) -> bool:
        while proc is not None:
            if any(proc is root for root in roots):
                return True
            proc = proc.parent
        return False

    def _claimants(self, proc: Proc) -> frozenset[int]:
        running = {number: main.start for number, main in self.running.items()}
        return claimants(proc.tag, proc.start, GUARD, running)

    def _orphans(self) -> list[Proc]:
        mains = {id(main) for main in self.running.values()}
        return [proc for proc in self.procs if proc.alive and proc.parent is None and id(proc) not in mains]

    def _some(self, index: int) -> Proc:
        alive = [proc for proc in self.procs if proc.alive]
        return alive[index % len(alive)]

    def _die(self, proc: Proc) -> None:
        proc.alive = False
        for child in self.procs:
            if child.parent is proc:
                child.parent = None


TestWorld = World.TestCase


@pytest.mark.parametrize("running", [{}, {1: 5}])
def test_nobody_is_empty(running: dict[int, int]) -> None:
    assert not NOBODY
    assert claimants(None, 4, GUARD, running) == NOBODY
