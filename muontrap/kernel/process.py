"""Processes: pidfds, prctl, limits of other processes, the file system of a program."""

from __future__ import annotations

import errno
import os
import select
from itertools import repeat

from muontrap.kernel._generated_ffi import ffi
from muontrap.kernel.abi import check, libc, syscall

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from typing import Any

RLIMIT_LOCKS = libc.RLIMIT_LOCKS
RLIM_INFINITY = 2**64 - 1
_AT_FDCWD = -100


def pidfd_open(pid: int) -> int:
    """Return a close-on-exec descriptor of process `pid`. See pidfd_open(2), Linux 5.3."""
    return check(syscall(libc.SYS_pidfd_open, pid, 0), "pidfd_open")


def pidfd_open_if_there(pid: int) -> int | None:
    """Return a pidfd, or None when there is no such process any more.

    EINVAL and, since Linux 6.15, ENOENT are "gone" too: a thread's number, or a race with an exit.
    """
    try:
        return pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL, errno.ENOENT):
            return None
        raise


def pidfd_send_signal(pidfd: int, signum: int) -> bool:
    """Send a signal; return False when the process has been reaped. See pidfd_send_signal(2)."""
    if syscall(libc.SYS_pidfd_send_signal, pidfd, signum, 0, 0) == -1:
        if ffi.errno == errno.ESRCH:
            return False
        check(-1, "pidfd_send_signal")
    return True


def is_dead(pidfd: int) -> bool:
    """Tell whether all threads of the process have ended: a zombie counts as dead."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def close_on_exec_from(first: int) -> None:
    """Mark all descriptors from `first` on close-on-exec. See close_range(2), Linux 5.11."""
    if syscall(libc.SYS_close_range, first, 0x7FFFFFFF, libc.CLOSE_RANGE_CLOEXEC) == -1:
        for name in os.listdir("/proc/self/fd"):
            if int(name) >= first:
                try:
                    os.set_inheritable(int(name), False)
                except OSError as error:
                    if error.errno != errno.EBADF:  # the listing's own descriptor
                        raise


def has_close_range() -> bool:
    """Tell whether the kernel has close_range(2), Linux 5.9."""
    return syscall(libc.SYS_close_range, 0x7FFFFFFF, 0x7FFFFFFF, 0) != -1


def set_name(name: bytes) -> None:
    """Set the name that /proc/PID/comm shows, 15 bytes at most. See PR_SET_NAME(2const)."""
    check(libc.prctl(libc.PR_SET_NAME, ffi.from_buffer(name + b"\0")), "PR_SET_NAME")


def set_dumpable(dumpable: bool) -> None:
    """Allow or forbid tracing by processes of the same user. See PR_SET_DUMPABLE(2const)."""
    _prctl("PR_SET_DUMPABLE", libc.PR_SET_DUMPABLE, int(dumpable))


def set_child_subreaper() -> None:
    """Adopt the orphans among this process's descendants. See PR_SET_CHILD_SUBREAPER(2const)."""
    _prctl("PR_SET_CHILD_SUBREAPER", libc.PR_SET_CHILD_SUBREAPER, 1)


def set_no_new_privs() -> None:
    """Let no `execve` give privileges from now on. See PR_SET_NO_NEW_PRIVS(2const)."""
    _prctl("PR_SET_NO_NEW_PRIVS", libc.PR_SET_NO_NEW_PRIVS, 1)


def set_pdeathsig(signum: int) -> None:
    """Ask for a signal when the parent thread ends. See PR_SET_PDEATHSIG(2const)."""
    _prctl("PR_SET_PDEATHSIG", libc.PR_SET_PDEATHSIG, signum)


def _prctl(call: str, option: int, value: int) -> None:
    rest = [ffi.cast("unsigned long", 0)] * 3
    check(libc.prctl(option, ffi.cast("unsigned long", value), *rest), call)


# musl has one prlimit, with 64 bits; glibc's plain one has 32 where long has.
_prlimit = libc.prlimit64 if hasattr(libc, "prlimit64") else libc.prlimit


def get_limit(pid: int, resource: int) -> tuple[int, int]:
    """Return (soft, hard) of process `pid`, 0 being the caller. See prlimit(2)."""
    limit: Any = ffi.new("struct rlimit64 *")
    check(_prlimit(pid, resource, ffi.NULL, limit), "prlimit")
    return limit.rlim_cur, limit.rlim_max


def get_soft_limit(pid: int, resource: int) -> int | None:
    """Return the soft limit of `pid`, None where this process may not read it (EPERM)."""
    limit: Any = ffi.new("struct rlimit64 *")
    if _prlimit(pid, resource, ffi.NULL, limit) == -1:
        if ffi.errno == errno.EPERM:
            return None
        check(-1, "prlimit")
    soft: int = limit.rlim_cur
    return soft


def set_limit(resource: int, soft: int, hard: int) -> None:
    """Set a limit of the calling process. See prlimit(2)."""
    check(_prlimit(0, resource, ffi.new("struct rlimit64 *", (soft, hard)), ffi.NULL), "prlimit")


def c_strings(strings: Sequence[bytes]) -> Any:
    """Return what execve(2) takes for arguments."""
    return _array(list(map(ffi.new, repeat("char[]"), strings)))


class Environments:
    """Environments as execve(2) takes them: a usual one, that one with changes, or another."""

    def __init__(self, usual: Mapping[bytes, bytes]) -> None:
        self._usual = _variables(usual)
        self._whole = _array(self._usual.values())

    def strings(self, variables: Mapping[bytes, bytes], *, inherits: bool) -> Any:
        """Return as `c_strings` these variables, if `inherits` on top of the usual ones."""
        if not inherits:
            return _array(_variables(variables).values())
        return _array({**self._usual, **_variables(variables)}.values()) if variables else self._whole


def _variables(env: Mapping[bytes, bytes]) -> dict[bytes, Any]:
    return {name: ffi.new("char[]", b"%b=%b" % (name, value)) for name, value in env.items()}


def _array(owners: Collection[Any]) -> Any:
    # The pointers keep nothing alive: the strings do, which come with them.
    return ffi.new("char *[]", [*owners, ffi.NULL]), owners


class Environ:
    """Have this process's `environ`, and so a child's, be of `Environments` meanwhile. See environ(7)."""

    def __init__(self, strings: Any) -> None:
        self._strings = strings

    def __enter__(self) -> None:
        self._before = libc.environ
        libc.environ = self._strings[0]

    def __exit__(self, *_: object) -> None:
        libc.environ = self._before


def has_one_environ() -> bool:
    """Tell whether what `Environ` sets is the C library's `environ`, and not a program's copy of it."""
    name = b"MUONTRAP"
    with Environ(Environments({}).strings({name: b""}, inherits=False)):
        return bool(libc.getenv(name) != ffi.NULL)


# Looked up here and not by a forked child, in which that takes longer.
_execve = libc.execve


def execve(path: bytes, argv: Any, env: Any) -> None:
    """Run another program in this process; `argv` is of `c_strings`, `env` of `Environments`. See execve(2).

    Unlike `os.execve` it allocates nothing, each page of which a forked child would have to copy.
    """
    check(_execve(path, argv[0], env[0]), "execve")


def filesystem_type(path: bytes) -> int:
    """Return the magic number of the file system that `path` lies on. See statfs(2)."""
    buffer = ffi.new("unsigned long[64]")
    check(libc.statfs(path, buffer), "statfs", path)
    # s390x has f_type and f_bsize as two 32-bit words, big-endian, where others have a long.
    word: int = buffer[0]
    return word >> 32 or word


def mount_id(path: bytes) -> int:
    """Return the number of the mount that `path` lies on, 0 if it can't be had. See statx(2), Linux 5.8."""
    buffer = ffi.new("uint64_t[32]")
    if not hasattr(libc, "statx") or libc.statx(_AT_FDCWD, path, 0, libc.STATX_MNT_ID, buffer) == -1:
        return 0
    number: int = buffer[18]
    return number
