"""Who of a supervisor's children runs, and when: tables to read, and a model in virtual time."""

from __future__ import annotations

import itertools
import math
import re
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from muontrap.logic.children import RESTARTS, Backoff, Child
from muontrap.logic.supervision import STRATEGIES, Supervision

AT_ONCE = Backoff(initial=0.0)


class Play:
    """A supervision that is told of events in words, at one instant unless time is said to pass."""

    def __init__(self, *children: Child, **options: Any) -> None:
        self.machine = Supervision(children, **options)
        self.now = 1000.0

    def tell(self, event: str) -> str:
        """Return what is to be done then."""
        machine = self.machine
        verb, _, name = event.partition(": ")
        if verb == "s pass":
            self.now += float(name)
        elif verb == "ready":
            machine.ready(name, self.now)
        elif verb in ("fails", "ends"):
            machine.exited(name, "exit status 1" if verb == "fails" else "", self.now)
        elif verb in ("user starts", "user stops", "user restarts"):
            getattr(machine, f"{verb[5:-1]}_child")(name)
        elif verb == "user removes":
            machine.remove(name)
        else:
            {"begin": machine.start, "end": machine.stop}[verb]()
        todo = machine.actions(self.now)
        assert machine.actions(self.now) == [], "done is done"
        return ", ".join(f"{action} {name}" for action, name in todo)

    def follow(self, table: str) -> None:
        """Tell event by event; each line is an event and, behind an arrow, what is then to be done."""
        for line in table.strip().splitlines():
            event, _, todo = (part.strip() for part in line.partition("->"))
            assert (event, self.tell(event)) == (event, todo)


def children(*names: str, **options: Any) -> list[Child]:
    return [Child(name, backoff=AT_ONCE, **options) for name in names]


# What the strategies mean.


def test_one_for_one() -> None:
    """Only the one that has ended is started again, when all that it depends on are ready."""
    web = Child("web", depends_on=["db", "cache"], backoff=AT_ONCE)
    play = Play(web, *children("db", "cache"), max_restarts=10)
    play.follow(
        """
        begin            -> start db, start cache
        ready: cache     ->
        ready: db        -> start web
        ready: web       ->
        fails: cache     -> start cache
        fails: web       ->
        ready: cache     -> start web
        user stops: db   -> stop db
        fails: db        ->
        fails: web       ->
        user starts: db  -> start db
        ready: db        -> start web
        end              -> stop web
        ends: web        -> stop cache, stop db
        fails: cache     ->
        ends: db         ->
        """
    )
    assert play.machine.outcome == ""


def test_one_for_all() -> None:
    """All are stopped, and then started, in order; temporary ones stay down, finished ones come back."""
    play = Play(
        *children("db"),
        Child("web", depends_on=["db"], backoff=AT_ONCE),
        *children("migration", restart="transient"),
        *children("guest", "once", restart="temporary"),
        strategy="one_for_all",
    )
    play.follow(
        """
        begin            -> start db, start migration, start guest, start once
        ready: db        -> start web
        ready: web       ->
        ready: guest     ->
        ends: once       ->
        ends: migration  ->
        fails: db        -> stop web, stop guest
        ends: web        ->
        fails: guest     -> start db, start migration
        ready: migration ->
        ready: db        -> start web
        fails: web       -> stop migration, stop db
        ends: db         ->
        ends: migration  -> start db, start migration
        user stops: db   -> stop db
        end              -> stop migration
        ends: migration  ->
        ends: db         ->
        """
    )
    assert play.machine.outcome == ""


def test_rest_for_one() -> None:
    """Those behind it are stopped, from the last on, and started after it, one when the other is ready."""
    play = Play(
        *children("a"),
        *children("b", restart="transient"),
        *children("c", "d"),
        strategy="rest_for_one",
        max_restarts=10,
    )
    play.follow(
        """
        begin            -> start a
        ready: a         -> start b
        ready: b         -> start c
        ready: c         -> start d
        fails: b         -> stop d
        ends: d          -> stop c
        ends: c          -> start b
        ready: b         -> start c
        ends: b          ->
        ready: c         -> start d
        fails: c         -> stop d
        ends: d          -> start c
        ready: c         -> start d
        fails: a         -> stop d
        ready: d         ->
        ends: d          -> stop c
        fails: c         -> start a
        ready: a         -> start b
        fails: b         -> start b
        ready: b         -> start c
        end              -> stop c
        ends: c          -> stop b
        ends: b          -> stop a
        ends: a          ->
        """
    )
    assert play.machine.outcome == ""


@pytest.mark.parametrize("begins", ["ready", "starting"])
@pytest.mark.parametrize(
    ("restart", "event", "todo", "ending"),
    [
        ("permanent", "fails: a", "start a", ""),
        ("permanent", "ends: a", "start a", ""),
        ("transient", "fails: a", "start a", ""),
        ("transient", "ends: a", "", "finished"),
        ("temporary", "fails: a", "", "failed"),
        ("temporary", "ends: a", "", "finished"),
    ],
)
def test_restart_types(restart: str, event: str, todo: str, ending: str, begins: str) -> None:
    play = Play(*children("a", restart=restart))
    play.tell("begin")
    if begins == "ready":
        play.tell("ready: a")
    assert play.tell(event) == todo
    child = play.machine.children["a"]
    assert (child.ending, child.restarts) == (ending, 1 if todo else 0)
    assert play.machine.outcome is None


@pytest.mark.parametrize(
    ("restart", "event", "outcome"),
    [
        ("permanent", "ends: a", None),
        ("transient", "fails: a", None),
        ("transient", "ends: a", ""),
        ("temporary", "ends: a", ""),
        ("temporary", "fails: a", "essential child a has ended: exit status 1"),
        ("permanent", "user stops: a", None),
    ],
)
def test_the_end_of_an_essential_child_ends_all(restart: str, event: str, outcome: str | None) -> None:
    """But not if somebody stopped it: he could have stopped all."""
    play = Play(*children("a", restart=restart, essential=True), *children("b"))
    play.tell("begin")
    todo = play.tell(event)
    assert todo == ("stop b" if outcome is not None else "start a" if "user" not in event else "stop a")
    assert play.machine.outcome is None
    if outcome is not None:
        play.tell("ends: b")
    assert play.machine.outcome == outcome


# What ends in spite of restarts.


def test_too_many_restarts_in_a_time_are_the_end_of_all() -> None:
    play = Play(*children("a", "b", "c"), max_restarts=3, max_seconds=5.0)
    play.follow(
        """
        begin      -> start a, start b, start c
        fails: a   -> start a
        s pass: 3  ->
        fails: b   -> start b
        ends: a    -> start a
        s pass: 2  ->
        fails: a   -> start a
        s pass: 1  ->
        fails: b   -> stop c, stop a
        ends: a    ->
        """
    )
    assert play.machine.outcome is None
    play.tell("fails: c")
    assert play.machine.outcome == "b: more than 3 restarts in 5 s, last: exit status 1"
    assert list(play.machine.story) == [
        "a: exit status 1",
        "b: exit status 1",
        "a: ended without a failure",
        "a: exit status 1",
        "b: exit status 1",
        "b: more than 3 restarts in 5 s: given up",
    ]


def test_the_first_reason_to_end_is_the_one_that_is_told() -> None:
    play = Play(*children("a", "b"), max_restarts=0)
    play.tell("begin")
    play.tell("ends: b")
    play.machine.stop("the guard has died")
    play.tell("fails: a")
    assert play.machine.outcome == "b: more than 0 restarts in 5 s, last: a success"
    play.machine.stop("too late")
    assert play.tell("end") == ""
    assert play.machine.outcome == "b: more than 0 restarts in 5 s, last: a success"


def test_who_is_given_up_can_be_left_down() -> None:
    asked: list[str] = []

    def leave(name: str) -> bool:
        asked.append(name)
        return False

    play = Play(*children("a", "b"), max_restarts=1, on_give_up=leave, strategy="one_for_all")
    play.follow(
        """
        begin            -> start a, start b
        fails: a         -> stop b
        ends: b          -> start a, start b
        fails: a         ->
        s pass: 60       ->
        fails: b         -> start b
        user starts: a   -> start a
        """
    )
    assert (asked, play.machine.outcome) == (["a"], None)


def test_an_essential_child_is_never_left_down() -> None:
    play = Play(*children("a", essential=True), *children("b"), max_restarts=0, on_give_up=lambda _: False)
    play.tell("begin")
    assert play.tell("fails: a") == "stop b"
    play.tell("ends: b")
    assert play.machine.outcome == "a: more than 0 restarts in 5 s, last: exit status 1"


def test_what_users_do_is_not_counted() -> None:
    play = Play(*children("a", "b"), strategy="one_for_all", max_restarts=0)
    play.tell("begin")
    for _ in range(5):
        assert play.tell("user restarts: a") == "stop a"
        assert play.tell("fails: a") == "start a"
        assert play.tell("user stops: b") == "stop b"
        assert play.tell("fails: b") == ""
        assert play.tell("user starts: b") == "start b"
    assert {child.restarts for child in play.machine.children.values()} == {0}


def test_one_cause_is_counted_once() -> None:
    """The death of a guard ends all its daemons."""
    play = Play(*children("a", "b", "c"), max_restarts=2)
    play.tell("begin")
    play.machine.exited("a", "guard died", play.now)
    play.machine.exited("b", "guard died", play.now, is_counted=False)
    play.machine.exited("c", "guard died", play.now, is_counted=False)
    assert play.machine.actions(play.now) == [("start", "a"), ("start", "b"), ("start", "c")]
    assert play.tell("fails: c") == "start c"
    play.machine.exited("a", "guard died", play.now, is_counted=False)
    assert play.machine.actions(play.now) == [("start", "a")]
    assert play.tell("fails: c") == "stop b, stop a"


# What a user may do.


def test_a_user_has_the_last_word() -> None:
    """Who stopped a child finds it stopped, whatever was about to happen to it."""
    play = Play(
        *children("a"), *children("b", depends_on=["a"]), *children("t", restart="transient"),
        strategy="one_for_all",
    )  # fmt: skip
    play.follow(
        """
        begin            -> start a, start t
        ready: a         -> start b
        user restarts: b -> stop b
        user restarts: a ->
        user stops: a    ->
        ends: b          -> stop a
        ends: a          ->
        user restarts: a -> start a
        ready: a         -> start b
        ends: t          ->
        user stops: t    ->
        fails: b         -> stop a
        ends: a          -> start a
        user starts: t   -> start t
        ready: a         -> start b
        user stops: b    -> stop b
        user starts: b   ->
        user restarts: a ->
        ends: b          -> stop a
        user stops: t    -> stop t
        user starts: t   ->
        ends: a          ->
        ends: t          -> start a, start t
        """
    )
    assert play.machine.children["b"].state == "waiting"


def test_who_is_stopped_by_a_user_does_not_come_back_with_his_group() -> None:
    play = Play(*children("a", "b"), strategy="one_for_all")
    play.follow(
        """
        begin            -> start a, start b
        user stops: b    -> stop b
        fails: a         ->
        ends: b          -> start a
        """
    )
    assert play.machine.children["b"].ending == "stopped"


def test_a_second_start_is_for_those_that_are_stopped() -> None:
    play = Play(Child("a"), *children("b", "c"), *children("d", depends_on=["c"]))
    play.follow(
        """
        begin            -> start a, start b, start c
        ready: c         -> start d
        fails: a         ->
        user stops: b    -> stop b
        ends: b          ->
        user stops: d    -> stop d
        user stops: c    ->
        begin            -> start b
        ends: d          -> stop c
        """
    )


def test_nobody_starts_on_what_is_about_to_stop() -> None:
    play = Play(*children("db"), *children("a", "b", depends_on=["db"]))
    play.follow(
        """
        begin            -> start db
        ready: db        -> start a, start b
        user stops: a    -> stop a
        ends: a          ->
        user stops: b    -> stop b
        user stops: db   ->
        user starts: a   ->
        ends: b          -> stop db
        """
    )


def test_a_stop_that_was_not_said_yet_can_be_taken_back() -> None:
    play = Play(*children("a"), *children("b", depends_on=["a"]))
    play.follow(
        """
        begin            -> start a
        ready: a         -> start b
        user stops: b    -> stop b
        user stops: a    ->
        user starts: a   ->
        ends: b          ->
        """
    )
    assert play.machine.children["a"].state == "ready"


def test_a_temporary_child_that_is_being_restarted_goes_down_with_its_group() -> None:
    play = Play(*children("a"), *children("t", restart="temporary"), strategy="one_for_all")
    play.follow(
        """
        begin            -> start a, start t
        user restarts: t -> stop t
        fails: a         ->
        ends: t          -> start a
        """
    )
    assert (play.machine.children["t"].state, play.machine.children["t"].ending) == ("stopped", "stopped")


def test_children_come_and_go() -> None:
    play = Play(*children("a", "b"), strategy="rest_for_one")
    play.follow(
        """
        begin            -> start a
        ready: a         -> start b
        ready: b         ->
        """
    )
    machine = play.machine
    machine.add(Child("c", depends_on=["a"]))
    assert machine.actions(play.now) == [("start", "c")]
    with pytest.raises(ValueError, match="child 'a' is what c depends on"):
        machine.remove("a")
    machine.remove("c")
    with pytest.raises(ValueError, match="'d' depends on 'c', which is no child"):
        machine.add(Child("d", depends_on=["c"]))
    for act in (machine.start_child, machine.restart_child):
        with pytest.raises(ValueError, match="child 'c' is removed"):
            act("c")
    assert play.tell("user removes: b") == "stop c"
    assert play.tell("fails: c") == "stop b"
    assert list(machine.children) == ["a", "b"]
    removed = machine.children["b"]
    assert play.tell("fails: b") == ""
    assert list(machine.children) == ["a"]
    machine.add(removed)
    assert machine.actions(play.now) == [("start", "b")]
    play.tell("user stops: b")
    play.tell("ends: b")
    machine.remove("b")
    assert list(machine.children) == ["a"]


def test_a_child_that_is_refused_leaves_no_trace() -> None:
    play = Play(*children("a"))
    for child in (Child("b", depends_on=["x"]), Child("b", depends_on=["b"]), Child("a")):
        with pytest.raises(ValueError, match=r"'x'|b -> b|named 'a'"):
            play.machine.add(child)
    assert list(play.machine.children) == ["a"]
    assert play.tell("begin") == "start a"


def test_what_is_done_waits_for_no_one() -> None:
    """A dependency that has finished is a job that is done; one that failed or was stopped is not there."""
    play = Play(
        *children("job", restart="transient"), *children("guest", restart="temporary"),
        *children("a", depends_on=["job"]), *children("b", depends_on=["guest"]),
    )  # fmt: skip
    play.follow(
        """
        begin            -> start job, start guest
        ends: job        -> start a
        fails: a         -> start a
        ready: a         ->
        fails: guest     ->
        """
    )
    assert play.machine.children["b"].state == "waiting"
    assert play.machine.is_settled
    assert play.machine.deadline is None
    play.follow(
        """
        user stops: job  ->
        fails: a         ->
        user starts: job -> start job
        """
    )
    assert not play.machine.is_settled


def test_order_holds_across_one_that_is_not_there() -> None:
    """The one between the two waits for its time: it depends on one, and the other on it."""
    slow = Child("b", depends_on=["a"], backoff=Backoff(initial=60.0, cap=60.0))
    play = Play(*children("a"), slow, *children("c", depends_on=["b"]))
    play.follow(
        """
        begin            -> start a
        ready: a         -> start b
        ready: b         -> start c
        fails: b         ->
        end              -> stop c
        ends: c          -> stop a
        ends: a          ->
        """
    )
    assert play.machine.outcome == ""


def test_nothing_happens_after_the_end() -> None:
    play = Play(*children("a", "b"), *children("job", restart="transient"))
    play.follow(
        """
        begin            -> start a, start b, start job
        ends: job        ->
        user stops: b    -> stop b
        ends: b          ->
        end              -> stop a
        """
    )
    for act in (
        play.machine.start,
        lambda: play.machine.start_child("b"),
        lambda: play.machine.add(Child("c")),
    ):
        with pytest.raises(ValueError, match="the supervisor is ending"):
            act()
    with pytest.raises(ValueError, match="the supervisor is ending"):
        play.machine.restart_child("a")
    play.follow(
        """
        fails: a         ->
        fails: a         ->
        s pass: 1000     ->
        """
    )
    play.machine.stop("too late")
    assert play.machine.actions(play.now) == []
    assert [child.ending for child in play.machine.children.values()] == ["stopped", "stopped", "finished"]
    assert (play.machine.outcome, play.machine.deadline, list(play.machine.story)) == ("", None, [])


def test_what_is_not_there_cannot_end_nor_be_ready() -> None:
    play = Play(Child("a"))
    play.tell("begin")
    play.tell("fails: a")
    for event in ("fails: a", "ready: a", "ends: a"):
        assert play.tell(event) == ""
    child = play.machine.children["a"]
    assert (child.state, child.restarts, child.start_failures, child.failures) == ("waiting", 1, 1, 0)
    assert not play.machine.is_settled


def test_nobody_is_an_end_as_well() -> None:
    play = Play()
    assert (play.tell("begin"), play.machine.is_settled, play.machine.outcome) == ("", True, None)
    play.tell("end")
    assert play.machine.outcome == ""


# How long to wait.


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [
        (Backoff(0.5, 2, 5.0, 0.0), [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]),
        (Backoff(1.0, 1, 5.0, 0.0), [1.0, 1.0, 1.0]),
        (Backoff(8.0, 3, 5.0, 0.0), [5.0, 5.0]),
        (Backoff(0.0, 1e9, 5.0, 1.0), [0.0] * 99),
        (Backoff(1.0, 10, 5.0, 0.0), [1.0] + [5.0] * 1200),
    ],
)
def test_each_wait_is_longer_by_a_factor_up_to_a_cap(backoff: Backoff, waits: list[float]) -> None:
    assert [backoff.wait(failures, 1.0) for failures in range(1, len(waits) + 1)] == waits


TIMES = st.floats(0, 1e6)


@given(
    initial=TIMES,
    factor=st.floats(1, 1e6),
    cap=TIMES,
    jitter=st.floats(0, 1),
    chance=st.floats(0, 1),
    failures=st.integers(1, 10_000),
)
def test_a_wait_keeps_its_bounds(
    initial: float, factor: float, cap: float, jitter: float, chance: float, failures: int
) -> None:
    backoff = Backoff(initial, factor, cap, jitter)
    least, wait, most = (backoff.wait(failures, x) for x in (0.0, chance, 1.0))
    assert min(initial, cap) <= least <= wait <= most <= cap * (1 + jitter)
    assert least == backoff.wait(failures, 0.0) <= backoff.wait(failures + 1, 0.0)
    assert most == pytest.approx(least * (1 + jitter))


def test_failures_to_start_and_later_ones_are_two_rows_that_health_ends() -> None:
    """A daemon that cannot start after each crash would never wait longer, were one to end the other."""
    child = Child("a", backoff=Backoff(1.0, 2.0, 100.0, 0.5, reset_after=10.0))
    play = Play(child, max_restarts=99, chance=lambda: 1.0)
    play.tell("begin")

    def wait(*events: str) -> float:
        for event in events:
            assert play.tell(event) == ""
        deadline = play.machine.deadline
        assert deadline is not None
        wait = deadline - play.now
        assert play.tell(f"s pass: {wait - 0.125}") == ""
        assert play.tell("s pass: 0.125") == "start a"
        return wait

    assert [wait("fails: a") for _ in range(3)] == [1.5, 3.0, 6.0]
    assert [wait("ready: a", "s pass: 9", "fails: a") for _ in range(2)] == [1.5, 3.0]
    assert wait("ends: a") == 12.0
    assert wait("ready: a", "ends: a") == 6.0
    assert wait("ready: a", "s pass: 10", "fails: a") == 1.5
    assert wait("fails: a") == 1.5
    assert wait("ready: a", "fails: a") == 3.0
    assert (child.start_failures, child.failures, child.restarts) == (5, 5, 10)
    # Somebody has seen to it.
    assert play.tell("user restarts: a") == "stop a"
    assert play.tell("ends: a") == "start a"
    assert wait("fails: a") == 1.5
    play.tell("fails: a")
    assert play.tell("user starts: a") == "start a"
    assert wait("fails: a") == 1.5


def test_siblings_wait_with_the_one_that_failed() -> None:
    """And health counts until a stop, also if that was asked for."""
    play = Play(Child("a"), Child("b"), Child("job", "transient"), strategy="one_for_all")
    play.follow(
        """
        begin            -> start a, start b, start job
        ends: job        ->
        ready: b         ->
        fails: a         -> stop b
        ends: b          ->
        s pass: 0.0625   ->
        s pass: 0.0625   -> start a, start b, start job
        user stops: job  -> stop job
        ends: job        ->
        ready: b         ->
        fails: b         -> stop a
        ends: a          ->
        s pass: 0.125    -> start a, start b
        ready: b         ->
        s pass: 10       ->
        fails: a         -> stop b
        s pass: 10       ->
        ends: b          -> start a, start b
        fails: b         -> stop a
        ends: a          ->
        s pass: 0.125    -> start a, start b
        """
    )


# What is refused.


@pytest.mark.parametrize("name", ["initial", "factor", "cap", "jitter", "reset_after"])
@pytest.mark.parametrize("value", ["1", None, True, -0.5, math.nan, math.inf])
def test_a_backoff_is_checked(name: str, value: Any) -> None:
    error = ValueError if isinstance(value, float) else TypeError
    with pytest.raises(error, match=rf"^{name} of a backoff must be .*, not {value!r}$"):
        Backoff(**{name: value})


@pytest.mark.parametrize(("name", "value"), [("factor", 0.9), ("jitter", 1.1)])
def test_a_backoff_has_bounds(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} of a backoff must be .*, not {value!r}$"):
        Backoff(**{name: value})


def test_backoffs_are_values() -> None:
    assert Backoff(cap=60.0) == Backoff(cap=60) != Backoff()
    assert len({Backoff(cap=60.0), Backoff(cap=60.0), Backoff()}) == 2
    assert eval(repr(Backoff(0.2, 3, 9.0, 0.5, 1.0))) == Backoff(0.2, 3, 9.0, 0.5, 1.0)
    assert Backoff() != 0.1


def test_a_child_is_checked() -> None:
    with pytest.raises(ValueError, match="a child needs a name"):
        Child("")
    text = "restart of 'a' must be one of permanent, transient, temporary, not 'always'"
    with pytest.raises(ValueError, match=f"^{text}$"):
        Child("a", "always")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^depends_on of 'a' must be a list of names, not 'db'$"):
        Child("a", depends_on="db")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"strategy": "simple"},
            "strategy must be one of one_for_one, one_for_all, rest_for_one, not 'simple'",
        ),
        ({"max_restarts": -1}, "max_restarts must be 0 or more, not -1"),
        ({"max_seconds": 0}, "max_seconds must be more than 0 s, not 0"),
        ({"max_seconds": math.nan}, "max_seconds must be more than 0 s, not nan"),
    ],
)
def test_a_supervision_is_checked(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=f"^{text}$"):
        Supervision([Child("a")], **options)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize(
    ("needs", "text"),
    [
        ({"a": [], "b": ["x"]}, "'b' depends on 'x', which is no child"),
        ({"a": ["a"]}, "children depend on each other in a circle: a -> a"),
    ],
)
def test_dependencies_are_checked(needs: dict[str, list[str]], text: str, strategy: Any) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(text)}"):
        Supervision([Child(name, depends_on=needs[name]) for name in needs], strategy=strategy)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_names_are_unique(strategy: Any) -> None:
    with pytest.raises(ValueError, match=r"^there are two children named 'a': names must be unique$"):
        Supervision(children("a", "b", "a"), strategy=strategy)


@given(length=st.integers(1, 6), before=st.integers(0, 3), order=st.randoms())
def test_a_circle_is_named_from_who_depends_on_whom(length: int, before: int, order: Any) -> None:
    needs = {f"c{at}": [f"c{(at + 1) % length}"] for at in range(length)}
    needs |= {f"x{at}": [f"x{at - 1}" if at else "c0"] for at in range(before)}
    needs |= {"free": [], "other": ["free"]}
    names = list(needs)
    order.shuffle(names)
    with pytest.raises(ValueError, match="in a circle: ") as caught:
        Supervision([Child(name, depends_on=needs[name]) for name in names])
    path = str(caught.value).partition(": ")[2].split(" -> ")
    assert len(path) == length + 1
    assert path[0] == path[-1]
    assert all(needed in needs[name] for name, needed in itertools.pairwise(path))


def test_with_rest_for_one_nobody_depends_on_those_behind() -> None:
    with pytest.raises(
        ValueError, match=r": (a -> c -> b -> a|b -> a -> c -> b|c -> b -> a -> c) \(rest_for"
    ):
        Supervision([Child("a", depends_on=["c"]), Child("b"), Child("c")], strategy="rest_for_one")
    Supervision([Child("a"), Child("b"), Child("c", depends_on=["a"])], strategy="rest_for_one")


# In virtual time.

BACKOFFS = st.builds(
    Backoff,
    initial=st.sampled_from([0.0, 0.25, 1.0]),
    factor=st.sampled_from([1, 2, 3]),
    cap=st.sampled_from([0.5, 8.0]),
    jitter=st.sampled_from([0.0, 0.5, 1.0]),
    reset_after=st.sampled_from([0.0, 1.0, 8.0]),
)
SPECS = st.fixed_dictionaries(
    {
        "restart": st.sampled_from(RESTARTS),
        "essential": st.sampled_from([False] * 9 + [True]),
        "needs": st.sets(st.integers(0, 4), max_size=3),
        "backoff": BACKOFFS,
    }
)
INDEX = st.integers(0, 20)
FAILURES = st.sampled_from(["exit 1", "exit 1", ""])


class Twin:
    """What the model knows of a child."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self.runs = ""  # "starting" or "ready": really there
        self.is_asked = False  # to end
        self.is_wanted = False
        self.must_go = False
        self.is_removed = False
        self.end = ""
        self.due = -math.inf
        self.rows = {"starting": 0, "ready": 0}
        self.ready_since = math.inf
        self.failures = {"starting": 0, "ready": 0}
        self.restarts = 0

    @property
    def is_of_use(self) -> bool:
        return self.end == "finished" or (self.runs == "ready" and not self.must_go)


class Run(RuleBasedStateMachine):
    """A world of children around the machine, and what the rules say of each, told at length.

    All times are multiples of 1/64, so that sums are exact.
    """

    @initialize(
        specs=st.lists(SPECS, min_size=3, max_size=5),
        is_backwards=st.booleans(),
        strategy=st.sampled_from([*STRATEGIES, "one_for_all", "rest_for_one"]),
        max_restarts=st.sampled_from([0, 2, 99, 99, 99]),
        max_seconds=st.sampled_from([1.0, 5.0]),
        ends_all=st.booleans(),
        chance=st.sampled_from([0.0, 0.5, 1.0]),
        is_lazy=st.booleans(),
    )
    def begin(
        self,
        specs: list[dict[str, Any]],
        is_backwards: bool,
        strategy: Any,
        max_restarts: int,
        max_seconds: float,
        ends_all: bool,
        chance: float,
        is_lazy: bool,
    ) -> None:
        self.strategy, self.max_restarts, self.max_seconds = strategy, max_restarts, max_seconds
        self.ends_all, self.chance, self.is_lazy = ends_all, chance, is_lazy
        self.now = 1000.0
        names = "abcde"[: len(specs)]
        is_backwards = is_backwards and strategy != "rest_for_one"
        kids = []
        for at, (name, spec) in enumerate(zip(names, specs, strict=True)):
            needs = names[at + 1 :] if is_backwards else names[:at]
            kids.append(self.child(name, spec, needs))
        self.twins = {child.name: Twin(child) for child in kids}
        self.decided: list[float] = []  # when restarts were, that are counted
        self.given_up: list[str] = []  # told by the machine
        self.gave_up: list[str] = []  # as it should
        self.is_ending = self.has_failed = self.is_over = False
        self.made = len(kids)
        self.machine = Supervision(
            kids,
            strategy=strategy,
            max_restarts=max_restarts,
            max_seconds=max_seconds,
            on_give_up=self.on_give_up,
            chance=lambda: self.chance,
        )
        assert self.machine.actions(self.now) == []
        self.machine.start()
        for twin in self.twins.values():
            twin.is_wanted = True
        self.happened()

    @staticmethod
    def child(name: str, spec: dict[str, Any], others: str | list[str]) -> Child:
        needs = [others[at] for at in spec["needs"] if at < len(others)]
        rest = {key: value for key, value in spec.items() if key != "needs"}
        return Child(name, depends_on=needs, **rest)

    def on_give_up(self, name: str) -> bool:
        self.given_up.append(name)
        return self.ends_all

    def pick(self, index: int, *, running: bool = False) -> Twin:
        twins = [twin for twin in self.twins.values() if twin.runs or not running]
        return twins[index % len(twins)]

    # What children do.

    @precondition(lambda self: any(twin.runs for twin in self.twins.values()))
    @rule(index=INDEX)
    def one_becomes_ready(self, index: int) -> None:
        """It may have been asked to end: too late."""
        self.becomes_ready(self.pick(index, running=True))
        self.happened()

    @rule()
    def all_do_as_they_are_told(self) -> None:
        """Whoever is asked to end does, and whoever starts becomes ready."""
        self.look()
        while busy := [twin for twin in self.twins.values() if twin.is_asked or twin.runs == "starting"]:
            for twin in busy:
                if twin.is_asked:
                    self.ends(twin, "exit 1")
                else:
                    self.becomes_ready(twin)
            self.look()

    @rule(ends=st.lists(st.tuples(INDEX, FAILURES, st.sampled_from([True] * 5 + [False])), max_size=3))
    def some_end(self, ends: list[tuple[int, str, bool]]) -> None:
        for index, failure, counted in ends:
            if any(twin.runs for twin in self.twins.values()):
                self.ends(self.pick(index, running=True), failure, counted=counted)
                self.happened()

    @precondition(lambda self: self.twins)
    @rule(index=INDEX, failures=st.lists(st.tuples(FAILURES, st.booleans()), min_size=2, max_size=5))
    def one_ends_as_often_as_it_starts(self, index: int, failures: list[tuple[str, bool]]) -> None:
        twin = self.pick(index)
        for failure, is_ready in failures:
            self.look()
            self.now = max(self.now, twin.due)
            self.look()
            if is_ready:
                self.becomes_ready(twin)
            if twin.runs:
                self.ends(twin, failure)
            if not twin.is_wanted:
                break

    @rule(dt=st.sampled_from([None, None, None, 0.125, 0.25, 0.5, 1.0, 5.0, 8.0]))
    def time_passes(self, dt: float | None) -> None:
        """To the deadline, if no time is given."""
        self.look()
        deadline = self.machine.deadline
        if dt is not None:
            self.now += dt
            self.look()
        elif deadline is not None:
            self.now = deadline - 1 / 64
            assert self.look() == []
            self.now = deadline
            assert any(action == "start" for action, _ in self.look())

    # What users do.

    @precondition(lambda self: self.twins)
    @rule(index=INDEX, what=st.sampled_from(["stop", "start", "restart"]))
    def a_user_wants_something(self, index: int, what: str) -> None:
        twin = self.pick(index)
        act = getattr(self.machine, f"{what}_child")
        if what == "stop":
            act(twin.child.name)
            self.goes(twin)
            twin.end = "stopped"
        elif self.is_ending or twin.is_removed:
            with pytest.raises(ValueError, match=r"is ending|is removed"):
                act(twin.child.name)
        else:
            act(twin.child.name)
            # A stop that is only owed is taken back, if it was not half of a restart.
            if twin.must_go and not twin.is_asked and not twin.is_wanted:
                twin.must_go = False
            twin.is_wanted, twin.end, twin.due, twin.rows = True, "", -math.inf, {"starting": 0, "ready": 0}
            twin.must_go = twin.must_go or (what == "restart" and twin.runs != "")
        self.happened()

    @precondition(lambda self: len(self.twins) > 2)
    @rule(index=INDEX)
    def a_user_removes_one(self, index: int) -> None:
        twin = self.pick(index)
        name = twin.child.name
        if any(name in other.child.depends_on for other in self.twins.values()):
            with pytest.raises(ValueError, match=f"'{name}' is what"):
                self.machine.remove(name)
            return
        self.machine.remove(name)
        self.goes(twin)
        twin.is_removed = True
        if not twin.runs:
            del self.twins[name]
        self.happened()

    @precondition(lambda self: len(self.twins) < 6)
    @rule(spec=SPECS)
    def a_user_adds_one(self, spec: dict[str, Any]) -> None:
        self.made += 1
        there = [name for name, twin in self.twins.items() if not twin.is_removed]
        child = self.child(f"n{self.made}", spec, there)
        if self.is_ending:
            with pytest.raises(ValueError, match="is ending"):
                self.machine.add(child)
            return
        self.machine.add(child)
        self.twins[child.name] = Twin(child)
        self.twins[child.name].is_wanted = True
        self.happened()

    @rule(really=st.sampled_from([False] * 15 + [True]), failure=st.sampled_from(["", "no"]))
    def the_supervisor_is_stopped(self, really: bool, failure: str) -> None:
        if really:
            self.machine.stop(failure)
            self.stop(failure)
            self.happened()

    # What the machine does about it.

    def happened(self) -> None:
        if not self.is_lazy:
            self.look()

    @precondition(lambda self: self.is_lazy)
    @rule()
    def the_driver_looks(self) -> None:
        self.look()

    def look(self) -> list[tuple[str, str]]:
        """Do what the machine says, if that is what the rules say."""
        todo = self.machine.actions(self.now)
        stops = {name for name, twin in self.twins.items() if self.may_stop(twin)}
        asked = [name for action, name in todo if action == "stop"]
        assert (len(asked), set(asked)) == (len(stops), stops)
        for name in asked:
            self.twins[name].is_asked = True
        starts = {name: twin for name, twin in self.twins.items() if self.may_start(twin)}
        started = [name for action, name in todo if action == "start"]
        assert started == [name for name, twin in starts.items() if twin.due <= self.now]
        for name in started:
            twin = self.twins[name]
            assert not twin.runs, f"{name} is there already"
            assert self.machine.outcome is None
            twin.runs = "starting"
        waiting = [twin.due for name, twin in starts.items() if name not in started]
        assert self.machine.deadline == min(waiting, default=None)
        assert all(due > self.now for due in waiting)
        assert self.machine.actions(self.now) == []
        self.is_over = self.is_ending and not any(twin.runs for twin in self.twins.values())
        assert (self.machine.outcome is not None) == self.is_over
        if self.is_over:
            assert bool(self.machine.outcome) == self.has_failed
        return list(todo)

    def may_stop(self, twin: Twin) -> bool:
        if not twin.must_go or twin.is_asked:
            return False
        heirs, new = set[str](), {twin.child.name}
        while new:
            heirs |= new
            new = {heir for heir, other in self.twins.items() if new & set(other.child.depends_on)} - heirs
        heirs.remove(twin.child.name)
        if self.strategy == "rest_for_one":
            heirs.update(list(self.twins)[list(self.twins).index(twin.child.name) + 1 :])
        return not any(self.twins[heir].must_go for heir in heirs)

    def may_start(self, twin: Twin) -> bool:
        """But for its time."""
        if not twin.is_wanted or twin.runs:
            return False
        others = list(self.twins.values())
        if self.strategy != "one_for_one" and any(other.must_go for other in others):
            return False
        before = others[: others.index(twin)] if self.strategy == "rest_for_one" else []
        return all(self.twins[needed].is_of_use for needed in twin.child.depends_on) and all(
            other.is_of_use or not other.is_wanted for other in before
        )

    def is_blocked(self, twin: Twin) -> bool:
        """Whether it needs one that is down, or that waits for one that is."""
        needed = [self.twins[name] for name in twin.child.depends_on]
        missing = [other for other in needed if not (other.runs or other.is_of_use)]
        return any(not other.is_wanted or self.is_blocked(other) for other in missing)

    def goes(self, twin: Twin) -> None:
        twin.is_wanted, twin.must_go = False, twin.runs != ""
        twin.end = twin.end or "stopped"

    def stop(self, failure: str) -> None:
        self.is_ending, self.has_failed = True, self.has_failed or (failure != "" and not self.is_over)
        for twin in self.twins.values():
            self.goes(twin)

    def becomes_ready(self, twin: Twin) -> None:
        self.machine.ready(twin.child.name, self.now)
        if twin.runs == "starting" and not twin.is_asked:
            twin.runs, twin.ready_since = "ready", self.now

    def ends(self, twin: Twin, failure: str, *, counted: bool = True) -> None:
        """Let it end, tell the machine, and say what the rules are."""
        child, was = twin.child, twin.runs
        before = sum(other.restarts for other in self.machine.children.values())
        self.machine.exited(child.name, failure, self.now, is_counted=counted)
        if counted and sum(other.restarts for other in self.machine.children.values()) > before:
            window = [at for at in self.decided if self.now - self.max_seconds < at <= self.now]
            assert len(window) < self.max_restarts
            self.decided.append(self.now)
        else:
            window = []
        twin.runs = ""
        twin.is_asked = False
        if self.now - twin.ready_since >= child.backoff.reset_after:
            twin.rows = {"starting": 0, "ready": 0}
        twin.ready_since = math.inf
        if twin.is_removed:
            del self.twins[child.name]
        elif twin.must_go:
            twin.must_go = False
        elif child.restart == "permanent" or (child.restart == "transient" and failure):
            self.fails(twin, was)
            recent = [at for at in self.decided if self.now - at < self.max_seconds]
            is_again = child.restarts > twin.restarts
            if counted:
                # The one that was decided just now is among them.
                assert is_again == (len(recent) - is_again < self.max_restarts)
            else:
                assert is_again
            if is_again:
                self.comes_back(twin, was)
            else:
                self.is_given_up(twin)
        else:
            if failure:
                self.fails(twin, was)
            twin.is_wanted, twin.end = False, "failed" if failure else "finished"
            if child.essential:
                self.stop(failure)

    def fails(self, twin: Twin, was: str) -> None:
        twin.rows[was] += 1
        twin.failures[was] += 1

    def is_given_up(self, twin: Twin) -> None:
        twin.is_wanted, twin.end = False, "failed"
        if not twin.child.essential:
            self.gave_up.append(twin.child.name)
        if twin.child.essential or self.ends_all:
            self.stop("given up")

    def comes_back(self, twin: Twin, was: str) -> None:
        twin.restarts += 1
        backoff = twin.child.backoff
        wait = backoff.initial
        for _ in range(twin.rows[was] - 1):
            wait *= backoff.factor
        twin.due = self.now + min(wait, backoff.cap) * (1 + backoff.jitter * self.chance)
        others = list(self.twins.values())
        group = {"one_for_one": [], "one_for_all": others, "rest_for_one": others[others.index(twin) :]}
        for other in group[self.strategy]:
            is_temporary = other.child.restart == "temporary"
            if other is twin or other.end == "stopped":
                continue
            if other.runs and is_temporary:
                self.goes(other)
            elif other.runs:
                other.must_go, other.due = True, twin.due
            elif other.end == "finished" and not is_temporary:
                other.is_wanted, other.end, other.due = True, "", twin.due

    # What has to hold.

    @invariant()
    def what_is_told_is_true(self) -> None:
        assert list(self.machine.children) == list(self.twins)
        for name, child in self.machine.children.items():
            twin = self.twins[name]
            assert child.is_there == (twin.runs != "")
            assert child.ending == twin.end
            assert child.is_of_use == twin.is_of_use
            assert child.restarts == twin.restarts
            assert [child.start_failures, child.failures] == list(twin.failures.values())
            state = "stopping" if twin.is_asked else twin.runs or ("waiting" if twin.is_wanted else "stopped")
            assert child.state == state
            assert child.is_settled == (child.is_of_use or state == "stopped")
            assert (self.machine.blocker(name) is not None) == self.is_blocked(twin)
        assert self.machine.is_ending == self.is_ending
        assert self.given_up == self.gave_up
        assert self.machine.is_settled == all(
            not self.may_start(twin) and not twin.must_go and twin.runs != "starting"
            for twin in self.twins.values()
        )

    @invariant()
    def nobody_is_left_when_it_is_over(self) -> None:
        if self.machine.outcome is not None:
            assert not any(twin.runs for twin in self.twins.values())

    def calm_down(self) -> None:
        """No more events but those that are due."""
        for _ in range(100):
            self.all_do_as_they_are_told()
            if self.machine.deadline is None:
                return
            self.now = self.machine.deadline
        pytest.fail("it does not come to rest")

    def teardown(self) -> None:
        """In the end all that can run does; and after a stop nothing, ever."""
        if not hasattr(self, "machine"):
            return
        self.calm_down()
        assert self.machine.is_settled
        twins = list(self.twins.values())
        for at, twin in enumerate(twins):
            needed = [self.twins[name] for name in twin.child.depends_on]
            before = [other for other in twins[:at] if other.is_wanted and self.strategy == "rest_for_one"]
            is_blocked = not all(other.is_of_use for other in needed + before)
            assert (twin.runs == "ready") == (twin.is_wanted and (not is_blocked or twin.runs != ""))
        self.machine.stop()
        self.stop("")
        self.calm_down()
        assert self.machine.outcome is not None
        for _ in range(3):
            self.now += 1000.0
            assert self.look() == []


TestRun = Run.TestCase
TestRun.settings = settings(max_examples=3 * settings.default.max_examples)


def cost(count: int, strategy: Any, shape: str) -> float:
    """Seconds of CPU to start and stop so many, where the machine is asked after each single event."""
    many = [Child("0")]
    for at in range(1, count):
        needs = {"nobody depends": [], "each depends on the one before": [str(at - 1)]}.get(shape, ["0"])
        many.append(Child(str(at), depends_on=needs))
    begin = time.process_time()
    machine = Supervision(many, strategy=strategy)
    machine.start()
    started = machine.actions(0.0)
    for action, name in started:
        assert action == "start"
        machine.ready(name, 0.0)
        started += machine.actions(0.0)
        assert machine.deadline is None
    machine.stop()
    stopped = machine.actions(0.0)
    for action, name in stopped:
        assert action == "stop"
        machine.exited(name, "", 0.0)
        stopped += machine.actions(0.0)
    assert (len(started), len(stopped), machine.outcome) == (count, count, "")
    return time.process_time() - begin


@pytest.mark.parametrize("shape", ["nobody depends", "each depends on the one before", "all depend on one"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_event_costs_what_one_look_at_all_costs(strategy: Any, shape: str) -> None:
    """Four times as many children then take 16 times as long, not 64: 0.1 to 1 s for 500."""
    assert cost(500, strategy, shape) < 32 * min(cost(125, strategy, shape) for _ in range(3))
