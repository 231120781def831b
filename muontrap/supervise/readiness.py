"""When a daemon is of use: what is looked for, and how long it takes to be there."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import struct

_PAUSE = 0.05
_CONNECT_BOUND = 2.0
_FORMS = "'notify', 'output:REGEX', 'tcp:HOST:PORT', 'unix:PATH' or 'file:PATH'"


class Probe:
    """What is waited for, checked.

    Attributes:
        kind: "notify", "output", "tcp", "unix" or "file".
        pattern: of "output": what a line has to match somewhere.
    """

    def __init__(self, name: str, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"{name} must be {_FORMS}, not {text!r}")
        kind, _, self._what = text.partition(":")
        self.kind: str = kind
        self._text = text
        self.pattern: re.Pattern[str] | None = None
        self._port = 0
        if self.kind not in ("notify", "output", "tcp", "unix", "file") or (self.kind != "notify") != bool(
            self._what
        ):
            raise ValueError(f"{name} must be {_FORMS}, not {text!r}")
        if self.kind == "output":
            try:
                self.pattern = re.compile(self._what)
            except re.error as error:
                raise ValueError(f"{name} has no regular expression: {text!r}: {error}") from None
        elif self.kind == "tcp":
            host, _, port = self._what.rpartition(":")
            if not host or not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError(f"{name} must have a host and a port, as 'tcp:127.0.0.1:80', not {text!r}")
            self._what, self._port = host.strip("[]"), int(port)

    def __str__(self) -> str:
        return self._text

    async def wait(self) -> None:
        """Return when it is there; for the kinds that can be looked for."""
        while not await self._is_there():
            await asyncio.sleep(_PAUSE)

    async def _is_there(self) -> bool:
        if self.kind == "file":
            return os.path.exists(self._what)
        try:
            if self.kind == "unix":
                with socket.socket(socket.AF_UNIX) as one:
                    one.setblocking(False)
                    one.connect(self._what)  # a listener's queue takes it at once, or it is full: EAGAIN
                return True
            connecting = asyncio.open_connection(self._what, self._port)
            _, writer = await asyncio.wait_for(connecting, _CONNECT_BOUND)
        except BlockingIOError:
            return True
        except (OSError, asyncio.TimeoutError):
            return False
        writer.close()
        return True


class NotifySocket:
    """The socket on which a daemon says READY=1 and WATCHDOG=1. See sd_notify(3)."""

    def __init__(self) -> None:
        # Of the abstract kind: it has no path to be left over, and any user may send.
        self.address: str = f"@muontrap-notify-{os.urandom(8).hex()}"
        self._socket: socket.socket | None = None

    def open(self) -> int:
        """Return the descriptor, to be read from by `receive`."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self._socket.bind("\0" + self.address[1:])
        return self._socket.fileno()

    def receive(self, uids: set[int | None]) -> dict[str, str]:
        """Return what was said by a process of these users; nothing of what others say."""
        assert self._socket is not None
        try:
            data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(12))
        except BlockingIOError:
            return {}
        users = [
            struct.unpack("3I", content)[1]
            for level, kind, content in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
        ]
        if not uids.issuperset(users):
            return {}
        lines = data.decode(errors="replace").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def close(self) -> None:
        """Nobody is heard any more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
