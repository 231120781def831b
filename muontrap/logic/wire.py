"""The guard's protocol: records to bytes and back, and their division into packets.

A record is a kind and its fields, each length-checked.  Nothing else than numbers and byte strings
travels: no pickle, no evaluation.  Any bytes decode to a record or raise `ProtocolError`.

Over the request socket the host sends `Launch` records, each with the descriptors (status socket,
directory, then one for each of `targets`).  All that follows about this command goes over its status
socket: the guard says `Started` or `Failed`, `Suspended`, `Ended`; the host `Stop`, `Signal`, and `Ping`
for a `Pong`.  The guard opens with `Hello`.
"""

from __future__ import annotations

import struct

from muontrap.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import ClassVar

    from muontrap.logic.steps import Step

# In the guard's environment alone: a program that took itself for the guard's interpreter finds it.
MARKER = b"MUONTRAP_GUARD"
# A packet over about 200 KB is EMSGSIZE (net.core.wmem_default); SCM_MAX_FD is 253.
PACKET_BYTES = 128 * 1024
PACKET_FDS = 250
# Above what `execve` takes (a quarter of the stack limit, 6 MB at most by default).
RECORD_BYTES = 64 * 1024 * 1024
_HEAD = struct.Struct("<II")


class Record:
    """A record; its annotations, in order, are its fields on the wire."""

    __slots__ = ()
    FIELDS: ClassVar[tuple[tuple[str, str], ...]] = ()

    def __init__(self, **values: object) -> None:
        if len(values) != len(self.FIELDS):
            raise TypeError(f"{type(self).__name__} has the fields {self.FIELDS}, not {', '.join(values)}")
        for name, value in values.items():
            setattr(self, name, value)  # no other name than those in __slots__ can be

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.encode())

    def encode(self) -> bytes:
        """Return the record's bytes."""
        number = _KINDS.index(type(self))
        scalars: list[object] = [number]
        bodies = [b""]
        for name, kind in self.FIELDS:
            value = getattr(self, name)
            if kind in _SCALARS:
                scalars.append(value)
            else:
                bodies.append(_ENCODERS[kind](value))
                scalars.append(len(bodies[-1]))
        bodies[0] = _HEADS[number].pack(*scalars)
        return b"".join(bodies)


class Hello(Record):
    """The guard is ready; with it come pidfds of the watch and of the guard."""

    __slots__ = ("guard_id", "guard_pid", "tag_width", "watch_pid")
    FIELDS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("guard_id", "int"),
        ("guard_pid", "int"),
        ("watch_pid", "int"),
        ("tag_width", "int"),
    )
    guard_id: int
    guard_pid: int
    watch_pid: int
    tag_width: int  # 0: the limit can't be used here


class Launch(Record):
    """Start a command."""

    __slots__ = (
        "announce",
        "argv",
        "candidates",
        "cgroup",
        "delay_to_sigkill",
        "env",
        "inherits",
        "kill_mode",
        "spawn",
        "steps",
        "stop_signal",
        "targets",
        "thread",
    )
    FIELDS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("spawn", "int"),
        ("announce", "int"),
        ("thread", "int"),
        ("inherits", "int"),
        ("kill_mode", "bytes"),
        ("delay_to_sigkill", "float"),
        ("stop_signal", "int"),
        ("candidates", "strings"),
        ("argv", "strings"),
        ("env", "mapping"),
        ("steps", "steps"),
        ("targets", "ints"),
        ("cgroup", "bytes"),
    )
    spawn: int
    announce: int  # whether the host wants to hear `Started`
    thread: int  # of the host, that asks: privileges and umask are a thread's own
    inherits: int  # whether `env` is what is added to the environment that the guard was started with
    kill_mode: bytes
    delay_to_sigkill: float
    stop_signal: int
    candidates: list[bytes]
    argv: list[bytes]
    env: dict[bytes, bytes]
    steps: list[Step]
    targets: list[int]
    cgroup: bytes  # a `Placement`, or none


class Placement(Record):
    """The cgroup of a command; all are absolute paths."""

    __slots__ = ("directories", "oom_group", "readings", "settings")
    FIELDS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("directories", "strings"),
        ("settings", "strings"),
        ("readings", "strings"),
        ("oom_group", "bytes"),
    )
    directories: list[bytes]  # one in each hierarchy; "+" before one that has to be new, "=" before another
    settings: list[bytes]  # four for each: file, value, other file if the kernel lacks that, its value
    readings: list[bytes]  # files to be read at the end
    oom_group: bytes  # directory of v1, of which an OOM kill has to take the whole command


class Readings(Record):
    """Content of a cgroup's files, where there was a cgroup before, and at the end."""

    __slots__ = ("after", "before")
    FIELDS: ClassVar[tuple[tuple[str, str], ...]] = (("before", "mapping"), ("after", "mapping"))
    before: dict[bytes, bytes]
    after: dict[bytes, bytes]


class Ping(Record):
    """The host has heard nothing for long: is the guard stuck, or the launch just slow?"""

    __slots__ = ()


class Pong(Record):
    """The guard is not stuck."""

    __slots__ = ()


class Started(Record):
    """`execve` has succeeded; with it comes a pidfd."""

    __slots__ = ("pid",)
    FIELDS: ClassVar[tuple[tuple[str, str], ...]] = (("pid", "int"),)
    pid: int


class Failed(Record):
    """The command did not run; nothing of it is left."""

    __slots__ = ("errno", "path", "step")
    FIELDS: ClassVar[tuple[tuple[str, str], ...]] = (("errno", "int"), ("step", "bytes"), ("path", "bytes"))
    errno: int
    step: bytes
    path: bytes


class Stop(Record):
    """End the command; a negative delay means its own `delay_to_sigkill`."""

    __slots__ = ("delay", "reason")
    FIELDS: ClassVar[tuple[tuple[str, str], ...]] = (("delay", "float"), ("reason", "bytes"))
    delay: float
    reason: bytes


class Signal(Record):
    """Send a signal to the command's process group, whose leader the guard has not reaped."""

    __slots__ = ("signum",)
    FIELDS: ClassVar[tuple[tuple[str, str], ...]] = (("signum", "int"),)
    signum: int


class Suspended(Record):
    """The main process was stopped by a signal."""

    __slots__ = ("signum",)
    FIELDS: ClassVar[tuple[tuple[str, str], ...]] = (("signum", "int"),)
    signum: int


class Ended(Record):
    """Nothing of the command is left, but for the pids listed.

    `status` is that of waitpid(2), -1 when the main process has not ended.  `sent` has three
    numbers for each signal: number, seconds since the launch, number of processes.
    """

    __slots__ = ("cgroup", "not_permitted", "reason", "sent", "status", "unkillable", "usage", "wall")
    FIELDS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("status", "int"),
        ("reason", "bytes"),
        ("wall", "float"),
        ("usage", "floats"),
        ("sent", "floats"),
        ("not_permitted", "ints"),
        ("unkillable", "ints"),
        ("cgroup", "bytes"),
    )
    status: int
    reason: bytes
    wall: float
    usage: list[float]
    sent: list[float]
    not_permitted: list[int]
    unkillable: list[int]
    cgroup: bytes  # `Readings`, or none


_KINDS: tuple[type[Record], ...] = (
    Hello, Launch, Placement, Ping, Pong, Started, Failed, Stop, Signal, Suspended, Ended, Readings,
)  # fmt: skip


# A record's head: its kind, and for each field the number itself or the length of its body, in bytes.
_SCALARS = {"int": "q", "float": "d"}
_HEADS = [
    struct.Struct("<B" + "".join(_SCALARS.get(field, "Q") for _, field in kind.FIELDS)) for kind in _KINDS
]


def decode(data: bytes) -> Record:
    """Return the record that `data` is, whole; `ProtocolError` for anything else."""
    if not data or data[0] >= len(_KINDS):
        raise ProtocolError(f"no record of kind {data[:1]!r}")
    kind, head = _KINDS[data[0]], _HEADS[data[0]]
    if len(data) < head.size:
        raise ProtocolError(f"{len(data)} bytes are no {kind.__name__}")
    record = object.__new__(kind)
    at = head.size
    name = ""
    try:
        for (name, field), value in zip(kind.FIELDS, head.unpack_from(data)[1:], strict=True):
            if field not in _SCALARS:
                start, at = at, at + value
                value = _DECODERS[field](data[start:at])  # noqa: PLW2901
            setattr(record, name, value)
    except (struct.error, ValueError) as error:
        raise ProtocolError(f"{name} of a {kind.__name__} is malformed: {error}") from error
    if at != len(data):
        raise ProtocolError(f"a {kind.__name__} of {at} bytes came in {len(data)}")
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
        self._data = bytearray()
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
        return bytes(self._data) if whole else None


def _strings(body: bytes) -> list[bytes]:
    *strings, rest = body.split(b"\0")
    if rest:
        raise ValueError("a string does not end in NUL")
    return strings


def _mapping(body: bytes) -> dict[bytes, bytes]:
    strings = _strings(body)
    return dict(zip(strings[::2], strings[1::2], strict=True))


def _pack(code: str, values: Sequence[float]) -> bytes:
    return struct.pack(f"<{len(values)}{code}", *values) if values else b""


def _unpack(code: str, body: bytes) -> tuple[float, ...]:
    return struct.unpack(f"<{len(body) // 8}{code}", body) if body else ()


def _pack_steps(steps: Sequence[Step]) -> bytes:
    """Each step: the length of its name, the number of its numbers, both."""
    return b"".join(
        _STEP.pack(len(name), len(numbers)) + name.encode("ascii") + _pack("q", numbers)
        for name, numbers in steps
    )


def _unpack_steps(body: bytes) -> list[Step]:
    steps = []
    at = 0
    while at < len(body):
        length, count = _STEP.unpack_from(body, at)
        start = at + _STEP.size
        at = start + length + 8 * count
        numbers = body[start + length : at]
        if at > len(body):
            raise ValueError("a step is cut short")
        name = body[start : start + length].decode("ascii")
        steps.append((name, tuple(int(number) for number in _unpack("q", numbers))))
    return steps


_STEP = struct.Struct("<II")
# None of the strings has a NUL: execve(2) has no other end for them either.
_ENCODERS: dict[str, Callable[..., bytes]] = {
    "bytes": bytes,
    "ints": lambda values: _pack("q", values),
    "floats": lambda values: _pack("d", values),
    "strings": lambda values: b"".join([value + b"\0" for value in values]),
    "mapping": lambda values: b"".join([b"%b\0%b\0" % item for item in values.items()]),
    "steps": _pack_steps,
}
_DECODERS: dict[str, Callable[[bytes], object]] = {
    "bytes": bytes,
    "ints": lambda body: list(_unpack("q", body)),
    "floats": lambda body: list(_unpack("d", body)),
    "strings": _strings,
    "mapping": _mapping,
    "steps": _unpack_steps,
}
