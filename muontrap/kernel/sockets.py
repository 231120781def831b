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
    from collections.abc import Iterable, Sequence
    from typing import Any

    # Of recvmsg(2): data; (level, kind, content) of what came with them; flags; address.
    Answer = tuple[bytes, list[tuple[int, int, bytes]], int, Any]
    # Data, descriptors, and the sender's pid where the socket asks for it; None at the end of file.
    Packet = tuple[bytes, Sequence[int], int | None]

# SCM_MAX_FD descriptors and the sender's credentials; or one descriptor.
_MOST_ANCILLARY = _socket.CMSG_SPACE(253 * 4) + _socket.CMSG_SPACE(12)
_ANCILLARY = _socket.CMSG_SPACE(2 * 4)
# CPython's `socket` has no name for MSG_CMSG_CLOEXEC; <bits/socket.h>, the same on every architecture.
_FLAGS = _socket.MSG_DONTWAIT | 0x40000000
_CREDENTIALS = struct.Struct("3I")


class Truncated(Exception):
    """Descriptors were lost on the way, for this process can't have more: EMFILE."""


LONGEST = 128 * 1024
# Of a size from which malloc(3) maps and unmaps memory each time, which costs more than the packet.
_longest = bytearray(LONGEST)

# Nothing, or ECONNRESET, may be the end, or come before a packet that is still there.  The kernel looks at
# the queue, then at the shutdown: the other end may have sent and closed in between (seen 21 times in
# 150,000).  And ECONNRESET, once, is for what the other end had left unread, before what it had sent
# (unix_release_sock, __skb_try_recv_datagram in the kernel's source).  So both are asked for twice.
_IS_LAST = (False, True)


def receive_longest(sock: _socket.socket) -> Packet:
    """Take a packet of up to `LONGEST` bytes, as `receive` does; not for two threads at once."""
    for is_last in _IS_LAST:
        try:
            size, ancillary, flags, _ = sock.recvmsg_into((_longest,), _MOST_ANCILLARY, _FLAGS)
        except ConnectionResetError:
            size, ancillary, flags = 0, [], 0
        if size or ancillary or is_last:
            break
    return bytes(memoryview(_longest)[:size]), *_contents(ancillary, flags)


def receive(sock: _socket.socket, answers: list[Answer]) -> Packet:
    """Take one packet of up to 16 KiB, with two descriptors at most; no data mean end of file.

    Raises `BlockingIOError` when there is none, `Truncated` when descriptors are missing; then
    all that came are closed.

    Args:
        answers: where what has come is until the caller clears it; till then it comes again: a signal's
            handler may raise between any two steps of Python, and no packet may be lost in that.
    """
    for is_last in _IS_LAST:
        if answers and answers[0][0]:
            break
        try:
            # One step of Python, from recvmsg(2) to the list.
            answers[:] = map(sock.recvmsg, (1 << 14,), (_ANCILLARY,), (_FLAGS,))
        except ConnectionResetError:
            if is_last:
                answers[:] = [(b"", [], 0, None)]
    data, ancillary, flags, _ = answers[0]
    if flags & _socket.MSG_CTRUNC:
        answers.clear()  # first, for a number that is closed may be another's the next time
    elif not ancillary:
        return data, (), None
    return data, *_contents(ancillary, flags)


def _contents(ancillary: list[tuple[int, int, bytes]], flags: int) -> tuple[Sequence[int], int | None]:
    """Return the descriptors that came with a packet, and its sender."""
    fds: Sequence[int] = ()
    sender = None
    for _, kind, content in ancillary:  # of SOL_SOCKET, each kind once
        if kind == _socket.SCM_RIGHTS:
            fds = memoryview(content).cast("i").tolist()
        else:
            sender, _, _ = _CREDENTIALS.unpack(content)
    if flags & _socket.MSG_CTRUNC:
        close(fds)
        raise Truncated
    return fds, sender


def close(fds: Iterable[int]) -> None:
    """Close descriptors that came."""
    for fd in fds:
        os.close(fd)
