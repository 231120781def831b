"""Signals: what is blocked, ignored, or read from a descriptor.

`_signal`, the C half of `signal`, is used for itself: `signal` imports `enum`, which costs a
guard more time than all the rest of it (docs/explanation/architecture.md).
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from muontrap.kernel._generated_ffi import ffi
from muontrap.kernel.abi import check, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

SIGKILL: int = _signal.SIGKILL
SIGCHLD: int = _signal.SIGCHLD
SIGCONT: int = _signal.SIGCONT
ALL = tuple(range(1, _signal.NSIG))
# glibc and musl keep 32 to 34 for themselves; SIGKILL and SIGSTOP have no disposition to set.
DEFAULTABLE = tuple(number for number in ALL if number not in (SIGKILL, _signal.SIGSTOP, 32, 33, 34))
# Where one of these is the process's own doing, it would come again and again.
_FAULTS = (_signal.SIGILL, _signal.SIGBUS, _signal.SIGFPE, _signal.SIGSEGV)
_SIGINFO_SIZE = 128


def open_signalfd(*signums: int) -> int:
    """Return a descriptor that is readable while one of these blocked signals is pending."""
    return check(libc.signalfd(-1, set_of(signums), os.O_NONBLOCK | os.O_CLOEXEC), "signalfd")


def set_of(signums: Iterable[int]) -> Any:
    """Return a set of signals as the C library takes it."""
    signal_set = ffi.new("uint64_t[16]")
    libc.sigemptyset(signal_set)
    for signum in signums:
        libc.sigaddset(signal_set, signum)
    return signal_set


def drain(signalfd: int) -> None:
    """Take all pending signals off a signalfd."""
    try:
        while len(os.read(signalfd, 16 * _SIGINFO_SIZE)) == 16 * _SIGINFO_SIZE:
            pass
    except BlockingIOError:
        pass


def not_default() -> list[int]:
    """Return the signals that are ignored or handled, as CPython does with a few at its start."""
    return [number for number in DEFAULTABLE if _signal.getsignal(number) is not _signal.SIG_DFL]


def set_default(signums: Iterable[int]) -> None:
    """Give signals their default action, as a command expects it at its start."""
    for signum in signums:
        _signal.signal(signum, _signal.SIG_DFL)


def faults_are_pending() -> bool:
    """Tell whether somebody has sent what `absorb` leaves alone, which would end this process unblocked."""
    return not _signal.sigpending().isdisjoint(_FAULTS)


_absorbed: list[int] = []


def absorb() -> None:
    """Have signals do nothing when they are not blocked; after `execve` they have their default action.

    But for those that say a fault, and real-time ones that the C library keeps for itself.
    """
    if not _absorbed:
        for signum in sorted(_signal.valid_signals() - {SIGKILL, _signal.SIGSTOP, *_FAULTS}):
            _signal.signal(signum, lambda *_: None)
            _absorbed.append(signum)


def block(signums: Iterable[int]) -> set[int]:
    """Block these signals, and no others; return which were."""
    before: set[int] = _signal.pthread_sigmask(_signal.SIG_SETMASK, signums)
    return before


def unblock() -> None:
    """Block no signal any more; each has its default action."""
    set_default(_absorbed)
    block(())
