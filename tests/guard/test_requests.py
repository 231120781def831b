"""A malformed request ends that request with an error, and never the guard."""

from __future__ import annotations

import errno
import os
import socket
import struct

import pytest

import muontrap
from muontrap.host import link
from muontrap.logic.wire import Failed, Launch, Placement, Record, Started, decode, packets


def launch(fd_count: int = 1, **changes: object) -> bytes:
    values = {
        "spawn": 1, "announce": 1, "thread": 1, "inherits": 0, "session": 1, "umask": 18, "kill_mode": 0,
        "delay_to_sigkill": 0.0, "stop_signal": 15,
        "candidates": [b"/bin/true"], "argv": [b"true"], "env": {}, "steps": [],
        "targets": [], "cgroup": b"",
    }  # fmt: skip
    return packets(Launch(**{**values, **changes}).encode(), fd_count)[0][0]


WRONG_PLACEMENTS: list[dict[str, object]] = [
    {"directories": []},
    {"directories": [b"/sys/fs/cgroup/x"]},
    {"directories": [b"+x"]},
    {"settings": [b"/sys/fs/cgroup/x/memory.max", b"1"]},
]


def placement(**changes: object) -> bytes:
    values: dict[str, object] = {
        "directories": [b"+/sys/fs/cgroup/x"], "settings": [], "readings": [], "oom_group": b"",
    }  # fmt: skip
    return Placement(**{**values, **changes}).encode()


def answer_to(data: bytes) -> Record:
    """What the guard says to a request, sent with the descriptors that it announces; it has to live on."""
    muontrap.start_guard()
    guard = link._links.current
    assert guard is not None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    folder = os.open("/", os.O_PATH)
    with ours, theirs:
        count = struct.unpack_from("<II", data)[1] if len(data) >= 8 else 0
        fds = [theirs.fileno(), folder, folder][: count + 1]
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))
        guard._requests.sendmsg([data], [rights])
        os.close(folder)
        theirs.close()
        ours.settimeout(5)
        answer = decode(ours.recv(4096))
    assert guard.is_whole()
    return answer


@pytest.mark.parametrize(
    "data",
    [
        b"x",
        struct.pack("<II", 5, 0) + b"hello",
        struct.pack("<II", 0, 0),
        launch(kill_mode=3),
        launch(stop_signal=1000),
        launch(targets=[1]),
        launch(cgroup=b"x"),
        launch(steps=[("join", ())]),
        launch(steps=[("join", ())], cgroup=Started(pid=1).encode()),
        *[launch(steps=[("join", ())], cgroup=placement(**wrong)) for wrong in WRONG_PLACEMENTS],
    ],
)
def test_a_malformed_request_is_refused(data: bytes) -> None:
    answer = answer_to(data)
    assert isinstance(answer, Failed)
    assert (answer.errno, answer.step) == (errno.EPROTO, b"request")


@pytest.mark.parametrize("uid", [(), (1, 2), (2**40,), (2**32 - 1,)], ids=str)
def test_an_id_that_is_none_is_refused(uid: tuple[int, ...]) -> None:
    """The host never sends one."""
    answer = answer_to(launch(steps=[("setresuid", uid)], thread=os.getpid()))
    assert isinstance(answer, Failed)
    assert answer.step == b"setresuid"


@pytest.mark.parametrize("numbers", [(), (7,)], ids=str)
def test_a_terminal_that_is_none_is_refused(numbers: tuple[int, ...]) -> None:
    """The host never sends one."""
    answer = answer_to(launch(spawn=0, steps=[("foreground", numbers)], thread=os.getpid()))
    assert isinstance(answer, Failed)
    assert answer.step == b"foreground"


@pytest.mark.parametrize(
    ("data", "step"),
    [
        (launch(thread=os.getpid(), umask=2**40), b"umask"),
        (launch(thread=os.getpid(), targets=[2**40], fd_count=2), b"execve"),
    ],
    ids=["umask", "target"],
)
def test_a_number_that_is_too_large_is_refused(data: bytes, step: bytes) -> None:
    """The host never sends one."""
    answer = answer_to(data)
    assert isinstance(answer, Failed)
    assert (answer.errno, answer.step) == (errno.EINVAL, step)


@pytest.mark.parametrize("signum", [0, 1000, 2**40])
def test_a_signal_that_is_none_is_not_sent(signum: int) -> None:
    """The host never sends one."""
    with muontrap.Launcher(["sleep", "1000"]).launch() as process:
        process._status.pass_on(signum)
        process.kill()
        assert process.wait(10) == -9
        assert process._status.link.is_whole()
