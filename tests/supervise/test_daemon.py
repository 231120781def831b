"""One daemon: what it says of itself, where its output goes, what its end means."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from typing import Any

import pytest
from arena import BOUND, is_alive
from recorder import AT_ONCE, STAYS, Recorder, sh

import muontrap
from muontrap import Backoff, CompletedProcess, Daemon, Supervisor, SupervisorFailed

pytestmark = pytest.mark.slow


def messages(caplog: pytest.LogCaptureFixture, name: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == name]


def wait_for_the_end_of(daemon: Daemon) -> None:
    assert daemon.supervisor
    assert daemon.supervisor.wait(2 * BOUND)


# --- By itself


def test_a_daemon_lives_as_long_as_its_with_block() -> None:
    with Daemon(STAYS) as daemon:
        pid = daemon.os_pid
        assert pid
        assert is_alive(pid)
        assert repr(daemon) == "<Daemon 'sleep' of ['/bin/sleep', '1000']: ready>"
    assert not is_alive(pid)
    assert daemon.os_pid is None
    with daemon:
        assert daemon.os_pid not in (None, pid)


def test_a_daemon_by_itself_is_started_again_and_its_failure_is_the_blocks() -> None:
    with Daemon(STAYS, backoff=AT_ONCE) as daemon:
        os.kill(daemon.os_pid or 0, signal.SIGKILL)
        assert daemon.supervisor
        for event in daemon.supervisor.events():
            if event.kind == "ready":
                break
        assert daemon.statistics().restarts == 1
    daemon = Daemon(sh("exit 1"), backoff=AT_ONCE)
    with pytest.raises(SupervisorFailed, match="more than 3 restarts"), daemon:
        wait_for_the_end_of(daemon)
    assert daemon.supervisor is None


def test_an_exception_of_the_block_is_not_replaced_by_the_daemons_failure() -> None:
    def block() -> None:
        with Daemon(sh("exit 1"), backoff=AT_ONCE) as daemon:
            with pytest.raises(SupervisorFailed):
                wait_for_the_end_of(daemon)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        block()


# --- What it says of itself


def test_statistics_follow_the_life_of_a_daemon() -> None:
    recorder = Recorder()
    daemon = Daemon(sh("echo 12345; exec sleep 1000"), name="d", ready="output:5", backoff=AT_ONCE)
    before = daemon.statistics()
    assert (before.name, before.state, before.pid, before.uptime) == ("d", "stopped", None, None)
    with Supervisor([daemon], on_event=recorder):
        first = daemon.statistics()
        assert first.state == "ready"
        assert first.pid == daemon.os_pid
        assert 0 < (first.uptime or 0) < BOUND
        assert (first.restarts, first.failures, first.output_bytes, first.last_exit) == (0, 0, 6, None)
        assert first.cgroup is None
        os.kill(daemon.os_pid or 0, signal.SIGTERM)
        recorder.wait("ready", "d", 2)
        second = daemon.statistics()
        assert (second.restarts, second.failures, second.output_bytes) == (1, 1, 12)
        assert second.last_exit == "killed by signal 15"
        assert "output_bytes=12" in repr(second)
    after = daemon.statistics()
    assert (after.state, after.pid, after.uptime, after.last_exit) == ("stopped", None, None, "stopped")


def test_statistics_have_what_the_cgroup_counts() -> None:
    try:
        muontrap.run(["true"], limits={"memory_max": "64M"})
    except muontrap.ContainmentError as error:
        pytest.skip(str(error))
    recorder = Recorder()
    script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo done; exec sleep 1000"
    options: dict[str, Any] = {"limits": {"memory_max": "64M"}}
    daemon = Daemon(sh(script), name="d", ready="output:done", backoff=AT_ONCE, **options)
    with Supervisor([daemon], on_event=recorder):
        counted = daemon.statistics().cgroup
        assert counted
        assert 0 < (counted.memory_current or 0) < 64 * 2**20
        assert daemon.cgroup
        os.kill(daemon.os_pid or 0, signal.SIGKILL)
        while len(recorder.of("ready", "d")) < 2:  # also while it goes
            daemon.statistics()
        assert daemon.cgroup
    assert daemon.cgroup is None


def test_a_daemon_that_needs_too_much_memory_has_failed_for_that() -> None:
    try:
        muontrap.run(["true"], limits={"memory_max": "64M"})
    except muontrap.ContainmentError as error:
        pytest.skip(str(error))
    options: dict[str, Any] = {"limits": {"memory_max": "16M", "memory_swap_max": 0}}
    daemon = Daemon(["tail", "/dev/zero"], restart="temporary", **options)
    recorder = Recorder()
    with Supervisor([daemon], on_event=recorder):
        assert recorder.wait("exited", "tail").why.startswith("out of memory (limit 16 MiB")


@pytest.mark.parametrize("room", [0, 1, 10, 5000])
def test_only_the_last_of_the_output_is_kept(room: int) -> None:
    script = "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); done; exec sleep 1000"
    whole = "".join(f"{number}\n" for number in range(3000)).encode()
    daemon = Daemon(sh(script), recent_output=room, ready="output:^2999$")
    with daemon:
        assert daemon.recent() == (whole[-room:] if room else b"")
        assert daemon.statistics().output_bytes == len(whole)


def test_memory_stays_bounded_however_small_the_pieces_and_long_the_lines() -> None:
    """A flood without an end of line, and a daemon that says little and often."""
    with Daemon(sh("tr '\\0' x </dev/zero"), recent_output=100, log_output=logging.DEBUG) as flood:
        deadline = time.monotonic() + 4 * BOUND
        while flood.statistics().output_bytes < 20 * 2**20:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert flood.recent() == b"x" * 100
    script = "i=0; while [ $i -lt 20000 ]; do echo; i=$((i+1)); done; echo done; exec sleep 1000"
    with Daemon(sh(script), recent_output=1000, ready="output:done") as little:
        assert little.recent() == b"\n" * 995 + b"done\n"
        assert little._recent._kept is not None
        assert little._recent._kept.__alloc__() <= 3 * 1000


def test_a_daemon_whose_output_nobody_wants_writes_where_the_host_does(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with Supervisor([Daemon(sh("echo out; echo err >&2"), restart="temporary", recent_output=0)]) as tree:
        while tree.which_children()[0].last_exit is None:
            time.sleep(0.01)
    captured = capfd.readouterr()
    assert captured.out == "out\n"
    assert captured.err.endswith("err\n")


# --- Its log


def test_each_line_of_output_is_a_record(caplog: pytest.LogCaptureFixture) -> None:
    script = "echo one; echo two >&2; echo 'secret %s'; echo drop; printf three"
    daemon = Daemon(
        sh(script),
        name="talker",
        restart="temporary",
        log_output=logging.WARNING,
        log_prefix="> ",
        log_transform=lambda line: None if line == "drop" else line.replace("secret", "xxx"),
        logger_metadata={"team": "blue"},
    )
    with Supervisor([daemon]) as tree:
        while daemon.statistics().last_exit is None:
            time.sleep(0.01)
        assert tree.which_children()[0].last_exit == "success"
    logger = "muontrap.daemon.talker"
    assert messages(caplog, logger) == ["> one", "> two", "> xxx %s", "> three"]
    record: Any = next(record for record in caplog.records if record.name == logger)
    assert (record.levelno, record.daemon, record.team) == (logging.WARNING, "talker", "blue")


def test_another_logger_may_take_it(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("elsewhere")
    with Daemon(sh("echo up; exec sleep 1000"), ready="output:up", log_output=logging.ERROR, logger=logger):
        pass
    assert messages(caplog, "elsewhere") == ["up"]


def test_a_transform_that_raises_does_not_hold_up_the_daemon(caplog: pytest.LogCaptureFixture) -> None:
    """Its output is read on: it would block in write if it were not."""

    def fail(line: str) -> str:
        raise LookupError(line)

    script = "i=0; while [ $i -lt 30000 ]; do echo 12345; i=$((i+1)); done; echo done; exec sleep 1000"
    with Daemon(sh(script), ready="output:done", log_output=logging.ERROR, log_transform=fail) as daemon:
        assert daemon.statistics().output_bytes == 30000 * 6 + 5
    assert caplog.text.count("LookupError: 12345") == 1


# --- What its end means


def test_a_function_may_say_what_an_end_means() -> None:
    told: list[CompletedProcess] = []

    def judge(result: CompletedProcess) -> str | None:
        told.append(result)
        return None if result.returncode == 75 else f"came back with {result.returncode}"

    recorder = Recorder()
    daemon = Daemon(
        sh("exit 75"), name="d", restart="transient", exit_status_to_reason=judge, backoff=AT_ONCE
    )
    with Supervisor([daemon], on_event=recorder):
        assert recorder.wait("exited", "d").why == "success"
    assert [result.returncode for result in told] == [75]
    daemon = Daemon(sh("exit 0"), exit_status_to_reason=judge, backoff=AT_ONCE)
    with pytest.raises(SupervisorFailed, match="came back with 0"), daemon:
        wait_for_the_end_of(daemon)


def test_a_function_that_can_not_say_is_a_failure_that_says_so() -> None:
    def judge(_: CompletedProcess) -> str | None:
        raise LookupError("no idea")

    recorder = Recorder()
    daemon = Daemon(sh("exit 0"), name="d", restart="temporary", exit_status_to_reason=judge)
    with Supervisor([daemon], on_event=recorder):
        assert recorder.wait("exited", "d").why == "LookupError: no idea"
    assert recorder.of("gave-up", "d") == []  # what is never restarted is not given up


def test_a_stop_is_no_failure_whatever_the_status() -> None:
    recorder = Recorder()
    polite = sh("trap 'exit 9' TERM; echo up; while :; do sleep 0.01; done")
    with Supervisor([Daemon(polite, name="d", ready="output:up")], on_event=recorder) as tree:
        tree.stop_child("d")
    assert [event.why for event in recorder.of("exited", "d")] == ["stopped"]
    assert tree.which_children()[0].failures == 0


def test_a_daemon_that_falls_silent_may_be_ended_for_that() -> None:
    recorder = Recorder()
    daemon = Daemon(sh("echo up; exec sleep 1000"), name="d", restart="temporary", inactivity_timeout=0.2)
    with Supervisor([daemon], on_event=recorder):
        why = recorder.wait("exited", "d").why
    assert why == "no output for inactivity_timeout"


# --- Bad input


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"restart": "always"}, "'always'"),
        ({"restart": True}, "True"),
        ({"name": ""}, "''"),
        ({"name": 5}, "5"),
        ({"name": "a/b"}, "'a/b'"),
        ({"success_exit_status": 3}, "3"),
        ({"success_exit_status": "3"}, "'3'"),
        ({"success_exit_status": [3, "4"]}, "'4'"),
        ({"success_exit_status": [256]}, "from 0 to 255, not [256]"),
        ({"success_exit_status": [0, -1]}, "from 0 to 255, not [0, -1]"),
        ({"success_exit_status": b"x"}, "b'x'"),
        ({"essential": "x"}, "essential must be True or False, not 'x'"),
        ({"exit_status_to_reason": 5}, "5"),
        ({"depends_on": "db"}, "'db'"),
        ({"depends_on": [5]}, "5"),
        ({"depends_on": 5}, "5"),
        ({"backoff": 5}, "5"),
        ({"log_output": "INFO"}, "'INFO'"),
        ({"log_output": 20, "logger": "root"}, "'root'"),
        ({"log_output": 20, "log_prefix": 5}, "5"),
        ({"log_output": 20, "log_transform": 5}, "5"),
        ({"log_output": 20, "logger_metadata": 5}, "5"),
        ({"log_output": 20, "logger_metadata": {"msg": 5}}, "msg"),
        ({"log_output": 20, "stdout": muontrap.DEVNULL}, "20"),
        ({"recent_output": -1}, "-1"),
        ({"recent_output": "x"}, "'x'"),
        ({"stdin": muontrap.PIPE}, "stdin=PIPE"),
        ({"stderr": muontrap.PIPE}, "stderr=PIPE"),
        ({"delay_to_sigkill": -3}, "-3"),
        ({"no_such_option": 5}, "'no_such_option'"),
    ],
)
def test_what_can_not_be_is_refused_at_once_with_its_value(options: dict[str, Any], value: str) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        Daemon(STAYS, **options)
    assert value in str(raised.value)


def test_a_daemon_that_is_refused_has_no_socket_and_no_thread() -> None:
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(ValueError, match="recent_output"):
            Daemon(STAYS, ready="notify", recent_output=-1)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("option", "value"),
    [("initial", -1), ("factor", 0.5), ("cap", float("inf")), ("jitter", 1.5), ("reset_after", "x")],
)
def test_a_backoff_that_can_not_be_is_refused(option: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=option) as raised:
        Backoff(**{option: value})
    assert repr(value) in str(raised.value)
