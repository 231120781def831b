"""The guard's protocol: records to bytes and back, and their division into packets.

A record is a kind and its fields, each length-checked.  Nothing else than numbers and byte strings
travels: no pickle, no evaluation.  Any bytes decode to a record or raise `ProtocolError`.

Over the request socket the host sends `Launch` records, each with the descriptors
(status socket, directory, then one for each of `targets`).  All that follows about this command
goes over its status socket: `Started` or `Failed`, `Suspended`, `Ended`; the host sends `Stop` and `Signal`.
The guard opens with `Hello`.
"""

from __future__ import annotations

import struct

from muontrap.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from muontrap.logic.steps import Step

# A packet over about 200 KB is EMSGSIZE (net.core.wmem_default); SCM_MAX_FD is 253.
PACKET_BYTES = 128 * 1024
PACKET_FDS = 250
# Above what `execve` takes (a quarter of the stack limit, 6 MB at most by default).
RECORD_BYTES = 64 * 1024 * 1024
_INT = struct.Struct("<q")
_HEAD = struct.Struct("<II")


class Record:
    """A record; its annotations, in order, are its fields on the wire."""

    __slots__ = ()
    FIELDS: tuple[tuple[str, str], ...] = ()

    def __init__(self, **values: object) -> None:
        for name, _ in self.FIELDS:
            setattr(self, name, values.pop(name))
        if values:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(values)}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.encode() == other.encode()  # type: ignore[attr-defined]

    __hash__ = None  # type: ignore[assignment]

    def encode(self) -> bytes:
        """Return the record's bytes."""
        fields = [_ENCODERS[kind](getattr(self, name)) for name, kind in self.FIELDS]
        return bytes((_KINDS.index(type(self)),)) + b"".join(fields)


class Hello(Record):
    """The guard is ready; with it come pidfds of the watch and of the guard."""

    __slots__ = ("guard_id", "guard_pid", "tag_width", "watch_pid")
    FIELDS = (("guard_id", "int"), ("guard_pid", "int"), ("watch_pid", "int"), ("tag_width", "int"))
    guard_id: int
    guard_pid: int
    watch_pid: int
    tag_width: int  # 0: the limit can't be used here


class Launch(Record):
    """Start a command."""

    __slots__ = (
        "argv",
        "candidates",
        "delay_to_sigkill",
        "env",
        "kill_mode",
        "spawn",
        "steps",
        "stop_signal",
        "targets",
    )
    FIELDS = (
        ("spawn", "int"),
        ("kill_mode", "bytes"),
        ("delay_to_sigkill", "float"),
        ("stop_signal", "int"),
        ("candidates", "strings"),
        ("argv", "strings"),
        ("env", "strings"),
        ("steps", "steps"),
        ("targets", "ints"),
    )
    spawn: int
    kill_mode: bytes
    delay_to_sigkill: float
    stop_signal: int
    candidates: list[bytes]
    argv: list[bytes]
    env: list[bytes]
    steps: list[Step]
    targets: list[int]


class Received(Record):
    """The request has been read; what takes time now is not the guard."""

    __slots__ = ()


class Started(Record):
    """`execve` has succeeded; with it comes a pidfd."""

    __slots__ = ("pid",)
    FIELDS = (("pid", "int"),)
    pid: int


class Failed(Record):
    """The command did not run; nothing of it is left."""

    __slots__ = ("errno", "path", "step")
    FIELDS = (("errno", "int"), ("step", "bytes"), ("path", "bytes"))
    errno: int
    step: bytes
    path: bytes


class Stop(Record):
    """End the command; a negative delay means its own `delay_to_sigkill`."""

    __slots__ = ("delay", "reason")
    FIELDS = (("delay", "float"), ("reason", "bytes"))
    delay: float
    reason: bytes


class Signal(Record):
    """Send a signal to the command's process group, whose leader the guard has not reaped."""

    __slots__ = ("signum",)
    FIELDS = (("signum", "int"),)
    signum: int


class Suspended(Record):
    """The main process was stopped by a signal."""

    __slots__ = ("signum",)
    FIELDS = (("signum", "int"),)
    signum: int


class Ended(Record):
    """Nothing of the command is left, but for the pids listed.

    `status` is that of waitpid(2), -1 when the main process has not ended.  `sent` has three
    numbers for each signal: number, seconds since the launch, number of processes.
    """

    __slots__ = ("not_permitted", "reason", "sent", "status", "unkillable", "usage", "wall")
    FIELDS = (
        ("status", "int"),
        ("reason", "bytes"),
        ("wall", "float"),
        ("usage", "floats"),
        ("sent", "floats"),
        ("not_permitted", "ints"),
        ("unkillable", "ints"),
    )
    status: int
    reason: bytes
    wall: float
    usage: list[float]
    sent: list[float]
    not_permitted: list[int]
    unkillable: list[int]


_KINDS: tuple[type[Record], ...] = (
    Hello, Launch, Received, Started, Failed, Stop, Signal, Suspended, Ended,
)  # fmt: skip


def decode(data: bytes) -> Record:
    """Return the record that `data` is, whole; `ProtocolError` for anything else."""
    if not data or data[0] >= len(_KINDS):
        raise ProtocolError(f"no record of kind {data[:1]!r}")
    kind = _KINDS[data[0]]
    reader = _Reader(data)
    record = kind(**{name: reader.read(field) for name, field in kind.FIELDS})
    if reader.at != len(data):
        raise ProtocolError(f"{len(data) - reader.at} bytes too many in a {kind.__name__}")
    return record


def packets(payload: bytes, fd_count: int) -> list[tuple[bytes, int, int]]:
    """Divide a record into packets: (bytes, first descriptor, descriptor after the last).

    The first begins with the sizes of the whole, and has the status socket, over which the rest comes.
    """
    data = _HEAD.pack(len(payload), fd_count) + payload
    count = max(-(-len(data) // PACKET_BYTES), -(-fd_count // PACKET_FDS))
    return [
        (
            data[index * PACKET_BYTES : (index + 1) * PACKET_BYTES] or b"\0",
            min(index * PACKET_FDS, fd_count),
            min((index + 1) * PACKET_FDS, fd_count),
        )
        for index in range(count)
    ]


class Assembly:
    """Packets on their way back to a record and its descriptors."""

    __slots__ = ("_data", "_fd_count", "_size", "fds")

    def __init__(self) -> None:
        self._data = b""
        self._size = -1
        self._fd_count = 0
        self.fds: list[int] = []

    def feed(self, data: bytes, fds: Sequence[int]) -> bytes | None:
        """Take a packet; return the record's bytes when all is there."""
        self.fds += fds
        if self._size < 0:
            if len(data) < _HEAD.size:
                raise ProtocolError(f"a request of {len(data)} bytes")
            self._size, self._fd_count = _HEAD.unpack_from(data)
            data = data[_HEAD.size :]
        if len(self._data) < self._size:
            self._data += data
        if len(self._data) > min(self._size, RECORD_BYTES) or len(self.fds) > self._fd_count:
            raise ProtocolError(f"a request of {len(self._data)} bytes, {len(self.fds)} descriptors")
        whole = len(self._data) == self._size and len(self.fds) == self._fd_count
        return self._data if whole else None


class _Reader:
    """A position in a record's bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 1

    def read(self, kind: str) -> object:
        """Read one field."""
        if kind == "steps":
            return [(self._string().decode("ascii", "replace"), self._numbers("q")) for _ in range(self._count())]
        if kind == "strings":
            *strings, rest = self._string().split(b"\0")
            if rest:
                raise ProtocolError("a string does not end in NUL")
            return strings
        if kind == "bytes":
            return self._string()
        if kind in ("ints", "floats"):
            return list(self._numbers("q" if kind == "ints" else "d"))
        return self._unpack("<q" if kind == "int" else "<d")[0]

    def _numbers(self, code: str) -> tuple[float, ...]:
        return self._unpack(f"<{self._count()}{code}")

    def _unpack(self, form: str) -> tuple[float, ...]:
        try:
            values = struct.unpack_from(form, self._data, self.at)
        except struct.error as error:
            raise ProtocolError("a record ends in a number") from error
        self.at += struct.calcsize(form)
        return values

    def _count(self) -> int:
        count = int(self._unpack("<q")[0])
        if not 0 <= count <= len(self._data) - self.at:
            raise ProtocolError(f"a record counts {count} where {len(self._data) - self.at} bytes are")
        return count

    def _string(self) -> bytes:
        end = self._count() + self.at
        start, self.at = self.at, end
        return self._data[start:end]


def _bytes(value: bytes) -> bytes:
    return _INT.pack(len(value)) + value


def _numbers(code: str, values: Sequence[float]) -> bytes:
    return struct.pack(f"<q{len(values)}{code}", len(values), *values)


def _steps(steps: Sequence[Step]) -> bytes:
    items = [_bytes(name.encode("ascii")) + _numbers("q", numbers) for name, numbers in steps]
    return _INT.pack(len(items)) + b"".join(items)


_ENCODERS = {
    "int": _INT.pack,
    "float": struct.Struct("<d").pack,
    "bytes": _bytes,
    "ints": lambda values: _numbers("q", values),
    "floats": lambda values: _numbers("d", values),
    "strings": lambda values: _bytes(b"".join([value + b"\0" for value in values])),  # none has a NUL
    "steps": _steps,
}
