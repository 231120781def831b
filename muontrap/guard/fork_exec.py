"""Starting a command under other credentials by `fork_exec`, the C code below `subprocess`.

`posix_spawn` can't change them, and the guard can't take them on: the new user might signal it then.
In a child of `fork_exec` no Python runs, whose first steps take longer than `execve`: each page that
they write to is copied (F54).
"""

from __future__ import annotations

import errno
import os
import select
import sys

from muontrap.guard.spawn import NotStarted, StepFailed
from muontrap.kernel import signals
from muontrap.kernel.identity import drops_for_good
from muontrap.kernel.process import Environ, has_one_environ
from muontrap.logic.wire import Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from muontrap.guard.spawn import Assumed
    from muontrap.logic.wire import Launch

_fork_exec: Callable[..., int] | None = None
# 3.12.0 keeps the groups where there are to be none: CVE-2023-6507.
if sys.implementation.name == "cpython" and sys.version_info[:3] != (3, 12, 0):
    from _posixsubprocess import fork_exec as _fork_exec

# Its signature is not a public one: no process group (-1), and no vfork, which it would refuse here.
_GROUP, _VFORK = ((-1,), (False,)) if sys.version_info >= (3, 11) else ((), ())
# The highest number means "leave as it is".
_IDS = range(2**32 - 1)
_EXECUTE_MS = 50


class ForkExec:
    """The guard's way for credentials alone; `NotStarted` where another has to be gone."""

    def __init__(self) -> None:
        self._is_usable = drops_for_good() and has_one_environ()

    def __call__(self, launch: Launch, assumed: Assumed) -> tuple[int, int | None]:
        """Start the command; return its pid, and None when `execve` is done.

        If that takes long, there is a pipe, not blocking, which gives what `failure` takes, or end of
        file.  For a process of the new user can stop the child between its steps.
        """
        steps = dict(launch.steps)
        ids = steps.get("setresuid", ()) + steps.get("setresgid", ()) + steps.get("setgroups", ())
        possible = self._is_usable and all(number in _IDS for number in ids)
        if _fork_exec is None or not possible or signals.faults_are_pending():
            raise NotStarted
        signals.absorb()
        try:
            reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise StepFailed(error.errno or 0, "descriptors") from error
        try:
            with assumed as sources, Environ(assumed.env):
                pid, said = _start(_fork_exec, launch, sources, (reading, writing))
        except BaseException:
            os.close(reading)
            raise
        if said is None:
            return pid, reading
        os.close(reading)
        if said:
            os.waitpid(pid, 0)
            failed = failure(said)
            if failed.step != b"execve":
                raise NotStarted
            raise StepFailed(failed.errno, "execve")
        return pid, None


def _start(
    fork_exec: Callable[..., int], launch: Launch, sources: Sequence[int], pipe: tuple[int, int]
) -> tuple[int, bytes | None]:
    """Return the child's pid, and what it has said; None when that is not sure yet."""
    reading, writing = pipe
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    said = b""
    # The child has no other moment to unblock them.
    blocked = signals.block(())
    try:
        try:
            arguments = _arguments(launch, sources, pipe)
            pid = fork_exec(*arguments)  # which are not let go of yet
        finally:
            os.close(writing)
        # At once, for until it sleeps here the guard keeps the CPU from the child, and copies each page that
        # it writes to.
        while poll.poll(_EXECUTE_MS):
            piece = os.read(reading, 200)
            if not piece:
                return pid, said
            said += piece
        if said:  # it has failed, and was stopped in saying so
            os.kill(pid, signals.SIGKILL)
            os.waitpid(pid, 0)
            raise NotStarted
        return pid, None
    except (TypeError, ValueError) as error:
        raise NotStarted from error  # another signature than the one known here, or not one uid and gid
    except OSError as error:
        raise StepFailed(error.errno or 0, "fork") from error
    finally:
        signals.block(blocked)


def _arguments(launch: Launch, sources: Sequence[int], pipe: tuple[int, int]) -> tuple[Any, ...]:
    steps = dict(launch.steps)
    streams = dict(zip(launch.targets, sources, strict=True))
    stdin, stdout, stderr = streams.get(0, -1), streams.get(1, -1), streams.get(2, -1)
    (gid,), (uid,) = steps.get("setresgid", (None,)), steps.get("setresuid", (None,))
    groups = list(steps["setgroups"]) if "setgroups" in steps else None
    return (
        launch.argv, launch.candidates, False, (), None, None,
        stdin, -1, -1, stdout, -1, stderr, *pipe, False, True, *_GROUP, gid, groups, uid, -1, None, *_VFORK,
    )  # fmt: skip


def failure(said: bytes) -> Failed:
    """Return what a child of `fork_exec` means, that tells no steps before `execve` apart."""
    _, code, reason = (*said.split(b":", 2), b"", b"")[:3]
    number = int(code, 16) if code else errno.EPROTO
    return Failed(errno=number, step=b"a change of ids" if reason else b"execve", path=b"")
