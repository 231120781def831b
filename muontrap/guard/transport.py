"""Records to the host, and its requests on their way in; the guard waits for neither."""

from __future__ import annotations

import _socket
import struct

from muontrap.errors import ProtocolError
from muontrap.kernel.sockets import Packet, close
from muontrap.logic.escalation import KILL_MODES
from muontrap.logic.wire import Assembly, Launch, Placement, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from muontrap.logic.wire import Record


def send(sock: _socket.socket, record: Record, fds: Sequence[int] = ()) -> None:
    """Send a record to a host that may have gone, or may not be reading."""
    try:
        if fds:
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))
            sock.sendmsg([record.encode()], [rights], _socket.MSG_DONTWAIT)
        else:
            sock.send(record.encode(), _socket.MSG_DONTWAIT)
    except (BrokenPipeError, ConnectionResetError, BlockingIOError):
        pass


class Request(Assembly):
    """A launch on its way in: packets until the record and its descriptors are complete.

    It owns these descriptors, of the directory and of the launch's targets; on `channel` the host
    waits for the answer.
    """

    launch: Launch | None = None
    placement: Placement | None = None

    def __init__(self, channel: _socket.socket) -> None:
        self.channel: _socket.socket = channel

    @property
    def directory(self) -> int:
        """The descriptor of the working directory."""
        return self.fds[0]

    @property
    def sources(self) -> Sequence[int]:
        """The descriptors of the launch's targets."""
        return self.fds[1:]

    def take(self, packet: Packet) -> None:
        """Take a packet; `launch` is there after the last. Raises `ProtocolError`."""
        payload = self.feed(packet.data, packet.fds)
        if payload is None:
            return
        launch = decode(payload)
        if not isinstance(launch, Launch):
            raise ProtocolError("a request that is no launch")
        count = len(self.fds) - 1
        launch.targets = launch.targets or range(count)
        launch.candidates = launch.candidates or launch.argv[:1]
        if not _is_complete(launch, count):
            raise ProtocolError("a launch that lacks something")
        if launch.cgroup:
            self.placement = _placement(launch.cgroup)
        self.launch = launch

    def close(self) -> None:
        """Close the descriptors."""
        close(self.fds)
        self.fds: Sequence[int] = ()


def _is_complete(launch: Launch, source_count: int) -> bool:
    """Tell whether nothing that the guard relies on is missing or unknown."""
    return (
        source_count == len(launch.targets)
        and 0 <= launch.kill_mode < len(KILL_MODES)
        and (("join", ()) in launch.steps) == bool(launch.cgroup)
    )


def _placement(data: bytes) -> Placement:
    record = decode(data)
    if (
        not isinstance(record, Placement)
        or len(record.settings) % 4
        or not record.directories
        or any(name[:2] not in (b"+/", b"=/") for name in record.directories)
    ):
        raise ProtocolError("a cgroup that is none")
    return record
