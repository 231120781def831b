"""Starting a command under other credentials by `fork_exec`, the C code below `subprocess`.

`posix_spawn` can't change them, and the guard can't take them on: the new user might signal it then.
In a child of `fork_exec` no Python runs, whose first steps take longer than `execve`: each page that
they write to is copied (F54).
"""

from __future__ import annotations

import os
import sys

from muontrap.kernel import signals
from muontrap.kernel.identity import drops_for_good

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from muontrap.logic.wire import Launch

_fork_exec: Callable[..., int] | None
try:
    from _posixsubprocess import fork_exec as _fork_exec
except ImportError:  # another interpreter than CPython
    _fork_exec = None

# Its signature is not a public one: no process group (-1), and no vfork, which it would refuse here.
_GROUP, _VFORK = ((-1,), (False,)) if sys.version_info >= (3, 11) else ((), ())


class NotStarted(Exception):
    """This takes a child in Python, which checks more, and can say which of its steps fails."""


class ForkExec:
    """The guard's way for credentials alone; `NotStarted` where another has to be gone."""

    def __init__(self) -> None:
        self._fork_exec = _fork_exec if drops_for_good() else None
        self._absorbs = False

    def __call__(self, path: bytes, launch: Launch, sources: Sequence[int]) -> int:
        """Start one program in the command's place."""
        if self._fork_exec is None:
            raise NotStarted
        if not self._absorbs:
            signals.absorb()
            self._absorbs = True
        try:
            pid, said = _start(self._fork_exec, path, launch, sources)
        except (TypeError, ValueError) as error:
            raise NotStarted from error  # another signature; or more groups than it has room for (64 on 3.11)
        if said:
            os.waitpid(pid, 0)
            _, code, reason = said.split(b":", 2)
            if reason:
                raise NotStarted  # "noexec": it failed before `execve`
            raise OSError(int(code, 16), os.strerror(int(code, 16)))
        return pid


def _start(
    fork_exec: Callable[..., int], path: bytes, launch: Launch, sources: Sequence[int]
) -> tuple[int, bytes]:
    """Return the child's pid, and what it says when it fails."""
    steps = dict(launch.steps)
    streams = dict(zip(launch.targets, sources, strict=True))
    stdin, stdout, stderr = (streams.get(target, -1) for target in range(3))
    (gid,), (uid,) = steps.get("setresgid", (None,)), steps.get("setresuid", (None,))
    groups = list(steps["setgroups"]) if "setgroups" in steps else None
    env = [b"%b=%b" % variable for variable in launch.env.items()]
    reading, writing = os.pipe2(os.O_CLOEXEC)
    # The child has no other moment to unblock them.
    blocked = signals.block(())
    try:
        pid = fork_exec(
            launch.argv, (path,), False, (), None, env, stdin, -1, -1, stdout, -1, stderr, reading, writing,
            False, True, *_GROUP, gid, groups, uid, -1, None, *_VFORK,
        )  # fmt: skip
        os.close(writing)
        writing = -1
        # At once, for until it sleeps here the guard keeps the CPU from the child, and copies pages.
        said = b""
        while piece := os.read(reading, 200):
            said += piece
        return pid, said
    finally:
        signals.block(blocked)
        os.close(reading)
        if writing >= 0:
            os.close(writing)
