"""What carries a tag, found and killed without a guard."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from children import run_python, sleeper

from muontrap.containment.processes import Held
from muontrap.containment.tagged import TagReader, kill_guardless, usable_format
from muontrap.kernel.process import RLIMIT_LOCKS, get_soft_limit

GUARD = 0xA7A


class Found:
    """In the place of a reader: what is found, one time after the other."""

    def __init__(self, *times: list[int | type[BaseException]]) -> None:
        self._times = list(times)

    def all(self, _guard: int, *, but: set[int]) -> Iterator[Held | None]:
        assert not but
        for found in self._times.pop(0):
            if not isinstance(found, int):
                raise found
            yield Held.open(found)


@contextmanager
def zombie() -> Iterator[int]:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        yield process.pid


def kill(found: Any, bound: float) -> tuple[int, ...]:
    return kill_guardless(found, GUARD, bound)


def test_a_death_that_was_seen_once_is_no_proof() -> None:
    """It may have left a child just before, which a second look would find."""
    with ExitStack() as stack:
        first, second, third = (stack.enter_context(zombie()) for _ in range(3))
        assert kill(Found([]), -1) == ()
        assert kill(Found([first], [first]), -1) == ()
        with pytest.raises(OSError, match="temporarily") as caught:
            kill(Found([first], [second]), -1)
        assert caught.value.errno == errno.EAGAIN
        assert kill(Found([first], [second], [third], [third]), 10) == ()


def test_what_was_stopped_is_killed_whatever_comes_between() -> None:
    with sleeper() as process:
        with pytest.raises(KeyboardInterrupt):
            kill(Found([process.pid, KeyboardInterrupt]), 10)
        assert process.wait(10) == -signal.SIGKILL


def test_threads_may_read_limits_at_once() -> None:
    """Each that waits for a command may sweep: to take one's limit for another's would kill a stranger."""
    wrong: list[int] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    end = time.monotonic() + 1.0

    def read(pid: int, limit: int) -> None:
        while not wrong and time.monotonic() < end:
            wrong.extend({get_soft_limit(pid, RLIMIT_LOCKS) or 0} - {limit})

    try:
        with ExitStack() as stack:
            threads = []
            for limit in 1001, 1002, 1003:
                pid = stack.enter_context(sleeper()).pid
                resource.prlimit(pid, RLIMIT_LOCKS, (limit, resource.prlimit(pid, RLIMIT_LOCKS)[1]))
                threads.append(threading.Thread(target=read, args=(pid, limit)))
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(before)
    assert not wrong


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_dead_of_who_can_not_be_signalled_take_nobodys_place() -> None:
    """Its children are dead, and not reaped, and more than there are descriptors for."""
    form = usable_format()
    assert form
    said = run_python(f"""
        import contextlib, os, resource, signal
        from muontrap.containment.tagged import TagReader, kill_guardless, usable_format

        def child(act, tag=True):
            pid = os.fork()
            if not pid:
                if tag:
                    resource.setrlimit({RLIMIT_LOCKS}, ({form.encode(GUARD, 1)}, hard))
                act()
                signal.pause()
            return pid

        def be_nobody():
            os.setresuid(65534, 65534, 65534)

        def have_zombies():
            for _ in range(80):
                child(lambda: os._exit(0))
            os.write(ready, b".")

        def sweep():
            be_nobody()
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
            with contextlib.suppress(OSError):
                kill_guardless(TagReader(usable_format()), {GUARD}, 1.0)
            os._exit(0)

        hard = resource.getrlimit({RLIMIT_LOCKS})[1]
        is_ready, ready = os.pipe()
        older = child(be_nobody)
        shield = child(have_zombies)
        os.read(is_ready, 1)
        os.waitpid(child(sweep, tag=False), 0)
        is_killed = os.waitpid(older, os.WNOHANG) == (older, 9)
        for pid in [shield, *([] if is_killed else [older])]:
            os.kill(pid, 9)
        print(is_killed)
    """)
    assert said == "True"


def test_a_tag_is_found() -> None:
    form = usable_format()
    assert form
    with sleeper() as process:
        limits = form.encode(GUARD, 1), resource.prlimit(process.pid, RLIMIT_LOCKS)[1]
        resource.prlimit(process.pid, RLIMIT_LOCKS, limits)
        assert kill(TagReader(form), 10) == ()
        assert process.wait(10) == -signal.SIGKILL


def test_what_is_known_of_processes_goes_with_them() -> None:
    reader = TagReader(usable_format())
    reader._uninteresting = dict.fromkeys(range(2**30, 2**30 + 10_000), 1)
    reader.numbers(GUARD)
    assert len(reader._uninteresting) < 5000
