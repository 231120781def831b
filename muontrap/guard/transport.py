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


class Request:
    """A launch on its way in: packets until the record and its descriptors are complete.

    It owns what came: `status`, the host's end of which waits for the answer, and the descriptors
    of the directory and of the launch's targets.
    """

    __slots__ = ("_assembly", "_socket", "_status", "launch", "placement")

    def __init__(self, status: int) -> None:
        self._assembly = Assembly()
        self.launch: Launch | None = None
        self.placement: Placement | None = None
        self._status = status
        self._socket: _socket.socket | None = None

    @property
    def status(self) -> _socket.socket:
        """The status socket; made when it is asked for: a command starts sooner than the host is told."""
        if self._socket is None:
            self._socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, fileno=self._status)
        return self._socket

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
            if not isinstance(launch, Launch) or not _is_complete(launch, len(self._assembly.fds)):
                raise ProtocolError("a request that is no launch")
            self.placement = _placement(launch.cgroup) if launch.cgroup else None
            self.launch = launch

    def close(self) -> None:
        """Close all descriptors but the status socket."""
        close(self._assembly.fds[1:])


def _is_complete(launch: Launch, fd_count: int) -> bool:
    """Tell whether nothing that the guard relies on is missing or unknown."""
    return (
        fd_count == len(launch.targets) + 2
        and launch.kill_mode in range(len(KILL_MODES))
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
