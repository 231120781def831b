"""The escalation: its table walked, and run in virtual time against a model of a command."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from muontrap.logic.escalation import ACTIONS, EVENTS, KILL_BOUND, KILL_MODES, STATES, TABLES, Escalation

MODES = pytest.mark.parametrize("mode", KILL_MODES)
TIMES = st.floats(0, 1e6)


@MODES
def test_every_state_has_a_row_and_is_reachable(mode: str) -> None:
    table = TABLES[mode]
    assert set(table) == set(STATES)
    reached, new = set(), {"running"}
    while new:
        reached |= new
        new = {following for state in new for following, _ in table[state].values()} - reached
    assert reached == set(STATES)


@MODES
def test_every_state_leads_to_the_end(mode: str) -> None:
    ends = {"gone"}
    for _ in STATES:
        ends |= {state for state, row in TABLES[mode].items() if any(to in ends for to, _ in row.values())}
    assert ends == set(STATES)


@MODES
def test_the_table_uses_no_other_names(mode: str) -> None:
    cells = [(event, *cell) for row in TABLES[mode].values() for event, cell in row.items()]
    assert {event for event, _, _ in cells} <= set(EVENTS)
    assert {state for _, state, _ in cells} <= set(STATES)
    assert {action for _, _, action in cells} <= set(ACTIONS)


def test_every_name_is_used() -> None:
    rows = [row for table in TABLES.values() for row in table.values()]
    assert {event for row in rows for event in row} == set(EVENTS)
    assert {action for row in rows for _, action in row.values()} == set(ACTIONS)


@MODES
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_a_pair_is_in_the_table_or_an_error(mode: str, state: str, event: str) -> None:
    machine = Escalation(mode, 1.0)
    machine.state, machine.deadline = state, 5.0
    if event in TABLES[mode][state]:
        action = machine.fire(event, 5.0)
        assert (machine.state, action) == TABLES[mode][state][event]
    elif state == "gone" and event in ("stop", "kill"):
        assert (machine.fire(event, 5.0), machine.state) == ("", "gone")
    else:
        with pytest.raises(KeyError):
            machine.fire(event, 5.0)


@MODES
def test_what_is_gone_gets_no_action(mode: str) -> None:
    """Whatever is asked afterwards; a row for `gone` may only lead nowhere."""
    assert all(cell == ("gone", "") for cell in TABLES[mode]["gone"].values())
    machine = Escalation(mode, 1.0)
    machine.state = "gone"
    assert [machine.stop(9.0), machine.stop(9.0, 0.0), machine.fire("late", 1e9)] == [""] * 3
    machine.progress(9.0)
    assert (machine.state, machine.deadline) == ("gone", None)


@MODES
def test_no_way_leads_back(mode: str) -> None:
    """SIGKILL is not followed by grace, nor the end by anything."""
    rank = {state: index for index, state in enumerate(STATES)}
    for state, row in TABLES[mode].items():
        assert all(rank[following] >= rank[state] for following, _ in row.values())


@MODES
@given(now=TIMES, first=st.floats(0.001, 100), part=st.floats(0, 1), second=st.floats(0.001, 200))
def test_the_nearer_deadline_counts(mode: str, now: float, first: float, part: float, second: float) -> None:
    machine = Escalation(mode, 0.5)
    machine.stop(now, first)
    then = now + part * first
    assert machine.stop(then, second) == ""
    assert machine.deadline == min(now + first, then + second)


@MODES
@given(now=TIMES, delay=st.floats(0.001, 100), part=st.floats(0, 1))
def test_late_is_not_early(mode: str, now: float, delay: float, part: float) -> None:
    machine = Escalation(mode, delay)
    machine.stop(now)
    at = now + part * delay
    if at < now + delay:
        assert (machine.fire("late", at), machine.state) == ("", "stopping")
    assert machine.fire("late", now + delay).startswith("kill-")


def wait_for(machine: Escalation) -> tuple[str, float]:
    """Wake up at each deadline; return what comes of it, and when."""
    while machine.deadline is not None:
        at = machine.deadline
        if action := machine.fire("late", at):
            return action, at
    return "", math.inf


@MODES
@given(now=TIMES, at=TIMES)
def test_late_means_nothing_without_a_deadline(mode: str, now: float, at: float) -> None:
    machine = Escalation(mode, 0.5)
    assert (machine.fire("late", at), machine.state) == ("", "running")
    machine.stop(now, 0.0)
    assert wait_for(machine)[0] == "report-overdue"
    assert (machine.fire("late", math.inf), machine.state) == ("", "overdue")


@MODES
def test_no_delay_is_a_kill(mode: str) -> None:
    assert Escalation(mode, 5.0).stop(1.0, 0.0).startswith("kill-")
    assert Escalation(mode, 0.0).stop(1.0).startswith("kill-")


@MODES
@given(now=TIMES, times=st.lists(st.floats(0.001, 0.399), max_size=10))
def test_progress_begins_the_bound_anew(mode: str, now: float, times: list[float]) -> None:
    machine = Escalation(mode, 1.0)
    machine.stop(now, 0.0)
    for step in times:
        now += step
        machine.progress(now)
    assert wait_for(machine) == ("report-overdue", pytest.approx(now + KILL_BOUND))
    machine.progress(now)
    assert (machine.state, machine.deadline) == ("overdue", None)


@MODES
@given(now=TIMES, before=st.integers(0, 14), stood_still=st.floats(KILL_BOUND, 100))
def test_time_in_which_the_machine_stands_still_counts_little(
    mode: str, now: float, before: int, stood_still: float
) -> None:
    machine = Escalation(mode, 1.0)
    machine.stop(now, 0.0)
    for _ in range(before):
        now = machine.deadline or 0.0
        assert machine.fire("late", now) == ""
    then = now + stood_still
    assert machine.fire("late", then) == ""
    left = KILL_BOUND * (15 - before) / 16
    assert wait_for(machine) == ("report-overdue", pytest.approx(then + left))


@MODES
@pytest.mark.parametrize("event", ["stop", "kill", "exited"])
def test_nothing_else_moves_the_bound(mode: str, event: str) -> None:
    machine = Escalation(mode, 1.0)
    machine.stop(10.0, 0.0)
    machine.fire(event, 10.3)
    if machine.state == "killing":
        assert wait_for(machine) == ("report-overdue", pytest.approx(10.0 + KILL_BOUND))
    else:
        assert machine.deadline is None


@given(now=TIMES, delay=st.floats(0.001, 100), asked=st.floats(0.001, 100))
def test_an_exit_begins_a_grace_but_does_not_change_one(now: float, delay: float, asked: float) -> None:
    machine = Escalation("control-group", delay)
    assert machine.fire("exited", now) == "signal-all"
    assert machine.deadline == now + delay
    machine = Escalation("control-group", delay)
    machine.stop(now, asked)
    assert machine.fire("exited", now) == ""
    assert machine.deadline == now + asked


class Proc:
    """A process of the model."""

    def __init__(self, *, main: bool, heeds_term: bool, reaction: float, kill_lag: float) -> None:
        self.main = main
        self.heeds_term = heeds_term
        self.reaction = reaction  # s from the stop signal to its end
        self.kill_lag = kill_lag  # s from SIGKILL to its end; infinite: uninterruptible sleep
        self.dies_at = math.inf
        self.killed = False
        self.alive = True


PROCS = {
    "heeds_term": st.booleans(),
    "reaction": st.sampled_from([0.0, 0.1, 0.7, 3.0]),
    "kill_lag": st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.3, math.inf]),
}


class Run(RuleBasedStateMachine):
    """A command and the guard's part around the machine; time passes from event to event."""

    @initialize(
        mode=st.sampled_from(KILL_MODES),
        delay=st.sampled_from([0.0, 0.25, 1.0]),
        main=st.fixed_dictionaries(PROCS),
        others=st.lists(st.fixed_dictionaries(PROCS), max_size=2),
    )
    def launch(self, mode: str, delay: float, main: dict[str, Any], others: list[dict[str, Any]]) -> None:
        self.mode, self.delay = mode, delay
        self.machine = Escalation(mode, delay)
        self.now = 1000.0
        self.main = Proc(main=True, **main)
        self.procs = [self.main, *(Proc(main=False, **other) for other in others)]
        self.exited = False
        self.asked: list[float] = []  # when SIGKILL was asked for, at the latest
        self.first_kill = math.inf
        self.last_change = math.inf  # since SIGKILL: something died or appeared
        self.stood_still: list[float] = []  # s each, since then
        self.overdue_at: float | None = None
        self.gone_at: float | None = None
        self.alive_seen: set[int] = set()

    # What happens to a command.

    @rule(dt=st.sampled_from([0.0, 0.01, 0.1, 0.3, 0.4, 1.0, 5.0]))
    def time_passes(self, dt: float) -> None:
        end = self.now + dt
        while (at := self._next_event()) <= end:
            self.now = max(self.now, at)
            self._settle()
        self.now = end
        self._settle()

    @rule(dt=st.sampled_from([0.1, 0.4, 3.0]))
    def the_machine_stands_still(self, dt: float) -> None:
        for proc in self.procs:
            proc.dies_at += dt
        self.stood_still.append(dt)
        self.now += dt
        self._settle()

    @precondition(lambda self: self.gone_at is None)
    @rule(delay=st.sampled_from([None, 0.0, 0.1, 0.5, 2.0]))
    def stop(self, delay: float | None) -> None:
        self._settle()
        if self.gone_at is None:
            self._ask(self.delay if delay is None else delay)
            self._perform(self.machine.stop(self.now, delay))
            self._settle()

    @precondition(lambda self: self.gone_at is not None)
    @rule(delay=st.sampled_from([None, 0.0, 2.0]))
    def stop_what_is_gone(self, delay: float | None) -> None:
        assert self.machine.stop(self.now, delay) == ""

    @rule(index=st.integers(0, 20))
    def one_ends_by_itself(self, index: int) -> None:
        proc = self.procs[index % len(self.procs)]
        if proc.alive and not proc.killed:
            proc.dies_at = min(proc.dies_at, self.now)
            self._settle()

    @precondition(lambda self: any(p.alive and not p.killed for p in self.procs) and len(self.procs) < 8)
    @rule(child=st.fixed_dictionaries(PROCS))
    def one_forks(self, child: dict[str, Any]) -> None:
        self.procs.append(Proc(main=False, **child))

    @rule()
    def the_disk_comes_back(self) -> None:
        for proc in self.procs:
            if proc.killed and proc.dies_at == math.inf:
                proc.dies_at = self.now
        self._settle()

    @rule()
    def the_guard_looks_too_early(self) -> None:
        self._settle()
        before = (self.machine.state, self.machine.deadline)
        if before[1] is None or self.now < before[1]:
            assert self.machine.fire("late", self.now) == ""
            assert (self.machine.state, self.machine.deadline) == before

    # What has to hold.

    @invariant()
    def kill_is_neither_early_nor_late(self) -> None:
        due = min(self.asked, default=math.inf)
        assert self.first_kill >= due
        if self.gone_at is None and self.machine.state in ("running", "stopping"):
            assert self.now < due, f"SIGKILL was due at {due}, it is {self.now}"

    @invariant()
    def overdue_is_reported_in_time(self) -> None:
        bound = self.last_change + KILL_BOUND
        if self.machine.state == "killing":
            assert self.now < bound + sum(self.stood_still) + 1e-6
        if self.overdue_at is not None:
            assert bound - 1e-6 <= self.overdue_at <= bound + sum(self.stood_still) + 1e-6

    @invariant()
    def gone_means_gone(self) -> None:
        left = [p for p in self.procs if p.alive and (self.mode != "process" or p.main)]
        if self.gone_at is not None:
            assert self.machine.state == "gone"
            assert not [p for p in left if p.main]
            assert self.mode == "process" or not left
            assert self.machine.deadline is None
        elif self.exited and not left:
            pytest.fail("nothing is left, and the machine does not say so")

    def teardown(self) -> None:
        """Every run ends: at the latest the grace after it was asked to, where SIGKILL kills."""
        if not hasattr(self, "machine"):
            return
        for proc in self.procs:
            proc.kill_lag = min(proc.kill_lag, 0.3)
            if proc.killed:
                proc.dies_at = min(proc.dies_at, self.now + proc.kill_lag)
        begin = self.now
        if self.gone_at is None:
            self._settle()
        if self.gone_at is None:
            self._ask(self.delay)
            self._perform(self.machine.stop(self.now))
            self.time_passes(self.delay + KILL_BOUND)
            for check in (self.kill_is_neither_early_nor_late, self.gone_means_gone):
                check()
            assert self.gone_at is not None
            assert self.gone_at <= begin + self.delay + KILL_BOUND

    # The guard's part.

    def _ask(self, delay: float) -> None:
        self.asked.append(self.now + delay)

    def _next_event(self) -> float:
        deaths = [p.dies_at for p in self.procs if p.alive]
        deadline = math.inf if self.machine.deadline is None else self.machine.deadline
        return min([*deaths, deadline])

    def _settle(self) -> None:
        """Let die what has to now, and tell the machine."""
        for proc in self.procs:
            if proc.alive and proc.dies_at <= self.now:
                proc.alive = False
        if self.gone_at is not None:
            return
        if not self.main.alive and not self.exited:
            self.exited = True
            # In mode "control-group" an exit begins the grace, if it does not run already.
            if self.mode == "mixed" or self.machine.state == "running":
                self._ask(0.0 if self.mode == "mixed" else self.delay)
            self._perform(self.machine.fire("exited", self.now))
        if self.gone_at is None:
            self._perform(self.machine.fire("late", self.now))
        self._hunt()

    def _hunt(self) -> None:
        while self.gone_at is None and self.mode != "process":
            state = self.machine.state
            if state not in ("killing", "overdue") and not (state == "stopping" and self.exited):
                return
            if state != "stopping":
                self._kill(self.procs)
            alive = {id(p) for p in self.procs if p.alive}
            changed, self.alive_seen = alive != self.alive_seen, alive
            if changed:
                if self.machine.state == "killing":
                    self.last_change, self.stood_still = self.now, []
                self.machine.progress(self.now)
            if not alive:
                self._perform(self.machine.fire("empty", self.now))
            elif not changed:
                return

    def _perform(self, action: str) -> None:
        assert action in ACTIONS
        assert self.gone_at is None or not action, f"{action} after the end"
        everybody = [p for p in self.procs if p.alive]
        if action == "signal-main":
            self._signal([self.main])
        elif action == "signal-all":
            assert self.mode == "control-group"
            self._signal(everybody)
        elif action == "kill-main":
            assert self.mode == "process"
            self._begin_to_kill()
            self._kill([self.main])
        elif action == "kill-all":
            assert self.mode != "process"
            self._begin_to_kill()
            self._kill(everybody)
            self._hunt()
        elif action == "report-overdue":
            assert self.overdue_at is None
            self.overdue_at = self.now
            awake = KILL_BOUND * (1 - (len(self.stood_still) + 1) / 16)
            assert not [p for p in self.procs if p.alive and p.killed and p.kill_lag < awake]
        elif action in ("report", "forget"):
            assert (action == "forget") == (self.overdue_at is not None)
            self.gone_at = self.now

    def _begin_to_kill(self) -> None:
        assert self.first_kill == math.inf, "SIGKILL begins once"
        self.first_kill = self.last_change = self.now
        self.stood_still = []

    def _signal(self, procs: list[Proc]) -> None:
        assert any(p.alive for p in procs) or self.exited, "a signal to what is dead"
        for proc in procs:
            if proc.alive and proc.heeds_term:
                proc.dies_at = min(proc.dies_at, self.now + proc.reaction)

    def _kill(self, procs: list[Proc]) -> None:
        for proc in procs:
            if proc.alive and not proc.killed:
                proc.killed = True
                proc.dies_at = min(proc.dies_at, self.now + proc.kill_lag)
                proc.alive = proc.dies_at > self.now


TestRun = Run.TestCase
TestRun.settings = settings(max_examples=3 * settings.default.max_examples)
