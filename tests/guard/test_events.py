"""The guard's loop: an event is for who listened when the kernel gave it, and for nobody else."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from typing import Any

import pytest

from muontrap.containment.processes import Held
from muontrap.guard.loop import Guard
from muontrap.guard.transport import Channel


class Epoll:
    """Gives two events at once, then one, then the end."""

    def __init__(self, guard: Any) -> None:
        self.guard = guard
        self.lists = [[(5, 1), (6, 1)], [(6, 1)], []]
        self.registered: list[int] = []

    def poll(self, _: float | None) -> list[tuple[int, int]]:
        events = self.lists.pop(0)
        self.guard._host_gone = not events
        return events

    def register(self, fd: int, _: int) -> None:
        self.registered.append(fd)

    def unregister(self, fd: int) -> None:
        self.registered.remove(fd)


def test_a_number_that_is_taken_again_gets_no_event_of_the_one_before() -> None:
    """A command ends, and its pidfd's number becomes that of the next: which has not ended."""
    guard: Any = object.__new__(Guard)
    guard._epoll = epoll = Epoll(guard)
    guard._commands, guard._busy, guard._handlers, guard._new_handlers = {}, {}, {}, {}
    guard._host_gone = guard._children_changed = False
    guard._policy = None
    calls: list[str] = []

    def replace() -> None:
        calls.append("replaced")
        guard._ignore(6)
        guard._listen(6, lambda: calls.append("new"))

    guard._listen(5, replace)
    guard._listen(6, lambda: calls.append("old"))
    guard.run()
    assert calls == ["replaced", "new"], "once, by the second list"
    assert epoll.registered == [5, 6]


@pytest.mark.parametrize("is_gone", [True, False])
def test_after_the_hosts_end_nothing_is_taken_over_a_channel(is_gone: bool) -> None:
    """Whoever else has it, a child that C code has forked: a command would have no host."""
    guard: Any = object.__new__(Guard)
    guard._host, guard._host_gone = Held(os.getpid(), -1), is_gone
    fed: list[Any] = []
    guard._feed = lambda *arguments: fed.append(arguments[1:])
    host, channel = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe2(os.O_NONBLOCK)
    with host, channel:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        host.sendmsg([b"launch"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", writing))])
        os.close(writing)
        guard._take_more(Channel(channel))
    if is_gone:
        assert os.read(reading, 1) == b"", "its descriptors are closed"
    else:
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
    os.close(reading)
    for data, (fd,) in fed:
        assert data == b"launch"
        os.close(fd)
    assert len(fed) == (not is_gone)


@pytest.mark.parametrize("way", ["requests", "channel"])
def test_an_empty_packet_of_a_child_that_c_code_has_forked_is_no_end_of_the_host(way: str) -> None:
    """It has no data, as the end of file; and its descriptors are closed."""
    guard: Any = object.__new__(Guard)
    guard._host, guard._host_gone = Held(os.getpid(), -1), False
    guard._reserve = contextlib.nullcontext()
    host, guards = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    reading, writing = os.pipe2(os.O_NONBLOCK)
    with host, guards:
        guards.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        if os.fork() == 0:
            host.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", writing))])
            os._exit(0)
        os.wait()
        os.close(writing)
        if way == "requests":
            guard._requests = guards
            guard._take_requests()
        else:
            guard._take_more(Channel(guards))
        assert host.send(b"the socket is open")
        assert not guard._host_gone
    assert os.read(reading, 1) == b"", "its descriptors are closed"
    os.close(reading)
