"""The C library opened once, and the one translator from its -1 to `OSError`."""

from __future__ import annotations

import os

from muontrap.kernel._generated_ffi import ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Protocol

    class Libc(Protocol):
        """What `build_ffi.py` declares."""

        SYS_pidfd_send_signal: int
        SYS_pidfd_open: int
        SYS_close_range: int
        CLOSE_RANGE_CLOEXEC: int
        PR_SET_PDEATHSIG: int
        PR_SET_DUMPABLE: int
        PR_SET_NAME: int
        PR_GET_SECUREBITS: int
        PR_SET_CHILD_SUBREAPER: int
        PR_SET_NO_NEW_PRIVS: int
        RLIMIT_LOCKS: int
        POSIX_SPAWN_SETPGROUP: int
        POSIX_SPAWN_SETSIGDEF: int
        POSIX_SPAWN_SETSIGMASK: int
        POSIX_SPAWN_SETSID: int
        STATX_MNT_ID: int

        environ: Any

        def syscall(self, number: int, /, *arguments: Any) -> int: ...
        def prctl(self, option: int, /, *arguments: Any) -> int: ...
        def sigemptyset(self, sigset: Any, /) -> int: ...
        def sigaddset(self, sigset: Any, signum: int, /) -> int: ...
        def signalfd(self, fd: int, mask: Any, flags: int, /) -> int: ...
        def prlimit64(self, pid: int, resource: int, new: Any, old: Any, /) -> int: ...
        def prlimit(self, pid: int, resource: int, new: Any, old: Any, /) -> int: ...
        def setresuid(self, ruid: int, euid: int, suid: int, /) -> int: ...
        def setresgid(self, rgid: int, egid: int, sgid: int, /) -> int: ...
        def setgroups(self, size: int, groups: Any, /) -> int: ...
        def getgrouplist(self, user: bytes, gid: int, groups: Any, count: Any, /) -> int: ...
        def posix_spawn(
            self, pid: Any, path: bytes, actions: Any, attributes: Any, argv: Any, envp: Any, /
        ) -> int: ...
        def posix_spawnattr_init(self, attributes: Any, /) -> int: ...
        def posix_spawnattr_setflags(self, attributes: Any, flags: int, /) -> int: ...
        def posix_spawnattr_setsigmask(self, attributes: Any, mask: Any, /) -> int: ...
        def posix_spawnattr_setsigdefault(self, attributes: Any, signals: Any, /) -> int: ...
        def posix_spawn_file_actions_init(self, actions: Any, /) -> int: ...
        def posix_spawn_file_actions_destroy(self, actions: Any, /) -> int: ...
        def posix_spawn_file_actions_adddup2(self, actions: Any, source: int, target: int, /) -> int: ...
        def getenv(self, name: bytes, /) -> Any: ...
        def execve(self, path: bytes, argv: Any, envp: Any, /) -> int: ...
        def statfs(self, path: bytes, buffer: Any, /) -> int: ...
        def statx(self, directory: int, path: bytes, flags: int, mask: int, buffer: Any, /) -> int: ...


# `None` is the running program itself: glibc's and musl's files have different names.
libc: Libc = ffi.dlopen(None)  # type: ignore[assignment]

# Where an architecture's own system calls begin; the numbers from 424 on are common to all
# (Documentation/process/adding-syscalls.rst), alpha's with 110 added.
_BASE = {"alpha": 110, "mips": 4000, "mips64": 5000}.get(os.uname().machine, 0)


def check(result: int, call: str, path: bytes | None = None) -> int:
    """Return `result`, or raise the `OSError` of libc's errno that names `call` and `path`."""
    if result == -1:
        code = ffi.errno
        raise OSError(code, f"{os.strerror(code)} ({call})", path)
    return result


def syscall(number: int, *arguments: int) -> int:
    """Call the kernel with longs; return its result, -1 with errno set on failure."""
    return libc.syscall(_BASE + number, *[ffi.cast("long", argument) for argument in arguments])
