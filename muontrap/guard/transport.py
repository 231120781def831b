"""Records to the host, and its requests on their way in; the guard waits for neither."""

from __future__ import annotations

import _socket
import errno
import struct

from muontrap.errors import ProtocolError
from muontrap.kernel import signals
from muontrap.kernel.sockets import close
from muontrap.logic.escalation import KILL_MODES
from muontrap.logic.wire import Assembly, Launch, Placement, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from muontrap.guard.commands import Command
    from muontrap.logic.wire import Record


def send(sock: _socket.socket, record: Record, fds: Sequence[int] = ()) -> None:
    """Send a record to a host that may have gone, or may not be reading.

    Without the descriptors, where this user has too many on their way in sockets already.
    """
    try:
        if fds:
            rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))
            sock.sendmsg([record.encode()], [rights], _socket.MSG_DONTWAIT)
        else:
            sock.send(record.encode(), _socket.MSG_DONTWAIT)
    except (BrokenPipeError, ConnectionResetError, BlockingIOError):
        pass
    except OSError as error:
        if not fds or error.errno != errno.ETOOMANYREFS:
            raise
        send(sock, record)


class Request(Assembly):
    """A launch on its way in: packets until the record and its descriptors, which it owns, are complete.

    Attributes:
        launch: the whole record, None until it is there.
        directory: the descriptor of its working directory.
        sources: the descriptors of its targets.
        placement: the cgroup that it asks for.
    """

    launch: Launch | None = None
    directory: int
    sources: Sequence[int]
    placement: Placement | None = None

    def take(self, data: bytes, fds: Sequence[int]) -> None:
        """Take a packet; `launch` is there after the last. Raises `ProtocolError`."""
        payload = self.feed(data, fds)
        if payload is None:
            return
        launch = decode(payload)
        if not isinstance(launch, Launch) or not self.fds:
            raise ProtocolError("a request that is no launch")
        self.directory, *self.sources = self.fds
        launch.targets = launch.targets or range(len(self.sources))
        launch.candidates = launch.candidates or launch.argv[:1]
        if (
            len(self.sources) != len(launch.targets)
            or not 0 <= launch.kill_mode < len(KILL_MODES)
            or (("join", ()) in launch.steps) != bool(launch.cgroup)
            or launch.stop_signal not in signals.ALL
        ):
            raise ProtocolError("a launch that lacks something")
        if launch.cgroup:
            self.placement = _placement(launch.cgroup)
        self.launch = launch

    def close(self) -> None:
        """Close the descriptors."""
        close(self.fds)
        self.fds: Sequence[int] = ()


class Channel:
    """One of the host's: over it come a launch, and what is to be done with its command; then the next.

    Attributes:
        request: the launch that comes, or may.
        command: the one that runs, None while a launch is waited for.
        is_open: whether the host still has its end, as far as is known.
    """

    def __init__(self, sock: _socket.socket) -> None:
        self.socket: _socket.socket = sock
        self.fd: int = sock.fileno()
        self.request: Request = Request()
        self.command: Command | None = None
        self.is_open: bool = True

    def tell(self, record: Record, fds: Sequence[int] = ()) -> None:
        """Send a record to the host."""
        send(self.socket, record, fds)


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
