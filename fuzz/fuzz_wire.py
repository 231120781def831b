"""Any bytes decode to a record that survives a round trip, or raise ProtocolError; whole and in packets."""

from __future__ import annotations

import harness

from muontrap.errors import ProtocolError
from muontrap.logic import wire


def target(data: bytes) -> None:
    """Decode; and feed the same bytes to an assembly as packets, each led by its size."""
    try:
        record = wire.decode(data)
    except ProtocolError:
        pass
    else:
        assert wire.decode(record.encode()) == record
    assembly, at = wire.Assembly(), 0
    try:
        while at < len(data):
            size = data[at]
            whole = assembly.feed(data[at + 1 : at + 1 + size], [9] * (size % 3))
            at += 1 + size
            if whole is not None:
                return
    except ProtocolError:
        pass


def corpus() -> list[bytes]:
    """A record of each kind, with and without content; and a packet."""
    full = {
        "int": 2**40,
        "float": 0.5,
        "bytes": b"mixed",
        "Sequence[int]": [1, -1],
        "Sequence[float]": [1.0],
        "Sequence[bytes]": [b"a", b""],
        "Mapping[bytes, bytes]": {b"A": b"b"},
        "Sequence[Step]": [("join", ()), ("rlimit", (7, 1, -1))],
    }
    empty = {"int": 0, "float": 0.0, "bytes": b"", "Mapping[bytes, bytes]": {}}
    records = [
        kind(**{name: values.get(field, []) for name, field in kind.FIELDS.items()})
        for values in (full, empty)
        for kind in wire.Record.__subclasses__()
    ]
    (packet, _, _), *_ = wire.packets(b"payload", 2)
    return [*(record.encode() for record in records), bytes((len(packet),)) + packet]


if __name__ == "__main__":
    harness.run(target, corpus())
