"""What a launch would cost without anything decided: its system calls, as straight-line Python.

Two processes, as host and guard, make the calls that `muontrap.run(["/bin/true"], capture_output=True)`
makes (strace of both), in order, and look at no answer.  What `bench/launch.py` shows beyond that is
Python of ours.
"""

from __future__ import annotations

import _socket
import gc
import os
import resource
import select
import signal
import struct
import subprocess
import threading
from functools import partial

from launch import COMMAND, per_second
from rivals import BASE, Report, interleave, timed

import muontrap

FLOOR, OURS = "the same system calls", "muontrap.run"
LIMITS = [number for number in range(16) if number != 10]
NAMESPACES = sorted(set(os.listdir(b"/proc/self/ns")) - {b"pid", b"time"})
SIGNALS = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
RECEIVE = _socket.MSG_DONTWAIT | 0x40000000  # MSG_CMSG_CLOEXEC


class Guard:
    """The other process: starts /bin/true for each packet, and says when it has ended."""

    def __init__(self, requests: _socket.socket, host: int) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        self.requests = requests
        self.channels: dict[int, _socket.socket] = {}
        self.home = os.open("/", os.O_PATH | os.O_DIRECTORY)
        self.epoll = select.epoll()
        self.epoll.register(requests.fileno(), select.EPOLLIN)
        self.children = os.open(f"/proc/self/task/{os.getpid()}/children", os.O_RDONLY)
        self.loadavg = os.open("/proc/loadavg", os.O_RDONLY)
        self.status = os.open(f"/proc/{host}/status", os.O_RDONLY)
        self.running: dict[int, tuple[int, int]] = {}
        gc.collect()
        gc.freeze()

    def serve(self) -> None:
        while True:
            for fd, _ in self.epoll.poll():
                if fd in self.running:
                    self.end(fd)
                elif fd == self.requests.fileno():
                    self.accept()
                else:
                    self.start(self.channels[fd])

    def accept(self) -> None:
        data, ancillary, _, _ = self.requests.recvmsg(4096, 200, RECEIVE)
        if not data:
            os._exit(0)
        fd = struct.unpack("i", ancillary[0][2])[0]
        self.channels[fd] = _socket.socket(fileno=fd)
        self.epoll.register(fd, select.EPOLLIN)

    def start(self, channel: _socket.socket) -> None:
        data, ancillary, _, _ = channel.recvmsg(4096, 200, RECEIVE)
        if not data:
            self.epoll.unregister(channel.fileno())
            del self.channels[channel.fileno()]
            channel.close()
            return
        rights = next(content for _, kind, content in ancillary if kind == _socket.SCM_RIGHTS)
        directory, *streams = struct.unpack("4i", rights)
        os.pread(self.status, 1 << 14, 0)
        os.fchdir(directory)
        umask = os.umask(0o22)
        resource.setrlimit(10, (3258752183873437719, -1))
        actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(streams)]
        pid = os.posix_spawn(
            COMMAND[0],
            COMMAND,
            os.environ,
            file_actions=actions,
            setsid=True,
            setsigmask=(),
            setsigdef=SIGNALS,
        )
        resource.setrlimit(10, (-1, -1))
        os.umask(umask)
        os.fchdir(self.home)
        pidfd = os.pidfd_open(pid)
        resource.getrusage(resource.RUSAGE_SELF)
        self.epoll.register(pidfd, select.EPOLLIN)
        for fd in (directory, *streams):
            os.close(fd)
        self.running[pidfd] = pid, channel.fileno()

    def end(self, pidfd: int) -> None:
        pid, channel = self.running.pop(pidfd)
        os.pread(self.loadavg, 256, 0)
        os.pread(self.children, 65536, 0)
        os.wait4(pid, os.WNOHANG)
        os.write(channel, bytes(130))
        self.epoll.unregister(pidfd)
        os.close(pidfd)


class Channels(threading.local):
    """The thread's socket to the guard, which is used again and again."""

    channel: _socket.socket | None = None


THREAD = Channels()


def open_channel(requests: _socket.socket) -> _socket.socket:
    ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    theirs.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
    rights = struct.pack("i", theirs.fileno())
    requests.sendmsg([b"channel"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    theirs.close()
    return ours


def host_calls(requests: _socket.socket) -> None:
    directory = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.get_inheritable(0)
    out, its_out = os.pipe2(os.O_CLOEXEC)
    err, its_err = os.pipe2(os.O_CLOEXEC)
    os.stat("/")
    folder = os.open("/proc/thread-self/ns", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in NAMESPACES:
        os.readlink(name, dir_fd=folder)
    os.close(folder)
    list(map(resource.getrlimit, LIMITS))
    os.getpriority(os.PRIO_PROCESS, 0)
    os.sched_getaffinity(0)
    select.poll().poll(0)
    os.stat(COMMAND[0], dir_fd=directory)
    os.fstat(directory)
    threading.get_native_id()
    channel = THREAD.channel = THREAD.channel or open_channel(requests)
    os.getpid()
    rights = struct.pack("4i", directory, 0, its_out, its_err)
    channel.sendmsg([bytes(140)], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    os.close(directory)
    poll = select.poll()
    for fd in (channel.fileno(), out, err):
        poll.register(fd, select.POLLIN)
    poll.poll(5000)
    channel.recvmsg(1 << 14, 100, RECEIVE)
    poll.poll(0)
    for fd in (its_out, its_err, out, err):
        os.close(fd)


def main() -> None:
    report = Report("The floor of a launch: its system calls, and nothing decided.", seconds=10)
    requests, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    host = os.getpid()
    if os.fork() == 0:
        requests.close()
        try:
            Guard(theirs, host).serve()
        finally:
            os._exit(1)
    theirs.close()
    runs = {
        BASE: partial(subprocess.run, COMMAND, capture_output=True, check=True),
        FLOOR: partial(host_calls, requests),
        OURS: partial(muontrap.run, COMMAND, capture_output=True, check=True),
    }
    latencies = {name: partial(timed, run) for name, run in runs.items()}
    report.section("back to back", interleave(latencies, report.seconds, block=20))
    rates = {name: partial(per_second, run) for name, run in runs.items()}
    report.section(
        "launches per second from 4 threads", interleave(rates, report.seconds, rounds=3), unit="1/s"
    )
    report.end()


if __name__ == "__main__":
    main()
