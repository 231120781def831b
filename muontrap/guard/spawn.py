"""What the guard takes on itself for a command, and starting one by `posix_spawn`.

No copy of the interpreter is made: what `posix_spawn` has no word for, the first process inherits.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
from _functools import partial  # type: ignore[import-not-found]

from muontrap.kernel.process import RLIMIT_LOCKS
from muontrap.logic.steps import in_the_way

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from muontrap.kernel.spawn import Spawner
    from muontrap.logic.wire import Launch

    Limits = tuple[int, int]


# Enough to kill what is left of a command in a few passes, however much that is.
_RESERVE = 64


class StepFailed(Exception):
    """A step between the request and `execve` failed."""

    def __init__(self, code: int, step: str, path: str = "") -> None:
        super().__init__(code, step, path)
        self.code = code
        self.step = step
        self.path = path


class NotStarted(Exception):
    """This takes a child in Python, which can do more, checks more, and says which of its steps fails."""


class Reserve:
    """Descriptors that launches leave alone: without one, nothing that is left of a command can be opened."""

    def __init__(self, most: int) -> None:
        self._all = most, most
        self._some = most - min(_RESERVE, most // 4), most

    def __enter__(self) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self._some)

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, self._all)

    def dup_above(self, fd: int, targets: Sequence[int]) -> int:
        """Duplicate a descriptor for the time of a launch, above its targets, whatever these are."""
        self.__exit__()
        try:
            return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(targets, default=2) + 1)
        finally:
            self.__enter__()


class Assumed:
    """Directory, umask, limits and tag of a command, taken on just before and given back just after.

    The guard has one thread, so nobody else sees it; and what is done here, a forked child need not
    do, for which each page that it writes to is copied first.  With it come the launch's sources,
    moved out of the way of its targets.

    Args:
        home: descriptor of the guard's own directory.
        files: the command's limits of descriptors.
        reserve: has the guard's.
        locks: the guard's own limits of RLIMIT_LOCKS; the soft one is the command's tag, unless None.
        env: the command's environment, of `Environments`, for who needs it.
    """

    def __init__(
        self,
        launch: Launch,
        directory: int,
        sources: Sequence[int],
        *,
        home: int,
        files: Limits,
        reserve: Reserve,
        locks: Limits,
        tag: int | None,
        env: Any,
    ) -> None:
        self.env: Any = env
        self._launch = launch
        self._directory = directory
        self._sources = sources
        self._home = home
        self._files = files
        self.reserve: Reserve = reserve
        self._locks = locks
        self._tag = tag
        self._copies: dict[int, int] = {}
        self._umask = -1

    def __enter__(self) -> Sequence[int]:
        step = "chdir"
        try:
            os.fchdir(self._directory)
            step = "descriptors"
            moved = self._sources
            for source in in_the_way(self._launch.targets, moved):
                self._copies[source] = self.reserve.dup_above(source, self._launch.targets)
            if self._copies:
                moved = [self._copies.get(source, source) for source in moved]
            step = "umask"
            self._umask = os.umask(self._launch.umask)
            # Last, for with fewer descriptors there might be none for the lines above.
            step = "rlimit"
            if self._tag is not None:
                resource.setrlimit(RLIMIT_LOCKS, (self._tag, self._locks[1]))
            resource.setrlimit(resource.RLIMIT_NOFILE, self._files)
        except (OSError, ValueError, OverflowError) as error:
            self.__exit__()
            raise StepFailed(getattr(error, "errno", None) or errno.EINVAL, step) from error
        return moved

    def __exit__(self, *_: object) -> None:
        self.reserve.__enter__()
        if self._tag is not None:
            resource.setrlimit(RLIMIT_LOCKS, self._locks)
        if self._umask >= 0:
            os.umask(self._umask)
            self._umask = -1
        while self._copies:
            os.close(self._copies.popitem()[1])
        os.fchdir(self._home)


def spawn(spawner: Spawner, launch: Launch, assumed: Assumed, most_files: int) -> int:
    """Start the command; return its pid when `execve` is done.

    `StepFailed` says what failed; then nothing is left.  glibc's `posix_spawn` knows no descriptors from
    `most_files` on, the command's limit: `NotStarted`.
    """
    with assumed as sources:
        if max(sources, default=0) >= most_files:
            raise NotStarted
        places = list(zip(sources, launch.targets, strict=True))
        session = bool(launch.session)
        execute = partial(spawner, argv=launch.argv, env=assumed.env, places=places, session=session)
        try:
            return first_that_runs(launch, execute)
        except (OSError, OverflowError) as error:
            raise StepFailed(getattr(error, "errno", None) or errno.EINVAL, "execve") from error


def first_that_runs(launch: Launch, execute: Callable[[bytes], int]) -> int:
    """Try the candidates as `execvp` does: the first error that is not "not there" is the one."""
    refusal = errno.ENOENT
    for path in launch.candidates:
        try:
            return execute(path)
        except OSError as error:
            if refusal in (errno.ENOENT, errno.ENOTDIR):
                refusal = error.errno or 0
    raise OSError(refusal, os.strerror(refusal))
