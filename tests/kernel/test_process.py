"""pidfds, prctl, limits, descriptors, file systems: the real kernel."""

from __future__ import annotations

import errno
import os
import resource
import select
import signal
from pathlib import Path

import pytest
from children import run_python, sleeper

from muontrap.kernel import process

NO_PID = 2**22 + 1  # above the highest PID_MAX_LIMIT


def test_pidfd_of_a_process_from_life_to_reaping() -> None:
    with sleeper() as child:
        pidfd = process.pidfd_open(child.pid)
        try:
            assert not os.get_inheritable(pidfd)
            assert not process.is_dead(pidfd)
            assert process.pidfd_send_signal(pidfd, 0)
            assert process.pidfd_send_signal(pidfd, signal.SIGKILL)
            assert select.select([pidfd], [], [], 10)[0]
            assert process.is_dead(pidfd)
            assert process.pidfd_send_signal(pidfd, 0), "a zombie can still be signalled"
            assert child.wait() == -signal.SIGKILL
            assert process.is_dead(pidfd)
            assert process.pidfd_send_signal(pidfd, signal.SIGTERM) is False
        finally:
            os.close(pidfd)


def test_nobody_has_that_pid() -> None:
    assert process.pidfd_open_if_there(NO_PID) is None
    with pytest.raises(ProcessLookupError) as caught:
        process.pidfd_open(NO_PID)
    assert caught.value.errno == errno.ESRCH
    assert "pidfd_open" in str(caught.value)


def test_a_thread_is_no_process() -> None:
    """The kernel says EINVAL, and ENOENT since Linux 6.15: no process has that pid."""
    out = run_python("""
        import threading
        from muontrap.kernel.process import pidfd_open_if_there
        got = []
        thread = threading.Thread(target=lambda: got.append(pidfd_open_if_there(threading.get_native_id())))
        thread.start(); thread.join()
        print(got)
    """)
    assert out == "[None]"


@pytest.mark.parametrize("code", [errno.ESRCH, errno.EINVAL, errno.ENOENT])
def test_all_words_for_gone(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def pidfd_open(_: int) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(process, "pidfd_open", pidfd_open)
    assert process.pidfd_open_if_there(1) is None


def test_out_of_descriptors_is_not_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    def pidfd_open(_: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(process, "pidfd_open", pidfd_open)
    with pytest.raises(OSError, match="Too many open files"):
        process.pidfd_open_if_there(1)


def test_a_pidfd_is_there_for_a_process_that_is() -> None:
    pidfd = process.pidfd_open_if_there(os.getpid())
    assert pidfd is not None
    os.close(pidfd)


def test_a_bad_descriptor_or_signal_is_an_error() -> None:
    pidfd = process.pidfd_open(os.getpid())
    try:
        with pytest.raises(OSError, match="pidfd_send_signal") as caught:
            process.pidfd_send_signal(pidfd, 1000)
        assert caught.value.errno == errno.EINVAL
    finally:
        os.close(pidfd)
    with pytest.raises(OSError, match="pidfd_send_signal") as caught:
        process.pidfd_send_signal(pidfd, 0)
    assert caught.value.errno == errno.EBADF


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")
def test_no_permission_is_an_error() -> None:
    out = run_python(f"""
        import os
        from muontrap.kernel import identity, process
        pidfd = process.pidfd_open({os.getpid()})
        identity.set_groups([]); identity.set_gid(65534); identity.set_uid(65534)
        try:
            process.pidfd_send_signal(pidfd, 15)
        except PermissionError as error:
            print(error.errno, "pidfd_send_signal" in str(error))
        print(process.get_soft_limit({os.getpid()}, process.RLIMIT_LOCKS))
    """)
    assert out.split("\n") == ["1 True", "None"]


@pytest.mark.parametrize("tag", [7, 2**31 - 1, 2**40 + 3, 2**62 - 1])
def test_limits_round_trip(tag: int) -> None:
    """All 64 bits of the soft limit, which children inherit; read by pid, by both functions."""
    out = run_python(f"""
        import os, subprocess
        from muontrap.kernel.process import *
        from muontrap.kernel.process import RLIMIT_LOCKS
        soft, hard = get_limit(0, RLIMIT_LOCKS)
        set_limit(RLIMIT_LOCKS, {tag}, hard)
        child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
        for pid in (0, os.getpid(), child.pid):
            print(get_limit(pid, RLIMIT_LOCKS) == ({tag}, hard), get_soft_limit(pid, RLIMIT_LOCKS))
        child.communicate()
    """)
    assert out.split("\n") == [f"True {tag}"] * 3


def test_limits_are_those_of_resource() -> None:
    for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_CPU):
        assert process.get_limit(0, number) == tuple(
            process.RLIM_INFINITY if value == resource.RLIM_INFINITY else value
            for value in resource.getrlimit(number)
        )


def test_limit_errors() -> None:
    with pytest.raises(ProcessLookupError, match="prlimit"):
        process.get_soft_limit(NO_PID, process.RLIMIT_LOCKS)
    with pytest.raises(ProcessLookupError, match="prlimit"):
        process.get_limit(NO_PID, process.RLIMIT_LOCKS)
    with pytest.raises(OSError, match="prlimit") as caught:
        process.set_limit(1000, 1, 1)
    assert caught.value.errno == errno.EINVAL


def test_set_name() -> None:
    out = run_python("""
        from muontrap.kernel.process import set_name
        for name in (b"muontrap-guard", b"fifteen-letters-and-more", b""):
            set_name(name)
            print(open("/proc/self/comm").read().strip())
    """)
    assert out.split("\n") == ["muontrap-guard", "fifteen-letters"]  # the last one's line is empty


@pytest.mark.parametrize("has_close_range", [True, False])
def test_close_on_exec_from(has_close_range: bool) -> None:
    out = run_python(f"""
        import os
        from muontrap.kernel import process
        fds = [os.open("/dev/null", os.O_RDONLY) for _ in range(5)]
        for fd in fds:
            os.set_inheritable(fd, True)
        if not {has_close_range}:
            process.syscall = lambda *_: -1
        process.close_on_exec_from(fds[2])
        print([os.get_inheritable(fd) for fd in (0, 1, 2, *fds)])
    """)
    assert out == str([True] * 3 + [True, True, False, False, False])


def test_prctl() -> None:
    """Each is read back from the kernel."""
    out = run_python("""
        import ctypes, os
        from muontrap.kernel import process
        prctl = ctypes.CDLL(None).prctl
        value = ctypes.c_int()
        process.set_child_subreaper()
        prctl(37, ctypes.byref(value)); print(value.value)
        process.set_pdeathsig(10)
        prctl(2, ctypes.byref(value)); print(value.value)
        process.set_dumpable(False); print(prctl(3))
        process.set_dumpable(True); print(prctl(3))
        process.set_no_new_privs(); print(prctl(39, 0, 0, 0, 0))
        try:
            process.set_pdeathsig(1000)
        except OSError as error:
            print(error.errno, "PR_SET_PDEATHSIG" in str(error))
    """)
    assert out.split("\n") == ["1", "10", "0", "1", "1", f"{errno.EINVAL} True"]


def test_orphans_come_to_a_subreaper() -> None:
    out = run_python("""
        import os
        from muontrap.kernel.process import set_child_subreaper
        set_child_subreaper()
        if os.fork() == 0:
            if os.fork() == 0:
                os._exit(7)
            os._exit(0)
        print(sorted(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(2)))
    """)
    assert out == "[0, 7]"


def test_filesystem_type(tmp_path: Path) -> None:
    assert process.filesystem_type(b"/proc/self/stat") == 0x9FA0  # PROC_SUPER_MAGIC, <linux/magic.h>
    missing = os.fsencode(tmp_path / "missing")
    with pytest.raises(FileNotFoundError, match="statfs") as caught:
        process.filesystem_type(missing)
    assert caught.value.filename == missing


def test_close_range_is_there() -> None:
    release = tuple(int(number) for number in os.uname().release.split("-")[0].split(".")[:2])
    assert process.has_close_range() == (release >= (5, 9))
