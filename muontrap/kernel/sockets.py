"""Packets with descriptors, over UNIX sockets. See unix(7).

CPython's own `socket.recv_fds` does not pass its flags on, and `_socket`, the C half of
`socket`, is all that the guard can afford (docs/explanation/architecture.md).
"""

from __future__ import annotations

import _socket
import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Ancillary = tuple[int, int, bytes]

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


# Of a size from which malloc(3) maps and unmaps memory each time, which costs more than the packet.
LONGEST = 128 * 1024
_longest = bytearray(LONGEST)


def receive_longest(sock: _socket.socket) -> Packet:
    """Take a packet of up to `LONGEST` bytes, as `receive` does; not for two threads at once."""
    return _receive(sock, _longest)


def receive(sock: _socket.socket) -> Packet:
    """Take one packet of up to 16 KiB; no data mean end of file.

    Raises `BlockingIOError` when there is none, `Truncated` when descriptors are missing; then
    all that came are closed.
    """
    return _receive(sock, bytearray(1 << 14))


def _receive(sock: _socket.socket, buffer: bytearray) -> Packet:
    size, ancillary, flags = _recvmsg(sock, buffer)
    if not size:
        size, ancillary, flags = _recvmsg(sock, buffer)
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
    return Packet(bytes(memoryview(buffer)[:size]), fds, credentials)


def _recvmsg(sock: _socket.socket, buffer: bytearray) -> tuple[int, list[Ancillary], int]:
    """Receive once; 0 bytes may be the end, or come before a packet that is still there.

    The kernel looks at the queue, then at the shutdown: the other end may have sent and closed in
    between (seen 21 times in 150,000).  And ECONNRESET, once, is for what the other end had left
    unread, before what it had sent (unix_release_sock, __skb_try_recv_datagram in the kernel's source).
    """
    try:
        size, ancillary, flags, _ = sock.recvmsg_into(
            [buffer], _ANCILLARY, _socket.MSG_DONTWAIT | _MSG_CMSG_CLOEXEC
        )
    except ConnectionResetError:
        return 0, [], 0
    return size, ancillary, flags


def close(fds: Iterable[int]) -> None:
    """Close descriptors that came."""
    for fd in fds:
        os.close(fd)
