"""Input and output of a command moved at the same time, until its end: not until end of file."""

from __future__ import annotations

import fcntl
import io
import os
import select
import time

from muontrap.host.link import poll_for, poll_ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from muontrap.host.streams import Pipes
    from muontrap.logic.command import Command

# More was slower, measured: the buffer no longer stays in the processor's cache.
_CHUNK = 65536


class Exchange:
    """What is still to be written, and what was read."""

    def __init__(self, command: Command, pipes: Pipes) -> None:
        self._command = command
        self._pipes = pipes
        self._input: memoryview | None = None
        self._readers = pipes.fds[1:]
        self._outputs = {fd: bytearray() for fd in self._readers if fd is not None}
        self._open = set(self._outputs)

    def feed(self, data: Any) -> None:
        """Take what to write, the first time; no data close the command's stdin."""
        stdin, file = self._pipes.fds[0], self._pipes.files[0]
        if stdin is None or self._input is not None or (file and file.closed):
            return
        if isinstance(data, str):
            data = data.encode(*self._codec())
        self._input = memoryview(data or b"").cast("B")
        if file:
            try:
                file.flush()
            except BrokenPipeError:
                pass
        if self._input:
            os.set_blocking(stdin, False)
        else:
            self._pipes.close_one(0)

    def wait(self, status: int, deadline: float | None) -> bool:
        """Read and write what is possible until `status` is readable; False when it is too late."""
        poll = poll_for([status, *self._open])
        stdin = self._pipes.fds[0] if self._input else None
        if stdin is not None:
            poll.register(stdin, select.POLLOUT)
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            events = poll.poll(poll_ms(left))
            ended = False
            for fd, _ in events:
                if fd == status:
                    ended = True
                elif not (self._write(fd) if fd == stdin else self._read(fd, _CHUNK)):
                    poll.unregister(fd)
            if ended or (left is not None and left <= 0):
                return ended

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
        return data.decode(*self._codec()).replace("\r\n", "\n").replace("\r", "\n")

    def _codec(self) -> tuple[str, str]:
        wrapper = io.TextIOWrapper(io.BytesIO(), self._command.encoding, self._command.errors)
        return wrapper.encoding, wrapper.errors or "strict"

    def _read(self, fd: int, size: int) -> int:
        data = os.read(fd, size)
        if not data:
            self._open.discard(fd)
        self._outputs[fd] += data
        return len(data)

    def _write(self, fd: int) -> bool:
        """Write some input; return whether there is more."""
        assert self._input is not None
        try:
            self._input = self._input[os.write(fd, self._input[:_CHUNK]) :]
        except BlockingIOError:
            return True
        except BrokenPipeError:
            self._input = self._input[:0]
        if not self._input:
            self._pipes.close_one(0)
        return bool(self._input)
