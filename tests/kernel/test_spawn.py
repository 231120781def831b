"""A child by posix_spawn(3), and the next, which must have nothing of it."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess

import pytest

from muontrap.kernel.process import Environ, Environments, has_one_environ
from muontrap.kernel.spawn import Spawner

USUAL = {b"PATH": os.environb[b"PATH"], b"WORD": b"one"}
ENVIRONMENTS = Environments(USUAL)
NONE = ENVIRONMENTS.strings({}, inherits=False)
SHOW = [b"sh", b"-c", b'echo "$WORD $(ps -o pid=,pgid=,sid= -p $$)" >&5']


def shown(spawn: Spawner, *, session: bool, target: int = 5, **changes: bytes) -> list[str]:
    """The words of one that was spawned: its variable, pid, group and session."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    argv = [*SHOW[:2], SHOW[2].replace(b"5", b"%d" % target)]
    env = ENVIRONMENTS.strings({name.encode(): value for name, value in changes.items()}, inherits=True)
    pid = spawn(b"/bin/sh", argv, env, [(writing, target)], session=session)
    os.close(writing)
    with open(reading) as output:
        words = output.read().split()
    assert os.waitpid(pid, 0)[1] == 0
    assert words[1] == str(pid)
    return [words[0], *("own" if word == str(pid) else word for word in words[2:])]


def test_each_has_what_it_is_given() -> None:
    spawn = Spawner()
    assert shown(spawn, session=True) == ["one", "own", "own"]
    assert shown(spawn, session=False) == ["one", "own", str(os.getsid(0))]
    assert shown(spawn, session=True, target=6, WORD=b"two") == ["two", "own", "own"]
    assert shown(spawn, session=True) == ["one", "own", "own"]


def test_no_signal_is_blocked_or_ignored() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    ignored = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        argv = [b"grep", b"-E", b"^Sig(Blk|Ign)", b"/proc/self/status"]
        pid = Spawner()(b"/bin/grep", argv, NONE, [(writing, 1)], session=True)
        os.close(writing)
        with open(reading) as output:
            sets = [int(line.split()[1], 16) for line in output]
        os.waitpid(pid, 0)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGUSR2, ignored)
    # glibc leaves its own, 32 and 33, ignored (F29).
    assert sets[0] == 0
    assert sets[1] & ~(0b11 << 31) == 0


@pytest.mark.parametrize(
    ("path", "source", "code"),
    [(b"/nonexistent", 0, errno.ENOENT), (b"/etc/passwd", 0, errno.EACCES), (b"/bin/true", 500, errno.EBADF)],
)
def test_an_error_is_that_of_the_call_and_of_no_other(path: bytes, source: int, code: int) -> None:
    spawn = Spawner()
    with pytest.raises(OSError, match=os.strerror(code)):
        spawn(path, [b"x"], NONE, [(source, 9)], session=True)
    pid = spawn(b"/bin/true", [b"true"], NONE, [(0, 9)], session=True)
    assert os.waitpid(pid, 0)[1] == 0


def test_a_descriptor_above_the_limit_is_refused_and_changes_nothing() -> None:
    spawn, limits = Spawner(), resource.getrlimit(resource.RLIMIT_NOFILE)
    has_it = [b"sh", b"-c", b"test -e /proc/self/fd/9"]
    resource.setrlimit(resource.RLIMIT_NOFILE, (400, limits[1]))
    try:
        for _ in range(2):
            pid = spawn(b"/bin/sh", has_it, NONE, [(0, 9)], session=True)
            assert os.waitpid(pid, 0)[1] == 0
            with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
                spawn(b"/bin/true", [b"true"], NONE, [(401, 9)], session=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_an_environment_is_the_usual_one_with_changes_or_another() -> None:
    said = b"".join(b"%b=%b\n" % pair for pair in USUAL.items())
    for changes, inherits, expected in (
        ({}, True, said),
        ({b"WORD": b"two", b"B": b"=\n"}, True, said.replace(b"one", b"two") + b"B==\n\n"),
        ({b"B": b""}, False, b"B=\n"),
        ({}, False, b""),
    ):
        reading, writing = os.pipe2(os.O_CLOEXEC)
        env = ENVIRONMENTS.strings(changes, inherits=inherits)
        pid = Spawner()(b"/usr/bin/env", [b"env"], env, [(writing, 1)], session=True)
        os.close(writing)
        with open(reading, "rb") as output:
            assert output.read() == expected
        os.waitpid(pid, 0)


def test_environ_is_another_meanwhile() -> None:
    """For children of who gives them none of its own."""

    def variables() -> bytes:
        return subprocess.run(["/usr/bin/env"], stdout=subprocess.PIPE, check=True).stdout

    assert has_one_environ()
    usual = variables()
    with Environ(ENVIRONMENTS.strings({b"A": b"b"}, inherits=False)):
        assert variables() == b"A=b\n"
    assert variables() == usual
