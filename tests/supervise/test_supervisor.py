"""Who is started again and when, in which order, and what may be asked of a tree while it runs."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from arena import BOUND, Arena, is_alive
from hostlib import hear, muontrap, say
from recorder import AT_ONCE, STAYS, Recorder, sh, wait_until

from muontrap import Backoff, Daemon, Supervisor, SupervisorEvent, SupervisorFailed

Measure = Callable[[float], None]

pytestmark = pytest.mark.slow

STUBBORN = sh("trap '' TERM; echo up; while :; do sleep 1000; done")


def pids_of(tree: Supervisor) -> dict[str, int | None]:
    return {each.name: each.pid for each in tree.which_children()}


def states_of(tree: Supervisor) -> dict[str, str]:
    return {each.name: each.state for each in tree.which_children()}


def three(**options: Any) -> list[Daemon]:
    return [Daemon(STAYS, name=name, backoff=AT_ONCE, **options) for name in "abc"]


def kill(pid: int | None) -> None:
    assert pid
    os.kill(pid, signal.SIGKILL)


# --- The original's tests, restated


def test_a_command_that_crashes_is_started_again() -> None:
    recorder = Recorder()
    with Supervisor([Daemon(STAYS, name="d", backoff=AT_ONCE)], on_event=recorder) as tree:
        before = pids_of(tree)["d"]
        kill(before)
        recorder.wait("ready", "d", 2)
        after = tree.which_children()[0]
        assert after.pid not in (None, before)
        assert (after.restarts, after.failures, after.start_failures) == (1, 1, 0)
        assert after.last_exit == "killed by signal 9"
    assert recorder.words() == [
        "d started", "d ready", "d exited", "d restarted", "d ready", "d exited"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("restart", "status", "restarts"),
    [
        ("permanent", 0, 1),
        ("permanent", 3, 1),
        ("transient", 0, 0),
        ("transient", 3, 1),
        ("transient", 7, 0),
        ("temporary", 0, 0),
        ("temporary", 3, 0),
    ],
)
def test_the_restart_type_says_after_which_ends_there_is_another_start(
    restart: Any, status: int, restarts: int
) -> None:
    recorder = Recorder()
    daemon = Daemon(
        sh(f"exit {status}"), name="d", restart=restart, success_exit_status=[7], backoff=Backoff(1000)
    )
    with Supervisor([daemon], on_event=recorder) as tree:
        exited = recorder.wait("exited", "d")
        tree.events()  # asks the tree's thread, which has dealt with the exit then
        assert daemon.statistics().restarts == restarts
        assert daemon.statistics().state == ("waiting" if restarts else "stopped")
    assert exited.why == ("success" if status in (0, 7) else f"exit status {status}")


def test_the_second_try_of_a_program_that_fails_once_succeeds(tmp_path: Path) -> None:
    recorder = Recorder()
    script = f"test -e {tmp_path}/tried && exit 0; touch {tmp_path}/tried; exit 1"
    daemon = Daemon(sh(script), name="d", restart="transient", backoff=AT_ONCE)
    with Supervisor([daemon], on_event=recorder):
        recorder.wait("exited", "d", 2)
    assert [event.why for event in recorder.of("exited", "d")] == ["exit status 1", "success"]
    assert daemon.statistics().restarts == 1


def test_more_restarts_than_the_intensity_end_the_supervisor_with_its_story() -> None:
    recorder = Recorder()
    daemons = [Daemon(sh("exit 3"), name="d", backoff=AT_ONCE), Daemon(STAYS, name="other")]
    tree = Supervisor(daemons, name="root", max_restarts=2, max_seconds=100, on_event=recorder)
    with pytest.raises(SupervisorFailed) as raised, tree:
        tree.wait(2 * BOUND)
    assert str(raised.value).splitlines() == [
        "root: d: more than 2 restarts in 100 s, last: exit status 3",
        *["  d: exit status 3"] * 3,
        "  d: more than 2 restarts in 100 s: given up",
    ]
    assert raised.value.story[-1] == "d: more than 2 restarts in 100 s: given up"
    assert len(recorder.of("restarted", "d")) == 2
    assert recorder.of("gave-up", "d")[0].why == "exit status 3"
    assert recorder.of("exited", "other")[0].why == "stopped"
    assert states_of(tree) == {"d": "stopped", "other": "stopped"}


def test_a_supervisor_that_gave_up_is_a_failed_child_of_its_parent() -> None:
    recorder = Recorder()
    group = Supervisor(
        [Daemon(sh("exit 3"), name="d", backoff=AT_ONCE)], name="group", max_restarts=1, backoff=AT_ONCE
    )
    with (
        pytest.raises(SupervisorFailed, match="group: more than 1 restarts") as raised,
        Supervisor([group, Daemon(STAYS, name="other")], max_restarts=1, on_event=recorder) as tree,
    ):
        tree.wait(2 * BOUND)
    assert len(recorder.of("restarted", "group")) == 1
    assert len(recorder.of("exited", "group/d")) == 4
    assert "group: d: more than 1 restarts in 5 s, last: exit status 3" in raised.value.story
    assert pids_of(tree) == {"group/d": None, "other": None}


def test_names_are_unique_among_siblings_only() -> None:
    with pytest.raises(ValueError, match="two children named 'sleep'"):
        Supervisor([Daemon(STAYS), Daemon(STAYS)])
    with pytest.raises(ValueError, match="two children named 'x'"):
        Supervisor([Daemon(STAYS, name="x"), Supervisor(name="x")])
    group = Supervisor([Daemon(STAYS, name="x")], name="group")
    with Supervisor([group, Daemon(STAYS, name="x")]) as tree:
        for name in "x", "group":
            with pytest.raises(ValueError, match=f"two children named '{name}'"):
                tree.add(Daemon(STAYS, name=name))
        assert list(pids_of(tree)) == ["group/x", "x"]
        assert None not in pids_of(tree).values()
        assert tree.child("group/x") is group.child("x") is not tree.child("x")


# --- Order


def test_a_child_starts_when_what_it_depends_on_is_ready_and_stops_before_it() -> None:
    recorder = Recorder()
    daemons = [
        Daemon(STAYS, name="web", depends_on=["app"]),
        Daemon(sh("sleep 0.2; echo up; exec sleep 1000"), name="db", ready="output:up"),
        Daemon(STAYS, name="app", depends_on=["db"]),
    ]
    with Supervisor(daemons, on_event=recorder):
        pass
    assert recorder.words() == [
        *("db started", "db ready", "app started", "app ready", "web started", "web ready"),
        *("web exited", "app exited", "db exited"),
    ]


def test_a_supervisor_may_be_depended_on() -> None:
    recorder = Recorder()
    slow = Daemon(sh("sleep 0.2; echo up; exec sleep 1000"), name="db", ready="output:up")
    children = [Daemon(STAYS, name="web", depends_on=["group"]), Supervisor([slow], name="group")]
    with Supervisor(children, on_event=recorder):
        pass
    words = recorder.words()
    order = ["group/db ready", "group ready", "web started", "web exited", "group/db exited", "group exited"]
    assert sorted(order, key=words.index) == order
    assert {event.why for event in recorder.events if event.kind == "exited"} == {"stopped"}


def test_graces_are_waited_for_at_the_same_time_where_order_allows(measure: Measure) -> None:
    grace = 0.5
    recorder = Recorder()
    stubborn = [
        Daemon(STUBBORN, name=f"s{number}", delay_to_sigkill=grace, ready="output:up") for number in range(6)
    ]
    tree = Supervisor([*stubborn, Daemon(STAYS, name="polite")], on_event=recorder)
    tree.start()
    begin, began = time.monotonic(), time.time()
    tree.stop()
    took = time.monotonic() - begin
    measure(took)
    assert grace <= took < 3 * grace
    assert recorder.of("exited", "polite")[0].when - began < grace / 2


def test_what_others_depend_on_stops_after_their_grace() -> None:
    grace = 0.3
    recorder = Recorder()
    options: dict[str, Any] = {"delay_to_sigkill": grace, "ready": "output:up"}
    daemons = [
        Daemon(STAYS, name="base"),
        Daemon(STUBBORN, name="middle", depends_on=["base"], **options),
        Daemon(STUBBORN, name="top", depends_on=["middle"], **options),
    ]
    with Supervisor(daemons, on_event=recorder):
        pass
    top, middle, base = (recorder.of("exited", name)[0].when for name in ("top", "middle", "base"))
    assert middle - top >= grace * 0.9
    assert base > middle


@pytest.mark.parametrize(
    ("strategy", "replaced"), [("one_for_one", "b"), ("one_for_all", "abc"), ("rest_for_one", "bc")]
)
def test_the_strategy_says_who_is_restarted_with_a_child(strategy: Any, replaced: str) -> None:
    recorder = Recorder()
    with Supervisor(three(), strategy=strategy, on_event=recorder) as tree:
        before = pids_of(tree)
        kill(before["b"])
        for name in replaced:
            recorder.wait("ready", name, 2)
        after = pids_of(tree)
        assert {name for name in "abc" if before[name] != after[name]} == set(replaced)
        assert None not in after.values()
        assert {each.name: each.restarts for each in tree.which_children()} == {"a": 0, "b": 1, "c": 0}


def test_with_rest_for_one_starts_and_stops_are_in_strict_order() -> None:
    recorder = Recorder()
    with Supervisor(three(), strategy="rest_for_one", on_event=recorder):
        pass
    assert recorder.words() == [
        *(f"{name} {kind}" for name in "abc" for kind in ("started", "ready")),
        *(f"{name} exited" for name in "cba"),
    ]


# --- The end of a child that matters, and of one that is given up


@pytest.mark.parametrize("status", [0, 3])
def test_the_end_of_an_essential_child_is_the_end_of_its_supervisor(status: int) -> None:
    daemons = [
        Daemon(STAYS, name="other"),
        Daemon(sh(f"exit {status}"), name="job", restart="temporary", essential=True),
    ]
    tree = Supervisor(daemons, name="root")
    if status:
        with pytest.raises(SupervisorFailed, match="root: essential child job has ended: exit status 3"):
            tree.start() or tree.wait(2 * BOUND)
    else:
        tree.start()
        assert tree.wait(2 * BOUND)
    assert pids_of(tree) == {"other": None, "job": None}


def failing(recorder: Recorder, on_give_up: Any) -> Supervisor:
    daemons = [Daemon(sh("exit 3"), name="d", backoff=AT_ONCE), Daemon(STAYS, name="other")]
    return Supervisor(daemons, max_restarts=1, max_seconds=100, on_give_up=on_give_up, on_event=recorder)


def test_a_child_that_is_given_up_may_stay_down() -> None:
    recorder = Recorder()
    with failing(recorder, "ignore") as tree:
        recorder.wait("gave-up", "d")
        tree.restart("other")
        assert states_of(tree) == {"d": "stopped", "other": "ready"}
    assert len(recorder.of("exited", "d")) == 2


@pytest.mark.parametrize("answer", ["ignore", "stop_all"])
def test_a_function_may_decide_what_becomes_of_the_rest(answer: str) -> None:
    recorder, told = Recorder(), []

    def decide(name: str, story: str) -> str:
        told.append((name, story))
        return answer

    tree = failing(recorder, decide)
    tree.start()
    recorder.wait("gave-up", "d")
    if answer == "ignore":
        assert tree.which_children()[1].state == "ready"
        tree.stop()
    else:
        with pytest.raises(SupervisorFailed):
            tree.wait(2 * BOUND)
    assert [name for name, _ in told] == ["d"]
    assert told[0][1].splitlines() == [
        *["d: exit status 3"] * 2,
        "d: more than 1 restarts in 100 s: given up",
    ]


def test_a_function_that_can_not_decide_stops_all(caplog: pytest.LogCaptureFixture) -> None:
    def decide(_name: str, _story: str) -> Any:
        raise LookupError("no idea")

    with pytest.raises(SupervisorFailed, match="more than 1 restarts"), failing(Recorder(), decide) as tree:
        assert tree.wait(2 * BOUND)
    assert "no idea" in caplog.text


# --- Asked for while it runs


def test_a_child_is_stopped_started_and_restarted_by_name() -> None:
    group = Supervisor([Daemon(STAYS, name="x")], name="group")
    with Supervisor([group, Daemon(STAYS, name="y")]) as tree:
        for name in "y", "group/x":
            before = pids_of(tree)[name]
            assert before
            tree.stop_child(name)
            assert not is_alive(before)
            assert (pids_of(tree)[name], states_of(tree)[name]) == (None, "stopped")
            tree.stop_child(name)  # again: nothing to do
            tree.start_child(name)
            second = pids_of(tree)[name]
            tree.start_child(name)
            assert second is not None
            assert pids_of(tree)[name] == second
            tree.restart(name)
            assert pids_of(tree)[name] not in (None, second)
            assert not is_alive(second)
        tree.restart("group")
        group.restart("x")
        group.stop()
        assert states_of(tree) == {"group/x": "stopped", "y": "ready"}
        tree.start_child("group")
        assert states_of(tree) == {"group/x": "ready", "y": "ready"}
        assert [each.restarts for each in tree.which_children()] == [0, 0]


def test_who_depends_on_one_that_is_down_is_not_waited_for() -> None:
    """Nor changed: what runs without what it depends on runs on."""
    daemons = [Daemon(STAYS, name="db"), Daemon(STAYS, name="app", depends_on=["db"])]
    with Supervisor([*daemons, Daemon(STAYS, name="web", depends_on=["app"])]) as tree:
        tree.stop_child("db")
        before = pids_of(tree)
        for method in tree.start_child, tree.restart:
            with pytest.raises(ValueError, match="'app' depends on 'db', which is down"):
                method("app")
        assert pids_of(tree) == before
        tree.stop_child("app")  # is waited for
        assert pids_of(tree)["app"] is None
        with pytest.raises(ValueError, match="'web' depends on 'app', which is down"):
            tree.restart("web")
        tree.start_child("db")
        tree.start_child("app")
        tree.restart("web")
        assert states_of(tree) == {"db": "ready", "app": "ready", "web": "ready"}


def test_a_child_of_a_group_that_is_down_is_not_started() -> None:
    group = Supervisor([Daemon(STAYS, name="x")], name="group")
    db = Daemon(STAYS, name="db", ready="file:/no/such")
    waits = Supervisor([Daemon(STAYS, name="x")], name="waits", depends_on=["db"])
    tree = Supervisor([group, db, waits])
    with pytest.raises(TimeoutError):
        tree.start(timeout=0)
    try:
        tree.stop_child("group")
        for name in "group", "waits":
            for method in tree.start_child, tree.restart:
                with pytest.raises(ValueError, match=f"group {name!r} is down: start that before"):
                    method(f"{name}/x", timeout=2 * BOUND)
        tree.start_child("group")
        tree.restart("group/x")
    finally:
        tree.stop()


def test_who_waits_for_one_that_goes_down_meanwhile_is_not_waited_for_either() -> None:
    recorder = Recorder()
    db = Daemon(STAYS, name="db", ready="file:/no/such")
    tree = Supervisor([db, Daemon(STAYS, name="web", depends_on=["db"])], on_event=recorder)
    with pytest.raises(TimeoutError):
        tree.start(timeout=0)
    try:
        recorder.wait("started", "db")
        threading.Timer(0.1, tree.stop_child, ["db"]).start()
        tree.start_child("web", timeout=2 * BOUND)
        assert states_of(tree) == {"db": "stopped", "web": "waiting"}
    finally:
        tree.stop()


def test_children_come_and_go() -> None:
    recorder = Recorder()
    with Supervisor(on_event=recorder) as tree:
        daemon = Daemon(STAYS, name="new")
        group = Supervisor([Daemon(STAYS, name="x")], name="group", depends_on=["new"])
        tree.add(daemon)
        tree.add(group)
        recorder.wait("ready", "group")
        pid = daemon.os_pid
        assert pid
        assert is_alive(pid)
        with pytest.raises(ValueError, match="'new' is what group depends on"):
            tree.remove("new")
        tree.remove("group/x")
        tree.remove("group")
        tree.remove("new")
        assert not is_alive(pid)
        assert tree.which_children() == []
        with pytest.raises(KeyError, match="new"):
            tree.child("new")
        tree.add(daemon)  # it is nobody's child any more
        recorder.wait("ready", "new", 2)


def test_children_of_one_that_does_not_run_come_and_go_too() -> None:
    tree = Supervisor([Daemon(STAYS, name="a")])
    tree.add(Daemon(STAYS, name="b", depends_on=["a"]))
    with pytest.raises(ValueError, match="'a' is what b depends on"):
        tree.remove("a")
    with pytest.raises(ValueError, match="depends on 'z', which is no child"):
        tree.add(Daemon(STAYS, name="c", depends_on=["z"]))
    tree.add(Daemon(STAYS, name="c"))
    tree.remove("b")
    with tree:
        assert list(pids_of(tree)) == ["a", "c"]
    tree.remove("a")
    tree.add(Daemon(STAYS, name="a"))
    with tree:
        assert list(pids_of(tree)) == ["c", "a"]


@pytest.mark.parametrize(
    "name", ["nobody", "group/nobody", "nobody/web", "web/x", "group/group/x", "", "/web", "web/"]
)
def test_a_name_that_nobody_has_is_a_key_error(name: str) -> None:
    group = Supervisor([Daemon(STAYS, name="x")], name="group")
    with Supervisor([Daemon(STAYS, name="web"), group]) as tree:
        before = pids_of(tree)
        for method in tree.child, tree.restart, tree.start_child, tree.stop_child, tree.remove:
            with pytest.raises(KeyError) as raised:
                method(name)
            assert repr(name) in str(raised.value.args[0])
        assert pids_of(tree) == before


def test_what_takes_longer_than_its_timeout_goes_on_all_the_same() -> None:
    recorder = Recorder()
    daemon = Daemon(STUBBORN, name="d", delay_to_sigkill=1, ready="output:up")
    with Supervisor([daemon], on_event=recorder) as tree:
        with pytest.raises(TimeoutError, match=r"0\.05 s"):
            tree.restart("d", timeout=0.05)
        recorder.wait("ready", "d", 2)
        with pytest.raises(TimeoutError):
            tree.stop_child("d", timeout=0)
        recorder.wait("exited", "d", 2)
        tree.start_child("d", timeout=2 * BOUND)
        with pytest.raises(TimeoutError):
            tree.remove("d", timeout=0.05)
        recorder.wait("exited", "d", 3)
        tree.events()
        with pytest.raises(KeyError):
            tree.child("d")
        assert daemon.supervisor is None
        for method in tree.restart, tree.start_child, tree.stop_child:
            with pytest.raises(KeyError):
                method("d")


def test_a_callback_may_ask_for_changes_of_its_own_tree() -> None:
    """From the tree's own thread nothing waits, and nothing is a deadlock."""
    recorder = Recorder()
    errors: list[BaseException] = []

    def react(event: SupervisorEvent) -> None:
        recorder(event)
        try:
            if (event.kind, event.name) == ("ready", "a"):
                {
                    1: lambda: tree.add(Daemon(STAYS, name="d")),
                    2: lambda: tree.remove("b"),
                    3: lambda: tree.stop_child("c"),
                }[len(recorder.of("ready", "a"))]()
            elif (event.kind, event.name) == ("ready", "d"):
                tree.restart("a")
            elif (event.kind, event.name) == ("exited", "b"):
                tree.restart("a", timeout=0)
            elif (event.kind, event.name, len(recorder.of("exited", "c"))) == ("exited", "c", 1):
                tree.child("a")
                tree.which_children()
                tree.start_child("c")
            elif (event.kind, event.name, len(recorder.of("ready", "c"))) == ("ready", "c", 2):
                tree.stop()
        except BaseException as error:
            errors.append(error)

    tree = Supervisor(three(), on_event=react)
    tree.start()
    try:
        assert tree.wait(2 * BOUND), (recorder.events, errors)
    finally:
        tree.stop()
    assert errors == []
    assert list(pids_of(tree)) == ["a", "c", "d"]


def test_a_callback_that_waits_for_its_tree_is_told_that_it_never_will() -> None:
    told: list[str] = []

    def wait(event: SupervisorEvent) -> None:
        if event.kind == "ready":
            try:
                tree.wait()
            except RuntimeError as error:
                told.append(str(error))

    tree = Supervisor([Daemon(STAYS)], on_event=wait)
    with tree:
        pass
    assert len(told) == 1


@pytest.mark.parametrize("number", range(1, 7))
def test_a_callback_may_stop_the_tree_at_any_event(number: int) -> None:
    """Also of a child whose task has not begun yet."""
    recorder = Recorder()

    def stop(event: SupervisorEvent) -> None:
        recorder(event)
        if len(recorder.events) == number:
            tree.stop()

    group = Supervisor([Daemon(STAYS, name="x")], name="group")
    tree = Supervisor([group, *three()], on_event=stop)
    tree.start(timeout=2 * BOUND)
    assert tree.wait(2 * BOUND), recorder.events
    assert set(states_of(tree).values()) == {"stopped"}


def test_a_callback_that_raises_is_logged_and_called_again(caplog: pytest.LogCaptureFixture) -> None:
    seen = []

    def fail(event: SupervisorEvent) -> None:
        seen.append(event.kind)
        raise ZeroDivisionError("in the callback")

    with Supervisor([Daemon(STAYS)], on_event=fail):
        pass
    assert seen == ["started", "ready", "exited"]
    assert caplog.text.count("ZeroDivisionError: in the callback") == 3


def test_events_come_to_iterators_until_the_tree_has_ended() -> None:
    tree = Supervisor([Daemon(STAYS, name="a")])
    with tree:
        first, second = tree.events(), tree.events()
        tree.restart("a")
        assert [f"{event.name} {event.kind}" for event in (next(first), next(first))] == [
            "a exited",
            "a started",
        ]
        third = tree.events()
    assert [event.kind for event in first] == ["ready", "exited"]
    assert [event.kind for event in second] == ["exited", "started", "ready", "exited"]
    assert [event.kind for event in third] == ["exited"]
    assert list(tree.events()) == []


def test_events_that_nobody_reads_any_more_are_not_kept() -> None:
    with Supervisor([Daemon(STAYS, name="a")]) as tree:
        kept = tree.events()
        for _ in range(100):
            tree.events()
        gc.collect()
        assert tree._tree
        assert list(tree._tree.listeners) == [kept]
        tree.restart("a")
    assert [event.kind for event in kept] == ["exited", "started", "ready", "exited"]
    assert list(kept) == []


def test_a_tree_without_trouble_does_without_logging_and_what_else_it_has_no_use_for() -> None:
    code = """
import sys
from muontrap import Daemon, Supervisor
with Supervisor([Daemon(["sleep", "1000"])]) as tree:
    tree.restart("sleep")
print(*{"asyncio", "logging", "concurrent.futures", "inspect", "queue", "random", "ssl"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("\n", "")


def test_a_program_without_logging_hears_of_failures() -> None:
    code = """
import threading
from muontrap import Daemon, Supervisor
ended = threading.Event()
def fail(event):
    if event.kind == "exited":
        ended.set()
    1 / 0
with Supervisor([Daemon(["false"], restart="temporary")], on_event=fail):
    ended.wait(10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "false exited: exit status 1" in done.stderr.splitlines()
    assert done.stderr.count("\nZeroDivisionError: division by zero\n") == 3


def test_events_are_logged_with_a_level_that_fits(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "muontrap.supervisor")
    group = Supervisor([Daemon(sh("exit 3"), name="d")], name="group", max_restarts=0, on_give_up="ignore")
    recorder = Recorder()
    with Supervisor([group], on_event=recorder):
        recorder.wait("gave-up", "group/d")
    logged = {
        (record.levelname, record.getMessage())
        for record in caplog.records
        if record.name == "muontrap.supervisor"
    }
    assert logged == {
        ("INFO", "group started"),
        ("INFO", "group ready"),
        ("INFO", "group/d started"),
        ("INFO", "group/d ready"),
        ("WARNING", "group/d exited: exit status 3"),
        ("ERROR", "group/d gave-up: exit status 3"),
        ("INFO", "group exited: stopped"),
    }


# --- The life of a tree


def test_a_tree_that_runs_can_not_be_started_again_and_goes_on() -> None:
    tree = Supervisor(three())
    with tree:
        before = pids_of(tree)
        with pytest.raises(ValueError, match="is running"):
            tree.start()
        with pytest.raises(ValueError, match="is running"), tree:
            pass
        assert pids_of(tree) == before
        assert states_of(tree) == dict.fromkeys("abc", "ready")
    group = Supervisor([Daemon(STAYS)], name="group")
    with Supervisor([group]) as tree:
        with pytest.raises(ValueError, match="started by its supervisor"), group:
            pass
        assert set(states_of(tree).values()) == {"ready"}


def test_of_many_starts_at_once_there_is_one() -> None:
    for _ in range(20):
        tree = Supervisor([Daemon(STAYS, name="a")])
        barrier = threading.Barrier(4)
        answers: list[str] = []

        def start(
            tree: Supervisor = tree, barrier: threading.Barrier = barrier, answers: list[str] = answers
        ) -> None:
            barrier.wait()
            try:
                tree.start()
                answers.append("started")
            except ValueError as error:
                answers.append(str(error))

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == ["'supervisor' is running"] * 3 + ["started"]
        ours = [each for each in threading.enumerate() if each.name == "muontrap-supervisor"]
        assert len(ours) == 1
        tree.stop()


def test_before_its_start_and_after_its_end_a_tree_refuses_what_needs_it() -> None:
    tree = Supervisor([Daemon(STAYS, name="a")])
    tree.stop()
    for method in tree.wait, tree.events, *(lambda m=m: m("a") for m in (tree.restart, tree.stop_child)):
        with pytest.raises(ValueError, match="not started"):
            method()
    with tree:
        pass
    tree.stop()
    assert tree.wait()
    for change in tree.restart, tree.start_child, tree.stop_child:
        with pytest.raises(ValueError, match="'supervisor' is not running"):
            change("a")
    with tree:
        assert states_of(tree) == {"a": "ready"}


def test_a_supervisor_may_be_used_again() -> None:
    recorder = Recorder()
    group = Supervisor([Daemon(sh("exit 3"), name="d", backoff=AT_ONCE)], name="group", max_restarts=1)
    tree = Supervisor([Daemon(STAYS, name="a"), group], max_restarts=0, on_event=recorder)
    for number in (1, 2, 3):
        with pytest.raises(SupervisorFailed), tree:
            tree.wait(2 * BOUND)
        assert len(recorder.of("restarted", "group/d")) == number
        assert pids_of(tree) == {"a": None, "group/d": None}
    tree.remove("group")
    for _ in range(3):
        with tree:
            assert states_of(tree) == {"a": "ready"}


def test_a_daemon_has_one_supervisor_at_most() -> None:
    daemon = Daemon(STAYS, name="a")
    tree = Supervisor([daemon], name="first")
    with pytest.raises(ValueError, match="'a' has a supervisor already: 'first'"):
        Supervisor([daemon])
    with pytest.raises(ValueError, match="has a supervisor already"), daemon:
        pass
    other = Supervisor([Daemon(STAYS, name="b")], name="other")
    with other, pytest.raises(ValueError, match="has a supervisor already"):
        other.add(daemon)
    with pytest.raises(ValueError, match="has a supervisor already"):
        Supervisor([tree, tree])
    tree.remove("a")
    with daemon:
        assert daemon.os_pid


def test_a_child_that_was_refused_may_have_another_supervisor() -> None:
    first, second = Daemon(STAYS, name="a"), Daemon(STAYS, name="a")
    with pytest.raises(ValueError, match="two children"):
        Supervisor([first, second])
    with Supervisor([first]), Supervisor([second]):
        pass
    lonely = Daemon(STAYS, name="c", depends_on=["b"])
    with pytest.raises(ValueError, match="which is no child"):
        Supervisor([lonely])
    with Supervisor([Daemon(STAYS, name="b")]) as tree:
        tree.add(lonely)


@pytest.mark.parametrize(
    ("options", "why"),
    [({"cwd": "/no/such"}, "/no/such"), ({"executable": "/no/such/program"}, "/no/such/program")],
)
def test_a_launch_that_fails_is_a_failure_to_start(options: dict[str, Any], why: str) -> None:
    daemon = Daemon(["sleep", "1000"], name="d", backoff=AT_ONCE, **options)
    with pytest.raises(SupervisorFailed) as raised:
        Supervisor([daemon], max_restarts=1).start()
    text = f"d: could not be started: [Errno 2] No such file or directory: {why!r}"
    assert raised.value.story[0] == text
    assert (daemon.statistics().start_failures, daemon.statistics().failures) == (2, 0)


def test_no_thread_is_left_and_one_was_enough() -> None:
    before = set(threading.enumerate())
    with Supervisor([Daemon(STAYS, name=str(number), recent_output=0) for number in range(5)]):
        (one,) = set(threading.enumerate()) - before
        assert one.name == "muontrap-supervisor"
    assert set(threading.enumerate()) <= before


def test_what_says_that_it_is_ready_as_it_is_stopped_is_not(tmp_path: Path) -> None:
    recorder = Recorder()
    script = f"trap 'echo up; exit' TERM; touch {tmp_path}/on; while :; do sleep 0.01; done"
    daemons = [
        Daemon(sh(script), name="late", ready="output:up", delay_to_sigkill=BOUND),
        Daemon(STAYS, name="witness", wait_for=f"file:{tmp_path}/on"),
    ]
    tree = Supervisor(daemons, on_event=recorder)
    with pytest.raises(TimeoutError):
        tree.start(timeout=0)
    recorder.wait("ready", "witness")
    tree.stop()
    assert recorder.of("ready", "late") == []
    assert daemons[0].recent() == b"up\n"


def test_a_start_does_not_wait_for_all_to_be_ready_at_the_same_time() -> None:
    flaps = Daemon(sh("exit 1"), name="flaps", backoff=Backoff(1000))
    slow = Daemon(sh("sleep 0.3; echo up; exec sleep 1000"), name="slow", ready="output:up")
    tree = Supervisor([Supervisor([flaps, slow], name="group")])
    try:
        tree.start(timeout=2 * BOUND)
        assert states_of(tree) == {"group/flaps": "waiting", "group/slow": "ready"}
    finally:
        tree.stop()


def test_a_restart_returns_also_when_it_is_ready_for_a_moment_only() -> None:
    daemon = Daemon(["true"], name="d", backoff=Backoff(1000))
    with Supervisor([daemon], max_restarts=10**6) as tree:
        for _ in range(50):
            tree.restart("d", timeout=2 * BOUND)


def test_what_is_stopped_on_its_way_up_is_never_called_ready() -> None:
    recorder = Recorder()
    never = Daemon(STAYS, name="never", ready="file:/no/such", depends_on=["base"])
    group = Supervisor([Daemon(STAYS, name="base"), never], name="group")
    tree = Supervisor([group], on_event=recorder)
    with pytest.raises(TimeoutError):
        tree.start(timeout=0.1)
    tree.stop()
    assert recorder.words() == [
        *("group started", "group/base started", "group/base ready", "group/never started"),
        *("group/never exited", "group/base exited", "group exited"),
    ]


def test_a_hundred_daemons_start_and_stop_in_seconds(measure: Measure) -> None:
    begin = time.monotonic()
    tree = Supervisor(Daemon(STAYS, name=f"d{number}") for number in range(100))
    tree.start(timeout=4 * BOUND)
    measure(time.monotonic() - begin)
    pids = set(pids_of(tree).values())
    assert len(pids) == 100
    begin = time.monotonic()
    tree.stop()
    took = time.monotonic() - begin
    measure(took)
    assert took < 2 * BOUND
    assert not any(map(is_alive, filter(None, pids)))


def test_many_threads_at_once_may_ask_for_all_of_it() -> None:
    seconds = 1.0
    tree = Supervisor(
        [
            *(Daemon(STAYS, name=name, backoff=AT_ONCE) for name in "abc"),
            Daemon(sh("sleep 0.05; exit 1"), name="crash", backoff=AT_ONCE),
            Supervisor([Daemon(STAYS, name="x")], name="group"),
        ],
        max_restarts=10**6,
    )
    failures: list[BaseException] = []
    pids: set[int] = set()
    ends = time.monotonic() + seconds

    def ask(number: int) -> None:
        chance = random.Random(number)
        while time.monotonic() < ends:
            name = chance.choice(["a", "b", "c", "crash", "group", "group/x", "new"])
            act = chance.choice(["restart", "stop_child", "start_child", "add", "remove", "look", "events"])
            try:
                if act == "add":
                    tree.add(Daemon(STAYS, name="new"))
                elif act == "remove":
                    tree.remove("new")
                elif act == "events":
                    tree.events()
                elif act == "look":
                    pids.update(filter(None, pids_of(tree).values()))
                else:
                    getattr(tree, act)(name, timeout=2 * BOUND)
            except (KeyError, ValueError):
                pass
            except BaseException as error:
                failures.append(error)
                raise

    with tree:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(seconds + 4 * BOUND)
        assert not any(thread.is_alive() for thread in threads), states_of(tree)
    assert failures == []
    assert not any(map(is_alive, pids))


@pytest.mark.timeout(40)
def test_whoever_asks_while_the_tree_ends_gets_an_answer() -> None:
    for number in range(30):
        tree = Supervisor([Daemon(STAYS, name="a"), Daemon(STAYS, name="b")])
        tree.start()
        barrier = threading.Barrier(5)
        failures: list[BaseException] = []

        def ask(
            act: Callable[[], object], barrier: threading.Barrier = barrier, failures: list[Any] = failures
        ) -> None:
            barrier.wait()
            try:
                for _ in range(20):
                    act()
            except ValueError:
                pass
            except BaseException as error:
                failures.append(error)

        acts = [tree.stop, tree.stop, lambda t=tree: t.restart("a"), lambda t=tree: list(t.events())]
        threads = [threading.Thread(target=ask, args=(act,), daemon=True) for act in acts]
        for thread in threads:
            thread.start()
        barrier.wait()
        for thread in threads:
            thread.join(BOUND)
            assert not thread.is_alive(), f"in round {number}"
        assert failures == []


# --- A host that forks


def forking_host() -> None:
    import traceback

    tree = muontrap.Supervisor([muontrap.Daemon(["sleep", "1000"], name="a", ready=None)])
    tree.start()
    ours, theirs = os.pipe()
    if not os.fork():
        said = []
        for name, arguments in [
            ("start", ()), ("stop", ()), ("wait", ()), ("restart", ("a",)), ("start_child", ("a",)),
            ("stop_child", ("a",)), ("events", ()), ("add", (muontrap.Daemon(["true"]),)), ("remove", ("a",)),
        ]:  # fmt: skip
            try:
                getattr(tree, name)(*arguments)
                said.append(f"{name} returned")
            except ValueError as error:
                if "forked" not in str(error):
                    said.append(f"{name}: {error}")
            except BaseException:
                said.append(f"{name}: {traceback.format_exc()}")
        own = muontrap.Supervisor([muontrap.Daemon(["sleep", "1000"], name="own")])
        with own:
            said.append(own.which_children()[0].state)
        os.write(theirs, repr(said).encode())
        os._exit(0)
    os.wait()
    before = tree.which_children()[0]
    tree.restart("a")
    after = tree.which_children()[0]
    tree.stop()
    say(
        child=os.read(ours, 65536).decode(),
        before=before.state,
        after=after.state,
        same=before.pid == after.pid,
    )
    hear()


def test_a_forked_child_has_no_part_in_the_tree_but_may_have_its_own(arena: Arena) -> None:
    answer = arena.host(forking_host).hear(bound=30)
    assert answer == {"child": "['ready']", "before": "ready", "after": "ready", "same": False}


# --- Bad input


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"strategy": "all"}, "'all'"),
        ({"restart": "always"}, "'always'"),
        ({"max_restarts": -1}, "-1"),
        ({"max_restarts": "3"}, "'3'"),
        ({"max_restarts": 1.5}, "1.5"),
        ({"max_seconds": 0}, "0"),
        ({"max_seconds": "5"}, "'5'"),
        ({"max_seconds": float("nan")}, "nan"),
        ({"on_give_up": "stop"}, "'stop'"),
        ({"on_give_up": None}, "None"),
        ({"on_event": 5}, "5"),
        ({"essential": 1}, "essential must be True or False, not 1"),
        ({"depends_on": "db"}, "'db'"),
        ({"depends_on": [5]}, "5"),
        ({"depends_on": 5}, "5"),
        ({"backoff": 5}, "5"),
        ({"name": ""}, "''"),
        ({"name": 5}, "5"),
        ({"name": "a/b"}, "'a/b'"),
        ({"children": [5]}, "5"),
        ({"children": [["sleep", "1"]]}, "['sleep', '1']"),
    ],
)
def test_what_can_not_be_is_refused_at_once_with_its_value(options: dict[str, Any], value: str) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        Supervisor(**options)
    assert value in str(raised.value)


def test_dependencies_on_nobody_and_in_a_circle_are_refused() -> None:
    with pytest.raises(ValueError, match="'a' depends on 'z', which is no child"):
        Supervisor([Daemon(STAYS, name="a", depends_on=["z"])])
    with pytest.raises(ValueError, match=r"in a circle: (a -> b -> a|b -> a -> b)"):
        Supervisor([Daemon(STAYS, name="a", depends_on=["b"]), Daemon(STAYS, name="b", depends_on=["a"])])
    with pytest.raises(ValueError, match=r"in a circle: a -> a"):
        Supervisor([Daemon(STAYS, name="a", depends_on=["a"])])


@pytest.mark.parametrize("name", [5, None, b"a", ["a"]])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with Supervisor([Daemon(STAYS, name="a")]) as tree:
        for method in tree.child, tree.start_child, tree.stop_child, tree.restart, tree.remove:
            with pytest.raises(TypeError) as raised:
                method(name)
            assert str(raised.value) == f"name must be a string, not {name!r}"


@pytest.mark.parametrize("timeout", [1e10, 1e30, 2**70])
def test_a_timeout_may_be_as_long_as_one_likes(timeout: float) -> None:
    tree = Supervisor([Daemon(STAYS, name="a")])
    tree.start(timeout)
    threading.Timer(0.1, tree.stop).start()
    assert tree.wait(timeout)
    tree.start(timeout)
    for method in tree.restart, tree.stop_child, tree.start_child, tree.remove:
        method("a", timeout)
    tree.stop()


@pytest.mark.parametrize("timeout", [-1, "x", float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout: Any) -> None:
    with Supervisor([Daemon(STAYS, name="a")]) as tree:
        for method in tree.wait, lambda t: tree.restart("a", t), lambda t: tree.stop_child("a", t):
            with pytest.raises((ValueError, TypeError)) as raised:
                method(timeout)
            assert repr(timeout) in str(raised.value)
        assert states_of(tree) == {"a": "ready"}


# --- From several threads, and from within


def replaces(tree: list[Supervisor], *, where: str) -> dict[str, Any]:
    """Options of a supervisor that removes a child that is given up, and adds another of the same name."""

    def replace(name: str) -> None:
        tree[0].remove(name)
        tree[0].add(Daemon(STAYS, name=name))

    def on_event(event: SupervisorEvent) -> None:
        if where == "on_event" and event.kind == "gave-up":
            replace(event.name)

    def on_give_up(name: str, _story: str) -> Any:
        if where == "on_give_up":
            tree[0].remove(name)
        return "ignore"

    return {"max_restarts": 0, "on_event": on_event, "on_give_up": on_give_up}


@pytest.mark.parametrize("where", ["on_event", "on_give_up"])
def test_who_is_told_of_the_end_may_replace_the_child(where: str) -> None:
    trees: list[Supervisor] = []
    failing, other = Daemon(["false"], name="failing"), Daemon(STAYS, name="other")
    trees.append(Supervisor([failing, other], **replaces(trees, where=where)))
    trees[0].start(timeout=BOUND)
    expected = {"other": "ready", **({"failing": "ready"} if where == "on_event" else {})}
    wait_until(lambda: states_of(trees[0]) == expected)
    stopping = threading.Thread(target=trees[0].stop, daemon=True)
    stopping.start()
    stopping.join(BOUND)
    assert not stopping.is_alive()


@pytest.fixture
def waiting_group(tmp_path: Path) -> Any:
    """A root, its group that waits for a sibling, and what lets it begin."""
    group = Supervisor([Daemon(STAYS, name="web")], name="group", depends_on=["slow"])
    root = Supervisor([Daemon(STAYS, name="slow", ready=f"file:{tmp_path}/go"), group])
    with pytest.raises(TimeoutError):
        root.start(timeout=0.2)
    yield root, group, (tmp_path / "go").touch
    root.stop()


def test_what_is_asked_of_a_group_that_waits_is_answered(waiting_group: Any) -> None:
    root, _group, _go = waiting_group
    root.stop_child("group/web", timeout=BOUND)


def test_a_group_that_waits_starts_with_whom_it_was_given(waiting_group: Any) -> None:
    root, group, go = waiting_group
    group.add(Daemon(STAYS, name="another"))
    group.remove("web", timeout=BOUND)
    go()
    wait_until(lambda: states_of(root) == {"slow": "ready", "group/another": "ready"})


def test_threads_may_add_at_once_and_while_it_starts() -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    errors: list[BaseException] = []

    def add(root: Supervisor, names: list[str]) -> None:
        try:
            for name in names:
                root.add(Daemon(STAYS, name=name))
        except BaseException as error:
            errors.append(error)

    try:
        for _ in range(5):
            root = Supervisor()
            names = [[f"{number}-{each}" for each in range(5)] for number in range(3)]
            threads = [threading.Thread(target=add, args=(root, each)) for each in names]
            for thread in threads:
                thread.start()
            root.start(timeout=BOUND)
            for thread in threads:
                thread.join()
            wait_until(lambda: states_of(root) == dict.fromkeys(chain(*names), "ready"))  # noqa: B023
            root.stop()
    finally:
        sys.setswitchinterval(before)
    assert not errors
