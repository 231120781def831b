"""Input and output of a command moved at the same time, until its end: not until end of file."""

from __future__ import annotations

import fcntl
import io
import os
import select
import time

from muontrap.host.link import poll_ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, Any

    from muontrap.logic.command import Command

# More was slower, measured: the buffer no longer stays in the processor's cache.
_CHUNK = 65536


class Exchange:
    """What is still to be written, and what was read."""

    def __init__(
        self, command: Command, files: tuple[IO[Any] | None, IO[Any] | None, IO[Any] | None]
    ) -> None:
        self._command = command
        self._stdin, *outputs = files
        self._input: memoryview | None = None
        self._outputs = {file.fileno(): bytearray() for file in outputs if file}
        self._readers = [file.fileno() if file else None for file in outputs]
        self._open = set(self._outputs)

    def feed(self, data: Any) -> None:
        """Take what to write, the first time; no data close the command's stdin."""
        if self._stdin and self._input is None and not self._stdin.closed:
            if isinstance(data, str):
                encoding = getattr(self._stdin, "encoding", None) or "utf-8"
                data = data.encode(encoding, getattr(self._stdin, "errors", None) or "strict")
            self._input = memoryview(data or b"").cast("B")
            try:
                self._stdin.flush()
            except BrokenPipeError:
                pass
            if self._input:
                os.set_blocking(self._stdin.fileno(), False)
            else:
                self._close_stdin()

    def wait(self, status: int, deadline: float | None) -> bool:
        """Read and write what is possible until `status` is readable; False when it is too late."""
        poll = select.poll()
        poll.register(status, select.POLLIN)
        for fd in self._open:
            poll.register(fd, select.POLLIN)
        stdin = self._stdin.fileno() if self._stdin and not self._stdin.closed and self._input else -1
        if stdin >= 0:
            poll.register(stdin, select.POLLOUT)
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            events = poll.poll(poll_ms(left))
            for fd, _ in events:
                if fd in self._open and not self._read(fd, _CHUNK):
                    poll.unregister(fd)
                elif fd == stdin and not self._write():
                    poll.unregister(fd)
                    stdin = -1
            if any(fd == status for fd, _ in events):
                return True
            if left is not None and left <= 0:
                return False

    def drain(self) -> None:
        """Read what the command left in the pipes: at most their size, as others may write on."""
        for fd in list(self._open):
            left = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            while left > 0 and poll.poll(0):
                count = self._read(fd, min(left, _CHUNK))
                if not count:
                    break
                left -= count

    def so_far(self) -> tuple[bytes | None, bytes | None]:
        """Return the bytes read from stdout and stderr, None for one that is not captured."""
        stdout, stderr = (None if fd is None else bytes(self._outputs[fd]) for fd in self._readers)
        return stdout, stderr

    def output(self) -> tuple[Any, Any]:
        """Return what was read, decoded if the command's streams are text.

        `UnicodeDecodeError` has the bytes in its `object`.
        """
        stdout, stderr = self.so_far()
        return (self._decode(stdout), self._decode(stderr)) if self._command.is_text else (stdout, stderr)

    def _decode(self, data: bytes | None) -> str | None:
        if data is None:
            return None
        wrapper = io.TextIOWrapper(io.BytesIO(data), self._command.encoding, self._command.errors)
        return (
            data.decode(wrapper.encoding, wrapper.errors or "strict")
            .replace("\r\n", "\n")
            .replace("\r", "\n")
        )

    def _read(self, fd: int, size: int) -> int:
        data = os.read(fd, size)
        if not data:
            self._open.discard(fd)
        self._outputs[fd] += data
        return len(data)

    def _write(self) -> bool:
        """Write some input; return whether there is more."""
        assert self._stdin is not None
        assert self._input is not None
        try:
            self._input = self._input[os.write(self._stdin.fileno(), self._input[:_CHUNK]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self._input = self._input[:0]
        if not self._input:
            self._close_stdin()
        return bool(self._input)

    def _close_stdin(self) -> None:
        assert self._stdin is not None
        try:
            self._stdin.close()
        except BrokenPipeError:
            pass
