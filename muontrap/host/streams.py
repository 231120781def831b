"""Standard streams: what the command gets, and the host's ends of pipes."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import sys
import termios

from muontrap.logic.command import DEFAULT_WINDOW, DEVNULL, PIPE, STDOUT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator
    from typing import IO, Any

    from muontrap.logic.command import Command

# `os.read` allocates what it is asked for: 1 MiB is page faults each time, and three times slower (F53).
CHUNK = 65536
# Without CAP_SYS_RESOURCE: the default of /proc/sys/fs/pipe-max-size.
_MOST_BUFFERED = 2**20


class Raw(io.FileIO):
    """A pipe below a file object, which counts how often it is read."""

    reads: int = 0

    def readinto(self, buffer: Any, /) -> int:
        """Count, and read."""
        self.reads += 1
        return super().readinto(buffer)

    def read(self, size: int | None = -1, /) -> bytes:
        """Count, and read."""
        self.reads += 1
        return super().read(size)

    def readall(self) -> bytes:
        """Count, and read."""
        self.reads += 1
        return super().readall()


class Pipes:
    """The host's ends: descriptors, and file objects for a user who asked for a `Process`.

    Attributes:
        window: bytes that may be read and not yet handled.
    """

    def __init__(self, window: int) -> None:
        self.window: int = window
        self.kept: list[int] = []  # the command's ends of outputs
        self.iterated: dict[int, int] = {}  # descriptors of iterators, each with its target
        self.fds: dict[int, int] = {}  # by target, as long as they are open
        self.files: list[IO[Any] | None] = [None, None, None]

    def open_files(self, command: Command, without: Container[int]) -> None:
        """Make file objects, in text or binary as the command says, but for some targets."""
        for target, fd in self.fds.items():
            if target not in without:
                # It owns the descriptor.  One step of Python: where a signal's handler raises between two, it
                # would close that, and so would `close`.
                self.files[target : target + 1] = map(Raw, (fd,), ("rb" if target else "wb",))
                for file in _layers(self.files[target], command):
                    self.files[target] = file

    def fd(self, target: int) -> int | None:
        """Return a descriptor, None if it is not there, or closed: perhaps by the user, through its file."""
        file = self.files[target]
        return None if file and file.closed else self.fds.get(target)

    def share(self, size: int) -> None:
        """Divide that many bytes between the kernel's buffers and the window, as near as the kernel can.

        A buffer has a power of two of pages (pipe(7)); the window has what these leave, at least half.
        """
        outputs = [fd for target, fd in self.fds.items() if target]
        for fd in outputs:
            most = min(size // 2 // len(outputs), _MOST_BUFFERED)
            try:
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 1 << most.bit_length() >> 1)
            except PermissionError:
                pass  # all pipes of this user have more than /proc/sys/fs/pipe-user-pages-soft
        buffered = sum(fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ) for fd in outputs)
        self.window = max(size - buffered, size // 2, 1)

    def close(self) -> None:
        """Close them all; input that the command did not read is lost."""
        while self.kept:
            os.close(self.kept.pop())
        for target in list(self.fds):
            self.close_one(target)

    def close_one(self, target: int) -> None:
        """Close one, if it is there and open."""
        fd, file = self.fds.pop(target, None), self.files[target]
        if file:
            if not target and not file.closed:
                written_ahead(file)  # and lost: to write it could take for ever
            file.close()
        elif fd is not None:
            os.close(fd)


class Streams:
    """Descriptors for one launch: the host's ends in `pipes`, and for the guard `sources`, by target."""

    def __init__(self, command: Command) -> None:
        self.sources: dict[int, int] = {}
        self.pipes: Pipes = Pipes(command.stdio_window or DEFAULT_WINDOW)
        self._temporary: list[int] = []
        self._outputs: list[int] = []
        try:
            for target, value in enumerate((command.stdin, command.stdout, command.stderr)):
                self._add(target, value)
            for fd in command.pass_fds:
                self.sources.setdefault(fd, _checked("pass_fds", fd))
            if command.stdio_window is not None:
                self.pipes.share(command.stdio_window)
        except BaseException:
            self.close()
            self.pipes.close()
            raise

    def close(self) -> None:
        """Close what only the command needs."""
        for fd in self._temporary + self._outputs:
            os.close(fd)

    def keep_outputs_open(self) -> None:
        """Let `pipes` not come to an end before they are closed.

        For who waits for the guard's word alone: the command's exit would wake it up twice.
        """
        self.pipes.kept, self._outputs = self._outputs, []

    def terminal(self) -> int:
        """Return the first of the command's standard streams that is a terminal."""
        for target, source in self.sources.items():
            if target <= 2 and os.isatty(source):
                return target
        raise OSError(errno.ENOTTY, "foreground=True, but no standard stream is a terminal")

    def _add(self, target: int, value: Any) -> None:
        if value is None:
            if _is_inherited(target):
                self.sources[target] = target
        elif value == PIPE:
            reading, writing = os.pipe2(os.O_CLOEXEC)
            if target:
                self.pipes.fds[target], self.sources[target] = reading, writing
                self._outputs.append(writing)
            else:
                self.pipes.fds[0], self.sources[0] = writing, reading
                self._temporary.append(reading)
        elif value == STDOUT:
            if 1 in self.sources:
                self.sources[target] = self.sources[1]
        elif value == DEVNULL:
            self.sources[target] = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            self._temporary.append(self.sources[target])
        else:
            fd = value if isinstance(value, int) else value.fileno()
            self.sources[target] = _checked(("stdin", "stdout", "stderr")[target], fd)


def _checked(name: str, fd: int) -> int:
    """Return a descriptor, or raise for one that is not open."""
    try:
        os.fstat(fd)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (descriptor {fd} in {name})") from None
    except (TypeError, OverflowError) as error:
        raise type(error)(f"{error} (descriptor {fd!r} in {name})") from None
    return fd


def _is_inherited(fd: int) -> bool:
    """Tell whether a command would find it: not where another file has the number of a closed stream."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


def left_in(pipe: int) -> int:
    """Return how many bytes wait to be read."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


def codec(command: Command) -> tuple[str, str]:
    """Return encoding and error handler of the command's text, as `open` would choose them."""
    wrapper = io.TextIOWrapper(io.BytesIO(), command.encoding, command.errors)
    return wrapper.encoding, wrapper.errors or "strict"


def encoded(command: Command, data: Any) -> memoryview:
    """Return what is to be written to the command's stdin; raise for what can't be."""
    if command.is_text:
        if not isinstance(data, str):
            raise TypeError(f"input must be str, not {data!r}")
        data = data.encode(*codec(command)) if data else b""  # without a byte order mark
    elif not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"input must be bytes, not {data!r}")
    return memoryview(data).cast("B")


def written_ahead(file: Any) -> bytes:
    """Take from a file object what it has not written yet."""
    pieces: list[bytes] = []

    def write(data: Any) -> int:
        pieces.append(bytes(data))
        return len(data)

    buffer = getattr(file, "buffer", file)
    with_methods(getattr(buffer, "raw", buffer), file.flush, write=write)
    return b"".join(pieces)


def with_methods(stream: Any, act: Callable[[], Any], **methods: Callable[..., Any]) -> Any:
    """Act while a stream has other methods, which the one above it calls."""
    own = vars(stream)
    own.update(methods)
    try:
        return act()
    finally:
        for name in methods:
            del own[name]


def _layers(file: Any, command: Command) -> Iterator[Any]:
    """Yield file objects around a raw one, each around that before; the last is what `open` returns."""
    # A buffer of one line is for text alone, as in subprocess.
    size = io.DEFAULT_BUFFER_SIZE if command.bufsize in (-1, 1) else command.bufsize
    if size:
        file = (io.BufferedReader if file.readable() else io.BufferedWriter)(file, size)
        yield file
    if command.is_text:
        yield io.TextIOWrapper(
            file,
            encoding=command.encoding,
            errors=command.errors,
            line_buffering=command.bufsize == 1,
            write_through=True,
        )
