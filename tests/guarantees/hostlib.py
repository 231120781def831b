"""What the host programs of the tests share: they talk to the test in JSON lines, and know how to die.

`Arena.host` runs `from hostlib import *` first; the last two arguments of the program are its two pipes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import muontrap
import muontrap.host.link

NOBODY = 65534
GRACE = 0.1  # seconds between SIGTERM and SIGKILL in these hosts
READY = os.environ.get("MUONTRAP_READY", "/dev/null")

# For the host programs, which begin with `from hostlib import *`.
__all__ = [
    "GRACE", "NOBODY", "Any", "add_filter", "contextlib", "ctypes", "die", "fork_behind_pythons_back",
    "gc", "hear", "kind", "main", "muontrap", "names_of_threads", "open_fds", "os", "resource", "say",
    "signal", "subprocess", "sys", "threading", "time",
]  # fmt: skip

_pipes = {"events": -1, "orders": -1}
_heard = bytearray()


def say(**what: Any) -> None:
    """Tell the test something."""
    os.write(_pipes["events"], json.dumps(what).encode() + b"\n")


def hear() -> str:
    """Wait for the test's next order; "" when the test is gone."""
    while b"\n" not in _heard and (data := os.read(_pipes["orders"], 4096)):
        _heard.extend(data)
    line, _, rest = bytes(_heard).partition(b"\n")
    _heard[:] = rest
    return line.decode()


def add_filter(forbidden: int = 0xFFFFFFFF) -> None:
    """Add a filter of seccomp to this process, which forbids a system call; by default none that there is."""
    libc = ctypes.CDLL(None)
    steps = ((0x20, 0, 0, 0), (0x15, 0, 1, forbidden), (6, 0, 0, 0x00050001), (6, 0, 0, 0x7FFF0000))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = struct.pack("@HP", len(steps), ctypes.addressof(code))
    assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert libc.prctl(22, 2, program, 0, 0) == 0  # PR_SET_SECCOMP


def kind(call: Callable[[], Any]) -> list[Any]:
    """What `call` raises, as (type, errno, filename) for comparing; ["returned"] when it returns."""
    try:
        call()
    except Exception as error:
        bases = [base for base in type(error).__mro__ if base.__module__ in {"builtins", "subprocess"}]
        name = type(error).__name__ if bases[0] in (Exception, RuntimeError) else bases[0].__name__
        return [name, getattr(error, "errno", None), os.fspath(getattr(error, "filename", None) or "")]
    return ["returned"]


def close_idle_channels() -> None:
    """Let a comparison of what is open not see how many commands ran at a time."""
    guard = muontrap.host.link._links.current
    while guard and guard._idle:
        guard._idle.pop().close()


def open_fds() -> list[str]:
    """What the descriptors of this process refer to."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(f"{name} {os.readlink(f'/proc/self/fd/{name}')}")
    return sorted(line for line in found if not line.endswith(f"/proc/{os.getpid()}/fd"))


def names_of_threads() -> list[str]:
    """The kernel's names of this process's threads."""
    found = []
    for tid in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{tid}/comm", encoding="utf-8") as file:
            found.append(file.read().strip())
    return sorted(found)


def fork_behind_pythons_back() -> int:
    """Fork as a C library of the host may: none of Python's at-fork hooks run. The child only waits."""
    libc = ctypes.PyDLL(None)  # keeps the lock of the interpreter
    if pid := libc.fork():
        return int(pid)
    while True:
        libc.pause()


def die(how: str) -> None:
    """End this host in one of the ways that programs end."""
    if how == "exception":
        raise RuntimeError("the host ends with an exception")
    if how == "sys-exit":
        sys.exit(3)
    if how == "os-exit":
        os._exit(4)
    if how == "segv":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        ctypes.string_at(0)
    if how == "execv":
        os.execv("/bin/sh", ["sh", "-c", f"echo became >{READY}; exec sleep 1000"])
    if how == "sigkill":
        os.kill(os.getpid(), signal.SIGKILL)


def main(host: Callable[[], None]) -> None:
    """Run a host; a failure before its death is told to the test."""
    for name, fd in zip(_pipes, sys.argv[-2:], strict=True):
        _pipes[name] = int(fd)
        os.set_inheritable(int(fd), False)
    try:
        host()
    except Exception as error:
        if "the host ends with" not in str(error):
            with contextlib.suppress(OSError):
                say(error=traceback.format_exc())
        raise
