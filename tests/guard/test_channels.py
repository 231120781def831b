"""A channel on which a command has ended has the next one; and nobody but the host may use it."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import muontrap
from muontrap.host import link
from muontrap.host.status import Status
from muontrap.logic.wire import Launch, Signal, packets


def launch(**changes: object) -> bytes:
    """A request for /bin/true with one descriptor."""
    values = {
        "spawn": 1, "announce": 0, "inherits": 0, "session": 1, "umask": 18, "kill_mode": 0,
        "delay_to_sigkill": 0.0, "stop_signal": 15, "candidates": [], "argv": [b"/bin/true"], "env": {},
        "steps": [], "targets": [], "cgroup": b"",
    }  # fmt: skip
    return packets(Launch(**{**values, **changes}).encode(), 1)[0][0]


def idle() -> list[int]:
    guard = link._links.current
    assert guard is not None
    return [channel.fileno() for channel in guard._idle]


def test_one_after_another_they_need_one_channel() -> None:
    for number in range(5):
        assert muontrap.run(["sh", "-c", f"exit {number}"]).returncode == number
        assert len(idle()) == 1 or number == 0
    before = idle()
    assert muontrap.run(["cat"], input=b"x" * 300_000, capture_output=True).stdout == b"x" * 300_000
    large = [b"y" * 100_000] * 5  # a request of several packets
    assert len(muontrap.run(["echo", *large], capture_output=True).stdout) == 500_005
    assert idle() == before


def test_threads_have_channels_of_their_own_and_few_are_kept() -> None:
    at_once = link._MOST_IDLE + 4
    together = threading.Barrier(at_once)

    def launch(number: int) -> int | None:
        together.wait(10)
        return muontrap.run(["sh", "-c", f"sleep 0.2; exit {number}"]).returncode

    with ThreadPoolExecutor(at_once) as pool:
        assert list(pool.map(launch, range(at_once))) == list(range(at_once))
    assert len(idle()) == link._MOST_IDLE


@pytest.mark.parametrize("what", ["timeout", "missing", "max_output"])
def test_one_on_which_more_was_said_has_no_other(what: str) -> None:
    """What came late would be taken for the next command's."""
    muontrap.run(["true"])
    used = idle()[-1]
    if what == "timeout":
        with pytest.raises(muontrap.TimeoutExpired):
            muontrap.run(["sleep", "60"], timeout=0.05, delay_to_sigkill=0.1)
    elif what == "missing":
        with pytest.raises(PermissionError):
            muontrap.run(["/"])
    else:
        muontrap.run(["yes"], capture_output=True, max_output=10)
    assert used not in idle()
    assert muontrap.run(["sh", "-c", "exit 3"]).returncode == 3


def test_a_guard_that_died_while_it_was_idle_is_replaced() -> None:
    muontrap.run(["true"])
    guard = link._links.current
    assert guard is not None
    guard.kill_guard()
    assert link.wait_readable([guard._pidfds[1]], 5)
    assert muontrap.run(["sh", "-c", "exit 4"]).returncode == 4
    assert link._links.current is not guard


def test_one_that_the_guard_has_closed_is_not_used() -> None:
    muontrap.run(["true"])
    guard = link._links.current
    assert guard is not None
    guard._idle[-1].send(b"garbage")
    poll = select.poll()
    poll.register(idle()[-1], 0)  # hang-up alone
    assert poll.poll(5000)
    assert muontrap.run(["sh", "-c", "exit 5"]).returncode == 5
    assert link._links.current is guard


@pytest.mark.parametrize("is_host", [True, False])
def test_a_child_forked_without_pythons_knowing_can_not_launch_over_it(is_host: bool) -> None:
    """It may have dropped the host's privileges, which the guard still has."""
    muontrap.run(["true"])
    guard = link._links.current
    assert guard is not None
    channel = guard._idle.pop()
    reading, writing = os.pipe()
    rights = (
        socket.SOL_SOCKET,
        socket.SCM_RIGHTS,
        struct.pack("i", writing),
    )  # of no directory: nothing runs
    request = launch(thread=threading.get_native_id())
    if is_host:
        channel.sendmsg([request], [rights])
    else:
        child = ctypes.CDLL(None).fork()
        if not child:
            channel.sendmsg([request], [rights])
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    os.close(writing)
    assert link.wait_readable([reading], 5)
    assert os.read(reading, 1) == b"", "the guard is through with it"
    os.close(reading)
    assert bool(link.wait_readable([channel.fileno()], 0)) == is_host
    channel.close()


@pytest.mark.parametrize(
    "left",
    [{"returncode": None}, {"unkillable": (1,)}, {"not_permitted": (1,)}],
    ids=lambda left: next(iter(left)),
)
def test_one_of_a_command_that_is_still_hunted_has_no_other(
    monkeypatch: pytest.MonkeyPatch, left: dict[str, object]
) -> None:
    """The guard still listens on it for that command: the next launch would not be heard."""
    muontrap.run(["true"])
    used = idle()[-1]
    give_back = Status.give_back

    def with_something_left(status: Status) -> None:
        vars(status.result).update(left)
        give_back(status)

    monkeypatch.setattr(Status, "give_back", with_something_left)
    muontrap.run(["true"])
    assert used not in idle()


def test_a_child_forked_without_pythons_knowing_can_not_signal_a_command_over_it() -> None:
    muontrap.run(["true"])
    guard = link._links.current
    assert guard is not None
    channel = socket.socket(fileno=os.dup(idle()[-1]))
    asked, answer = os.pipe()
    with ThreadPoolExecutor(1) as pool, channel:
        script = f"echo >/dev/fd/{answer}; sleep 0.3; exit 3"
        command = pool.submit(muontrap.run, ["sh", "-c", script], pass_fds=[answer])
        os.read(asked, 1)
        child = ctypes.CDLL(None).fork()
        if not child:
            channel.send(Signal(signum=9).encode())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert command.result(10).returncode == 3
    os.close(asked)
    os.close(answer)
