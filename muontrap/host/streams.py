"""Standard streams: what the command gets, and the host's ends of pipes."""

from __future__ import annotations

import errno
import io
import os

from muontrap.logic.command import DEVNULL, PIPE, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

    from muontrap.logic.command import Command


class Streams:
    """Descriptors for one launch: `targets` and `sources` for the guard, host's ends of `pipes`."""

    def __init__(self, command: Command) -> None:
        self.targets: list[int] = []
        self.sources: list[int] = []
        self.pipes: list[int | None] = [None, None, None]
        self._temporary: list[int] = []
        try:
            for target, value in enumerate((command.stdin, command.stdout, command.stderr)):
                self._add(target, value)
            for fd in command.pass_fds:
                os.fstat(fd)  # EBADF at once for one that is not open
                if fd not in self.targets:
                    self._place(fd, fd)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close what only the command needs, and host's ends for which there was no command."""
        for fd in [*self._temporary, *self.pipes]:
            if fd is not None:
                os.close(fd)

    def terminal(self) -> int:
        """Return the first of the command's standard streams that is a terminal."""
        for target, source in zip(self.targets, self.sources, strict=True):
            if target <= 2 and os.isatty(source):
                return target
        raise OSError(errno.ENOTTY, "foreground=True, but no standard stream is a terminal")

    def open_files(self, command: Command) -> tuple[IO[Any] | None, IO[Any] | None, IO[Any] | None]:
        """Return the host's ends as file objects, in text or binary as the command says."""
        stdin, stdout, stderr = (
            None if fd is None else _open(fd, "wb" if target == 0 else "rb", command)
            for target, fd in enumerate(self.pipes)
        )
        self.pipes = [None, None, None]
        return stdin, stdout, stderr

    def _add(self, target: int, value: Any) -> None:
        if value is None:
            if _is_inherited(target):
                self._place(target, target)
        elif value == PIPE:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            mine, its = (writing, reading) if target == 0 else (reading, writing)
            self.pipes[target] = mine
            self._temporary.append(its)
            self._place(target, its)
        elif value == STDOUT:
            if 1 in self.targets:
                self._place(target, self.sources[self.targets.index(1)])
        elif value == DEVNULL:
            self._temporary.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            self._place(target, self._temporary[-1])
        else:
            self._place(target, value if isinstance(value, int) else value.fileno())

    def _place(self, target: int, source: int) -> None:
        self.targets.append(target)
        self.sources.append(source)


def _is_inherited(fd: int) -> bool:
    """Tell whether a command would find it: not where another file has the number of a closed stream."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def _open(fd: int, mode: str, command: Command) -> IO[Any]:
    # A buffer of one line is for text alone, as in subprocess.
    line_buffered = command.bufsize == 1 and command.is_text
    file: IO[Any] = open(  # noqa: SIM115
        fd, mode, -1 if command.bufsize == 1 else command.bufsize
    )
    if command.is_text:
        file = io.TextIOWrapper(
            file,
            encoding=command.encoding,
            errors=command.errors,
            line_buffering=line_buffered,
            write_through=line_buffered,
        )
    return file
