"""The guard's protocol: records to bytes and back, and their division into packets.

A record is a kind and its fields, each length-checked.  Nothing else than numbers and byte strings
travels: no pickle, no evaluation.  Any bytes decode to a record or raise `ProtocolError`.

The guard opens the request socket with `Hello`.  Over it the host sends a `Launch` record, with
descriptors: of a channel, of the directory, and one for each of `targets`.  Over the channel goes all
that follows about this command: the guard says `Started` or `Failed`, `Suspended`, `Ended`; the host
`Stop`, `Signal`, and `Ping` for a `Pong`.  Where the host wanted no `Started` and has said nothing
itself, the channel is idle after `Ended`, and may have the next `Launch`, with its other descriptors.
"""

from __future__ import annotations

import struct
from itertools import compress, repeat

from muontrap.errors import ProtocolError
from muontrap.logic.steps import NAMES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any, ClassVar

    from muontrap.logic.steps import Step

    Encoder = Callable[[Any], bytes]
    Decoder = Callable[[bytes], Any]

# In the guard's environment alone: a program that took itself for the guard's interpreter finds it.
MARKER = b"MUONTRAP_GUARD"
# A packet over about 200 KB is EMSGSIZE (net.core.wmem_default); SCM_MAX_FD is 253.
PACKET_BYTES = 128 * 1024
PACKET_FDS = 250
# Above what `execve` takes (a quarter of the stack limit, 6 MB at most by default).
RECORD_BYTES = 64 * 1024 * 1024
_HEAD = struct.Struct("<II")


def _pack(values: Sequence[int]) -> bytes:
    return struct.pack(f"{len(values)}q", *values)


def _strings(body: bytes) -> list[bytes]:
    *strings, rest = body.split(b"\0")
    if rest:
        raise ValueError("a string does not end in NUL")
    return strings


def _mapping(body: bytes) -> dict[bytes, bytes]:
    strings = _strings(body)
    return dict(zip(strings[::2], strings[1::2], strict=True))


def _pack_steps(steps: Sequence[Step]) -> bytes:
    """Each step: the number of its name, the count of its own numbers, and these."""
    numbers: list[int] = []
    for name, own in steps:
        numbers += NAMES.index(name), len(own), *own
    return _pack(numbers)


def _unpack_steps(body: bytes) -> list[Step]:
    numbers = memoryview(body).cast("q").tolist()
    steps: list[Step] = []
    at = 0
    while at < len(numbers):
        name, count = numbers[at : at + 2]
        start, at = at + 2, at + 2 + count
        if not 0 <= name < len(NAMES) or not start <= at <= len(numbers):
            raise ValueError("no such step, or one that is cut short")
        steps.append((NAMES[name], tuple(numbers[start:at])))
    return steps


# A record's fields by their types: what fits the head, as it is ...
_SCALARS = {"int": "q", "float": "d"}
# ... and what does not: to bytes, back, and what no bytes are, which most of them are most of the time.
# No string has a NUL: execve(2) has no other end for them either.
_BODIES: dict[str, tuple[Encoder, Decoder, object]] = {
    "bytes": (bytes, bytes, b""),
    "Sequence[int]": (_pack, lambda body: memoryview(body).cast("q").tolist(), ()),
    "Sequence[float]": (
        lambda values: struct.pack(f"{len(values)}d", *values),
        lambda body: memoryview(body).cast("d").tolist(),
        (),
    ),
    "Sequence[bytes]": (lambda strings: b"\0".join([*strings, b""]), _strings, ()),
    "Mapping[bytes, bytes]": (
        lambda pairs: b"".join([b"%b\0%b\0" % pair for pair in pairs.items()]),
        _mapping,
        {},
    ),
    "Sequence[Step]": (_pack_steps, _unpack_steps, ()),
}
_KINDS: list[type[Record]] = []


class Record:
    """A record; its annotations are its fields on the wire, of the types in `_SCALARS` and `_BODIES`."""

    FIELDS: ClassVar[dict[str, str]]
    _number: ClassVar[int]
    _pack: ClassVar[Callable[..., bytes]]
    _unpack: ClassVar[Callable[[bytes], tuple[Any, ...]]]
    _size: ClassVar[int]
    _scalars: ClassVar[list[str]]
    _bodies: ClassVar[list[str]]
    _encoders: ClassVar[list[Encoder]]
    _decoders: ClassVar[list[tuple[str, Decoder]]]

    def __init_subclass__(cls) -> None:
        # A head: the kind, each number, and the length of each body in bytes; then these bodies.
        cls.FIELDS = cls.__annotations__
        cls._scalars = [name for name, kind in cls.FIELDS.items() if kind in _SCALARS]
        bodies = {name: _BODIES[kind] for name, kind in cls.FIELDS.items() if kind in _BODIES}
        cls._bodies = list(bodies)
        cls._encoders = [encode for encode, _, _ in bodies.values()]
        cls._decoders = [(name, decode) for name, (_, decode, _) in bodies.items()]
        for name, (_, _, empty) in bodies.items():
            setattr(cls, name, empty)  # what does not travel
        codes = "".join([_SCALARS[cls.FIELDS[name]] for name in cls._scalars]) + "Q" * len(bodies)
        cls._pack = struct.Struct("<B" + codes).pack
        cls._unpack = struct.Struct("<x" + codes).unpack_from
        cls._size = struct.calcsize("<B" + codes)
        cls._number = len(_KINDS)
        _KINDS.append(cls)

    def __init__(self, **values: object) -> None:
        if values.keys() != self.FIELDS.keys():
            raise TypeError(f"{type(self).__name__} has the fields {', '.join(self.FIELDS)}, not {values}")
        self.__dict__ = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.encode())

    def encode(self) -> bytes:
        """Return the record's bytes."""
        scalars = map(self.__dict__.__getitem__, self._scalars)
        given = list(map(getattr, repeat(self), self._bodies))
        if not any(given):
            return self._pack(self._number, *scalars, *map(len, given))
        bodies = [encode(body) if body else b"" for encode, body in zip(self._encoders, given, strict=True)]
        return self._pack(self._number, *scalars, *map(len, bodies)) + b"".join(bodies)


class Hello(Record):
    """The guard is ready; with it come pidfds of the watch and of the guard."""

    guard_id: int
    guard_pid: int
    watch_pid: int
    tag_width: int  # 0: the limit can't be used here


class Launch(Record):
    """Start a command."""

    spawn: int
    announce: int  # whether the host wants to hear `Started`
    thread: int  # of the host, that asks: privileges and umask are a thread's own
    inherits: int  # whether `env` is what is added to the environment that the guard was started with
    session: int  # whether it gets a session of its own, or just a process group
    umask: int  # -1: as that thread of the host has it
    kill_mode: int  # which of `KILL_MODES`
    delay_to_sigkill: float
    stop_signal: int
    candidates: Sequence[bytes]  # none: `argv[0]` is the one
    argv: Sequence[bytes]
    env: Mapping[bytes, bytes]
    steps: Sequence[Step]
    targets: Sequence[int]  # none: 0, 1, 2 and so on, for as many descriptors as there are
    cgroup: bytes  # a `Placement`, or none


class Placement(Record):
    """The cgroup of a command; all are absolute paths."""

    directories: Sequence[bytes]  # one in each hierarchy; "+" before a name that has to be new, else "="
    settings: Sequence[bytes]  # four for each: file, value, other file if the kernel lacks that, its value
    readings: Sequence[bytes]  # files to be read at the end
    oom_group: bytes  # directory of v1, of which an OOM kill has to take the whole command


class Readings(Record):
    """Content of a cgroup's files, where there was a cgroup before, and at the end."""

    before: Mapping[bytes, bytes]
    after: Mapping[bytes, bytes]


class Ping(Record):
    """The host has heard nothing for long: is the guard stuck, or the launch just slow?"""


class Pong(Record):
    """The guard is not stuck."""


class Started(Record):
    """`execve` has succeeded; with it comes a pidfd."""

    pid: int


class Failed(Record):
    """The command did not run; nothing of it is left."""

    errno: int
    step: bytes
    path: bytes


class Stop(Record):
    """End the command; a negative delay means its own `delay_to_sigkill`."""

    delay: float
    reason: bytes


class Signal(Record):
    """Send a signal to the command's process group, whose leader the guard has not reaped."""

    signum: int


class Suspended(Record):
    """The main process was stopped by a signal."""

    signum: int


class Ended(Record):
    """Nothing of the command is left, but for the pids listed.

    `status` is that of waitpid(2), -1 when the main process has not ended.  `sent` has three
    numbers for each signal: number, seconds since the launch, number of processes.
    """

    status: int
    reason: bytes
    wall: float
    user: float
    system: float
    max_rss: int  # in KiB, -1 where it is the guard's own
    minor_faults: int
    major_faults: int
    blocks_read: int
    blocks_written: int
    voluntary_switches: int
    involuntary_switches: int
    sent: Sequence[float]
    not_permitted: Sequence[int]
    unkillable: Sequence[int]
    cgroup: bytes  # `Readings`, or none


def decode(data: bytes) -> Record:
    """Return the record that `data` is, whole; `ProtocolError` for anything else."""
    if not data or data[0] >= len(_KINDS):
        raise ProtocolError(f"no record of kind {data[:1]!r}")
    kind = _KINDS[data[0]]
    record = object.__new__(kind)
    try:
        numbers = kind._unpack(data)
        record.__dict__ = values = dict(zip(kind._scalars, numbers, strict=False))
        sizes = numbers[len(values) :]
        at = kind._size
        if any(sizes):
            present = zip(compress(kind._decoders, sizes), filter(None, sizes), strict=True)
            for (name, decode), size in present:
                values[name] = decode(data[at : at + size])
                at += size
        if at != len(data):
            raise ValueError(f"{len(data)} bytes, not {at}")
    except (struct.error, TypeError, ValueError) as error:
        raise ProtocolError(f"a {kind.__name__} is malformed: {error}") from error
    return record


def packets(payload: bytes, fd_count: int) -> list[tuple[bytes, int, int]]:
    """Divide a record into packets: (bytes, first descriptor, descriptor after the last).

    The first begins with the sizes of the whole; the rest comes over the channel.
    """
    data = _HEAD.pack(len(payload), fd_count) + payload
    if len(data) <= PACKET_BYTES and fd_count <= PACKET_FDS:
        return [(data, 0, fd_count)]
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

    _pieces: tuple[bytes, ...] = ()
    _missing = 0
    _fd_count = 0
    fds: Sequence[int] = ()

    def feed(self, data: bytes, fds: Sequence[int]) -> bytes | None:
        """Take a packet; return the record's bytes when all is there."""
        self.fds = (*self.fds, *fds)
        if not self._pieces:
            if len(data) < _HEAD.size:
                raise ProtocolError(f"a request of {len(data)} bytes")
            self._missing, self._fd_count = _HEAD.unpack_from(data)
            data = data[_HEAD.size :]
            if len(data) == self._missing and len(self.fds) == self._fd_count:
                return data  # as nearly all have it
        elif not self._missing:
            data = b""  # there for its descriptors alone
        self._pieces = (*self._pieces, data)
        self._missing = missing = self._missing - len(data)
        fds_missing = self._fd_count - len(self.fds)
        if not 0 <= missing <= RECORD_BYTES or fds_missing < 0:
            raise ProtocolError(f"a request that lacks {missing} bytes and {fds_missing} descriptors")
        return None if missing or fds_missing else b"".join(self._pieces)
