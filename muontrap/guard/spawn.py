"""Starting a command by `posix_spawn`: no copy of the interpreter is made.

What `posix_spawn` has no word for, the guard takes on itself just before, and undoes just after:
it has one thread, so nobody else sees it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource

from muontrap.kernel.signals import not_default
from muontrap.logic.steps import moves

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from muontrap.logic.wire import Launch


# Of the guard, which leaves them as CPython's start has made them.
SIGNALS = not_default()


class StepFailed(Exception):
    """A step between the request and `execve` failed."""

    def __init__(self, code: int, step: str, path: str = "") -> None:
        super().__init__(code, step, path)
        self.code = code
        self.step = step
        self.path = path


def spawn(launch: Launch, directory: int, sources: Sequence[int], limits: tuple[int, int]) -> int:
    """Start the command, with `sources` as its `targets`; return its pid when `execve` is done.

    The tag is the caller's to put on; `limits` are those of descriptors, which the guard has raised
    for itself.  `StepFailed` says what failed; then nothing is left.
    """
    steps = dict(launch.steps)
    umask = os.umask(steps["umask"][0])
    duplicates: list[int] = []
    step = "chdir"
    try:
        os.fchdir(directory)
        step = "descriptors"
        for source, above in moves(launch.targets, sources):
            duplicates.append(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, above) if above >= 0 else -1)
        moved = [new if new >= 0 else old for new, old in zip(duplicates, sources, strict=True)]
        if limits[0] != limits[1]:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        step = "execve"
        return first_that_runs(launch, lambda path: _posix_spawn(path, launch, moved, steps))
    except (OSError, ValueError) as error:
        raise StepFailed(getattr(error, "errno", None) or errno.EINVAL, step) from error
    finally:
        if limits[0] != limits[1]:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
        os.chdir("/")
        os.umask(umask)
        for fd in duplicates:
            if fd >= 0:
                os.close(fd)


def first_that_runs(launch: Launch, execute: Callable[[bytes], int]) -> int:
    """Try the candidates as `execvp` does: the first error that is not "not there" is the one."""
    refusal: OSError | None = None
    for path in launch.candidates:
        try:
            return execute(path)
        except OSError as error:
            if refusal is None or refusal.errno in (errno.ENOENT, errno.ENOTDIR):
                refusal = error
    raise refusal or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _posix_spawn(
    path: bytes, launch: Launch, sources: Sequence[int], steps: dict[str, tuple[int, ...]]
) -> int:
    session = "setsid" in steps
    group: dict[str, Any] = {} if session else {"setpgroup": 0}
    return os.posix_spawn(
        path,
        launch.argv,
        launch.env,
        file_actions=[(os.POSIX_SPAWN_DUP2, *pair) for pair in zip(sources, launch.targets, strict=True)],
        setsid=session,
        setsigmask=(),
        setsigdef=SIGNALS,
        **group,
    )
