"""When a daemon is of use, what it waits for before that, and what becomes of one that falls silent."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from arena import BOUND, NOBODY
from recorder import AT_ONCE, STAYS, Recorder, program, sh

import muontrap
from muontrap import Daemon, Supervisor, SupervisorFailed
from muontrap.supervise import readiness

pytestmark = pytest.mark.slow


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    path = tmp_path / "go"
    os.mkfifo(path)
    return path


def let_go(fifo: Path) -> None:
    """Let the program go that opens this FIFO: nothing is written, for it closes it at once."""
    os.close(os.open(fifo, os.O_WRONLY))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        port: int = one.getsockname()[1]
    return port


# --- Ready


@pytest.mark.parametrize("kind", ["output", "tcp", "unix", "file", "notify"])
def test_a_daemon_is_ready_when_it_shows_that_and_not_before(kind: str, fifo: Path, tmp_path: Path) -> None:
    where = str(free_port() if kind == "tcp" else tmp_path / "there")
    ready = {"output": "output:^is list", "tcp": f"tcp:127.0.0.1:{where}", "notify": "notify"}.get(
        kind, f"{kind}:{where}"
    )
    recorder = Recorder()
    daemon = Daemon(program("becomes_ready.py", fifo, kind, where), name="d", ready=ready)
    tree = Supervisor([daemon, Daemon(STAYS, name="next", depends_on=["d"])], on_event=recorder)
    with pytest.raises(TimeoutError, match=r"0\.2"):
        tree.start(timeout=0.2)
    try:
        assert recorder.words() == ["d started"]
        assert [each.state for each in tree.which_children()] == ["starting", "waiting"]
        let_go(fifo)
        recorder.wait("ready", "next")
        assert recorder.words() == ["d started", "d ready", "next started", "next ready"]
    finally:
        tree.stop()


def test_without_a_word_a_daemon_is_ready_as_soon_as_it_runs() -> None:
    recorder = Recorder()
    with Supervisor([Daemon(STAYS, name="d")], on_event=recorder) as tree:
        assert recorder.words() == ["d started", "d ready"]
        assert tree.which_children()[0].state == "ready"


def test_a_line_on_stderr_is_output_too() -> None:
    with Supervisor([Daemon(sh("echo up >&2; exec sleep 1000"), name="d", ready="output:^up$")]) as tree:
        assert tree.which_children()[0].state == "ready"


def test_a_daemon_that_is_not_ready_in_time_has_failed_to_start(tmp_path: Path) -> None:
    ready = f"file:{tmp_path}/never"
    daemon = Daemon(STAYS, ready=ready, ready_timeout=0.1, backoff=AT_ONCE)
    with pytest.raises(SupervisorFailed) as raised:
        Supervisor([daemon], max_restarts=1).start()
    assert str(raised.value).count(f"not ready ({ready}) within 0.1 s") == 3
    assert daemon.statistics().start_failures == 2
    assert daemon.statistics().failures == 0


def test_a_daemon_that_ends_before_it_is_ready_has_failed_to_start() -> None:
    daemon = Daemon(sh("exit 4"), ready="output:never", restart="temporary")
    with Supervisor([daemon]):
        assert daemon.statistics().last_exit == "exit status 4"
        assert daemon.statistics().start_failures == 1


@pytest.mark.parametrize(
    "ready", ["tcp:127.0.0.1:1", "tcp:localhost:1", "unix:/no/such", "notify", "output:no"]
)
def test_a_stop_does_not_wait_for_readiness(ready: str) -> None:
    tree = Supervisor([Daemon(STAYS, ready=ready, ready_timeout=1000)])
    with pytest.raises(TimeoutError):
        tree.start(timeout=0.1)
    begin = time.monotonic()
    tree.stop()
    assert time.monotonic() - begin < BOUND


def test_a_name_of_a_host_is_as_good_as_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with Daemon(STAYS, ready=f"tcp:localhost:{port}", wait_for=f"tcp:localhost:{port}") as daemon:
            assert daemon.statistics().state == "ready"
    for name in "no.such.name.invalid", "a..b", "x" * 300:
        tree = Supervisor([Daemon(STAYS, name="d", ready=f"tcp:{name}:80")])
        with pytest.raises(TimeoutError):
            tree.start(timeout=0.1)
        tree.stop()


def test_a_name_that_takes_long_to_look_up_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, released = [], threading.Event()

    def hang(*arguments: Any, **_: Any) -> Any:
        asked.append(arguments[0])
        assert released.wait(4 * BOUND)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    tree = Supervisor([Daemon(STAYS, name="d", ready="tcp:slow:80"), Daemon(STAYS, name="other")])
    with pytest.raises(TimeoutError):
        tree.start(timeout=0.3)
    tree.restart("other", timeout=BOUND)
    assert asked == ["slow"]  # and no second thread, while that one waits
    begin = time.monotonic()
    tree.stop()
    assert time.monotonic() - begin < BOUND
    released.set()


def test_a_port_that_neither_accepts_nor_refuses_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_CONNECT_BOUND", 0.1)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full, contextlib.ExitStack() as stack:
        port = full.getsockname()[1]
        for _ in range(3):  # more than its queue has room for
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        recorder = Recorder()
        tree = Supervisor([Daemon(STAYS, name="d", ready=f"tcp:127.0.0.1:{port}")], on_event=recorder)
        with pytest.raises(TimeoutError):
            tree.start(timeout=0.5)
        assert recorder.words() == ["d started"]
        stack.close()
        for _ in range(8):
            full.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                full.accept()[0].close()
        recorder.wait("ready", "d")
        tree.stop()


def test_a_connection_to_itself_is_nobody_who_listens() -> None:
    """That is what the kernel makes of a connection from a port to itself, and it may choose that port."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.connect(one.getsockname())
        assert readiness._is_its_own_peer(one)


# --- sd_notify


def test_a_daemon_of_another_user_is_heard() -> None:
    if os.geteuid():
        pytest.skip("needs root")
    script = f"""
import os, socket, time
assert os.getuid() == {NOBODY}
one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
one.sendto(b"READY=1", "\\0" + os.environ["NOTIFY_SOCKET"][1:])
time.sleep(1000)
"""
    daemon = Daemon(["/usr/bin/env", "python3", "-c", script], user=NOBODY, group=NOBODY, ready="notify")
    with Supervisor([daemon], max_restarts=0) as tree:
        assert tree.which_children()[0].state == "ready"


def test_what_a_third_user_says_is_not_heard() -> None:
    if os.geteuid():
        pytest.skip("needs root")
    recorder = Recorder()
    daemon = Daemon(sh('echo "$NOTIFY_SOCKET"; exec sleep 1000'), name="d", ready="notify")
    tree = Supervisor([daemon], on_event=recorder)
    with pytest.raises(TimeoutError):
        tree.start(timeout=0.2)
    try:
        address = daemon.recent().decode().strip()
        assert address.startswith("@")
        code = f"""
import os, socket
if {{}}: os.setuid({NOBODY})
socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(b"READY=1", "\\0" + {address[1:]!r})
"""
        subprocess.run([sys.executable, "-S", "-c", code.format(1)], check=True)
        with pytest.raises(TimeoutError):
            tree._ask(tree._tree, tree._branch.when_up, timeout=0.2)
        assert recorder.words() == ["d started"]
        subprocess.run([sys.executable, "-S", "-c", code.format(0)], check=True)
        recorder.wait("ready", "d")
    finally:
        tree.stop()


def test_what_systemd_told_the_host_is_not_for_its_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.setenv(name, "host's")
    script = "env | grep -c host.s; echo done; exec sleep 1000"
    for options in {}, {"env_update": {"A": "b"}}, {"watchdog": 100.0}:
        with Daemon(sh(script), name="d", ready="output:done", **options) as daemon:
            # Of a watchdog alone WATCHDOG_USEC and NOTIFY_SOCKET are its own, the pid is not.
            assert daemon.recent() == b"0\ndone\n"


def test_a_daemon_that_stops_feeding_its_watchdog_is_ended_and_started_again() -> None:
    recorder = Recorder()
    feeds = [word for _ in range(6) for word in (0.1, "WATCHDOG=1")]
    daemon = Daemon(
        program("says.py", "READY=1", *feeds), name="d", ready="notify", watchdog=0.4, backoff=AT_ONCE
    )
    with Supervisor([daemon], on_event=recorder):
        exited = recorder.wait("exited", "d")
        recorder.wait("restarted", "d")
    assert exited.why == "watchdog: silent for 0.4 s"
    assert exited.when - recorder.of("ready", "d")[0].when >= 0.9


def test_a_daemon_is_told_of_its_watchdog() -> None:
    with Daemon(sh('echo "$WATCHDOG_USEC"; exec sleep 1000'), ready="output:.", watchdog=2.5) as daemon:
        assert daemon.recent() == b"2500000\n"


def test_a_copy_of_its_socket_in_a_forked_child_does_not_keep_a_daemon_from_coming_back() -> None:
    recorder = Recorder()
    daemon = Daemon(program("says.py", "READY=1"), name="d", ready="notify", backoff=AT_ONCE)
    with Supervisor([daemon], on_event=recorder):
        ours, theirs = os.pipe()
        if not (pid := os.fork()):
            try:
                os.close(theirs)
                os.read(ours, 1)
            finally:
                os._exit(0)
        os.close(ours)
        try:
            os.kill(daemon.os_pid or 0, 9)
            recorder.wait("ready", "d", 2)
        finally:
            os.close(theirs)
            os.waitpid(pid, 0)
    assert [event.why for event in recorder.of("exited", "d")] == ["killed by signal 9", "stopped"]


# --- wait_for


@pytest.mark.parametrize("kind", ["tcp", "unix", "file"])
def test_a_daemon_starts_when_what_it_waits_for_is_there(kind: str, tmp_path: Path) -> None:
    port, where = free_port(), str(tmp_path / "there")
    recorder = Recorder()
    wait_for = f"tcp:127.0.0.1:{port}" if kind == "tcp" else f"{kind}:{where}"
    tree = Supervisor([Daemon(STAYS, name="d", wait_for=wait_for)], on_event=recorder)
    with pytest.raises(TimeoutError):
        tree.start(timeout=0.2)
    assert recorder.words() == []
    with socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET) as listener:
        if kind == "file":
            Path(where).touch()
        else:
            listener.bind(where if kind == "unix" else ("127.0.0.1", port))
            listener.listen()
        try:
            recorder.wait("ready", "d")
        finally:
            tree.stop()


def test_a_function_is_waited_for_in_a_thread_of_its_own() -> None:
    released = threading.Event()
    threads = []

    def wait() -> None:
        threads.append(threading.current_thread().name)
        assert released.wait(2 * BOUND)

    with Supervisor([Daemon(STAYS, name="other")]) as tree:
        tree.add(Daemon(STAYS, name="d", wait_for=wait))
        tree.restart("other")  # is not held up
        assert {each.name: each.pid is None for each in tree.which_children()} == {"other": False, "d": True}
        released.set()
        tree.start_child("d")
        assert tree.child("d").os_pid
    assert threads == ["muontrap-wait-d"]


def test_a_function_that_takes_an_event_learns_of_the_stop() -> None:
    heard: list[bool] = []
    tree = Supervisor([Daemon(STAYS, wait_for=lambda cancelled: heard.append(cancelled.wait(2 * BOUND)))])
    with pytest.raises(TimeoutError):
        tree.start(timeout=0.1)
    tree.stop()
    for thread in threading.enumerate():
        if thread.name.startswith("muontrap-wait"):
            thread.join(BOUND)
    assert heard == [True]


def test_a_method_whose_arguments_are_optional_is_called_without_any() -> None:
    recorder, there = Recorder(), threading.Event()
    tree = Supervisor([Daemon(STAYS, name="d", wait_for=there.wait)], max_restarts=0, on_event=recorder)
    with pytest.raises(TimeoutError):
        tree.start(timeout=0.1)
    there.set()
    recorder.wait("ready", "d")
    tree.stop()


def test_a_function_that_never_returns_does_not_hold_up_a_stop() -> None:
    released = threading.Event()
    tree = Supervisor([Daemon(STAYS, wait_for=lambda: released.wait(4 * BOUND))])
    with pytest.raises(TimeoutError):
        tree.start(timeout=0.1)
    begin = time.monotonic()
    tree.stop()
    assert time.monotonic() - begin < 1
    released.set()


def test_a_function_that_raises_is_a_failure_to_start_that_says_so() -> None:
    def wait() -> None:
        raise OSError("the moon is not there")

    daemon = Daemon(STAYS, wait_for=wait, backoff=AT_ONCE)
    with pytest.raises(SupervisorFailed, match="wait_for raised OSError: the moon is not there"):
        Supervisor([daemon], max_restarts=1).start()
    assert daemon.statistics().start_failures == 2


# --- Bad input


@pytest.mark.parametrize(
    "ready",
    ["", "ready", "tcp:80", "tcp:host:", "tcp:host:0", "tcp:host:65536", "tcp:host:x", "unix:", "file:",
     "tcp:[::1:80", "tcp:[]:80", "tcp:a\0b:80", "unix:/" + 107 * "a", "unix:\0" + 108 * "a", "file:a\0b",
     "output:", "output:(", "notify:x", "http:x"],
)  # fmt: skip
def test_a_probe_that_can_not_be_is_refused_at_once(ready: str) -> None:
    for option in "ready", "wait_for":
        if option == "wait_for" and ready == "output:(":
            continue
        with pytest.raises(ValueError, match=f"^{option}") as raised:
            Daemon(STAYS, **{option: ready})
        assert repr(ready) in str(raised.value)


def test_the_longest_names_of_sockets_can_be() -> None:
    for name in "/" + 106 * "a", "\0" + 107 * "a":
        Daemon(STAYS, ready=f"unix:{name}")
        with socket.socket(socket.AF_UNIX) as one, pytest.raises(OSError, match=r"No such file|refused"):
            one.connect(name)  # and not: AF_UNIX path too long


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"ready": 5}, "5"),
        ({"wait_for": 5}, "5"),
        ({"wait_for": "notify"}, "'notify'"),
        ({"wait_for": "output:x"}, "'output:x'"),
        ({"ready": "output:x", "stdout": muontrap.DEVNULL}, "'output:x'"),
        ({"ready_timeout": -1}, "-1"),
        ({"ready_timeout": "x"}, "'x'"),
        ({"watchdog": "x"}, "'x'"),
        ({"watchdog": -2.5}, "-2.5"),
    ],
)
def test_what_is_no_readiness_is_refused_with_its_value(options: dict[str, Any], value: str) -> None:
    with pytest.raises((ValueError, TypeError)) as raised:
        Daemon(STAYS, **options)
    assert value in str(raised.value)
