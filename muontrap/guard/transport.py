"""Records and descriptors over the guard's sockets, which it never waits for."""

from __future__ import annotations

import _socket
import os
import struct

from muontrap.errors import ProtocolError
from muontrap.logic.wire import PACKET_BYTES, Assembly, Launch, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from muontrap.logic.wire import Record

_ANCILLARY = _socket.CMSG_SPACE(253 * 4) + _socket.CMSG_SPACE(12)
# CPython's `socket` has no name for it; <bits/socket.h>, the same on every architecture.
_MSG_CMSG_CLOEXEC = 0x40000000


class Truncated(Exception):
    """Descriptors were lost on the way, for this process can't have more: EMFILE."""


class Packet:
    """What one `recvmsg` gave."""

    __slots__ = ("credentials", "data", "fds")

    def __init__(self, data: bytes, fds: list[int], credentials: tuple[int, int, int] | None) -> None:
        self.data: bytes = data
        self.fds: list[int] = fds
        self.credentials: tuple[int, int, int] | None = credentials


def receive(sock: _socket.socket) -> Packet:
    """Take one packet; no data mean end of file.

    Raises `BlockingIOError` when there is none, `Truncated` when descriptors are missing; then
    all that came are closed.
    """
    try:
        data, ancillary, flags, _ = sock.recvmsg(
            PACKET_BYTES, _ANCILLARY, _socket.MSG_DONTWAIT | _MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        return Packet(b"", [], None)
    fds: list[int] = []
    credentials = None
    for level, kind, content in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS):
            fds += struct.unpack(f"{len(content) // 4}i", content[: len(content) // 4 * 4])
        elif (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_CREDENTIALS):
            credentials = struct.unpack("3I", content)
    if flags & _socket.MSG_CTRUNC:
        close(fds)
        raise Truncated
    return Packet(data, fds, credentials)


def send(sock: _socket.socket, record: Record, fds: Sequence[int] = ()) -> None:
    """Send a record to a host that may have gone, or may not be reading."""
    rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))
    try:
        sock.sendmsg([record.encode()], [rights] if fds else [], _socket.MSG_DONTWAIT)
    except (BrokenPipeError, ConnectionResetError, BlockingIOError):
        pass


def close(fds: Sequence[int]) -> None:
    """Close descriptors that came."""
    for fd in fds:
        os.close(fd)


class Request:
    """A launch on its way in: packets until the record and its descriptors are complete.

    It owns what came: `status`, the host's end of which waits for the answer, and the descriptors
    of the directory and of the launch's targets.
    """

    __slots__ = ("_assembly", "launch", "status")

    def __init__(self, packet: Packet) -> None:
        self._assembly = Assembly()
        self.launch: Launch | None = None
        self.status: _socket.socket = _socket.socket(fileno=packet.fds[0])
        self.feed(packet)

    @property
    def directory(self) -> int:
        """The descriptor of the working directory."""
        return self._assembly.fds[1]

    @property
    def sources(self) -> list[int]:
        """The descriptors of the launch's targets."""
        return self._assembly.fds[2:]

    def feed(self, packet: Packet) -> None:
        """Take a packet; `launch` is there after the last. Raises `ProtocolError`."""
        payload = self._assembly.feed(packet.data, packet.fds)
        if payload is not None:
            launch = decode(payload)
            if not isinstance(launch, Launch) or len(self.sources) != len(launch.targets):
                raise ProtocolError("a request that is no launch")
            self.launch = launch

    def close(self) -> None:
        """Close all descriptors but the status socket."""
        close(self._assembly.fds[1:])
