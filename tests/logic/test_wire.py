"""The codec: round trips, and any bytes whatever give a record or `ProtocolError`."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muontrap.errors import ProtocolError
from muontrap.logic import wire
from muontrap.logic.steps import NAMES
from muontrap.logic.wire import PACKET_BYTES, PACKET_FDS, Assembly, Launch, Readings, Record, decode, packets

INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats()
STRINGS = st.binary().map(lambda text: text.replace(b"\0", b""))
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "int": INTS,
    "float": FLOATS,
    "bytes": st.binary(),
    "Sequence[int]": st.lists(INTS, max_size=20),
    "Sequence[float]": st.lists(FLOATS, max_size=20),
    "Sequence[bytes]": st.lists(STRINGS, max_size=20),
    "Mapping[bytes, bytes]": st.dictionaries(STRINGS, STRINGS, max_size=20),
    "Sequence[Step]": st.lists(
        st.tuples(st.sampled_from(NAMES), st.lists(INTS, max_size=5).map(tuple)),
        max_size=8,
    ),
}
KINDS: list[type[Record]] = sorted(Record.__subclasses__(), key=lambda kind: kind.__name__)


def records_of(kind: type[Record]) -> st.SearchStrategy[Record]:
    return st.builds(kind, **{name: FIELDS[field] for name, field in kind.FIELDS.items()})


RECORDS = st.sampled_from(KINDS).flatmap(records_of)


def same(one: Any, other: Any) -> bool:
    """Equality where NaN is itself, and 0.0 is not -0.0."""
    if isinstance(one, float):
        return isinstance(other, float) and (
            (one == other and math.copysign(1, one) == math.copysign(1, other))
            or (one != one and other != other)
        )
    if isinstance(one, (list, tuple)):
        return isinstance(other, (list, tuple)) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and bool(one == other)


def try_decode(data: bytes) -> Record | None:
    """Decode; nothing but `ProtocolError` may be raised, and what is a record is one for good."""
    try:
        record = decode(data)
    except ProtocolError:
        return None
    again = record.encode()
    assert decode(again) == record
    # A name that comes twice in a mapping is the only thing that may get lost.
    assert again == data or (isinstance(record, (Launch, Readings)) and len(again) < len(data))
    return record


def test_every_record_has_a_number() -> None:
    assert sorted(wire._KINDS, key=lambda kind: kind.__name__) == KINDS
    assert all(field in FIELDS for kind in KINDS for field in kind.FIELDS.values())


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_round_trip(kind: type[Record], data: st.DataObject) -> None:
    record = data.draw(records_of(kind))
    again = decode(record.encode())
    assert type(again) is kind
    assert again == record
    for name in kind.FIELDS:
        assert same(getattr(record, name), getattr(again, name)), name


@given(one=RECORDS, other=RECORDS)
def test_equality_is_that_of_all_fields(one: Record, other: Record) -> None:
    fields = [[getattr(record, name) for name in record.FIELDS] for record in (one, other)]
    assert (one == other) == (type(one) is type(other) and same(*fields))


@pytest.mark.parametrize("kind", KINDS)
def test_fields_are_neither_missing_nor_unknown(kind: type[Record]) -> None:
    values = dict.fromkeys(kind.FIELDS, 0)
    with pytest.raises(TypeError, match="surplus"):
        kind(**values, surplus=1)
    for name in values:
        others = {other: 0 for other in values if other != name}
        with pytest.raises(TypeError):
            kind(**others)
        with pytest.raises(TypeError, match="surplus"):
            kind(**others, surplus=1)


@given(data=st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    try_decode(data)


@given(kind=st.integers(0, len(KINDS)), words=st.lists(st.integers(-3, 40) | INTS, max_size=30))
def test_any_small_numbers(kind: int, words: list[int]) -> None:
    """Counts and lengths that nearly fit are likelier here than in any bytes."""
    try_decode(bytes((kind,)) + b"".join(word.to_bytes(8, "little", signed=True) for word in words))


@given(record=RECORDS, surplus=st.binary(min_size=1, max_size=20))
def test_extended_is_an_error(record: Record, surplus: bytes) -> None:
    assert try_decode(record.encode() + surplus) is None


@given(record=RECORDS, data=st.data())
def test_truncated_is_an_error(record: Record, data: st.DataObject) -> None:
    whole = record.encode()
    assert try_decode(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@given(record=RECORDS, data=st.data())
def test_mutated_is_a_record_or_an_error(record: Record, data: st.DataObject) -> None:
    whole = bytearray(record.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try_decode(bytes(whole))


def numbers(*values: int) -> bytes:
    return b"".join(value.to_bytes(8, "little", signed=True) for value in values)


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("steps", numbers(0)),
        ("steps", numbers(0, 1)),
        ("steps", numbers(0, -1)),
        ("steps", numbers(0, -2)),
        ("steps", numbers(-1, 0)),
        ("steps", numbers(len(NAMES), 0)),
        ("steps", numbers(0, 0)[:-1]),
        ("targets", bytes(7)),
        ("argv", b"no NUL"),
        ("env", b"NAME\0"),
        ("env", b"NAME\0value"),
    ],
)
def test_a_malformed_field_is_an_error(name: str, body: bytes) -> None:
    empty = {"int": 0, "float": 0.0, "bytes": b"", "Mapping[bytes, bytes]": {}}
    launch = Launch(**{field: empty.get(kind, []) for field, kind in Launch.FIELDS.items()})
    data = launch.encode()
    scalars = [field for field, kind in Launch.FIELDS.items() if kind in ("int", "float")]
    bodies = [field for field in Launch.FIELDS if field not in scalars]
    at = 1 + 8 * (scalars + bodies).index(name)
    with pytest.raises(ProtocolError, match="a Launch is malformed"):
        decode(data[:at] + len(body).to_bytes(8, "little") + data[at + 8 :] + body)


def assemble(parts: list[tuple[bytes, int, int]], fds: list[int]) -> tuple[bytes | None, Assembly]:
    """Feed packets; only the last may complete the record."""
    assembly, whole = Assembly(), None
    for data, first, after in parts:
        assert whole is None
        whole = assembly.feed(data, fds[first:after])
    return whole, assembly


SIZES = st.one_of(
    st.integers(0, 3 * PACKET_BYTES),
    st.integers(0, 20),
    st.builds(
        lambda count, more: max(0, count * PACKET_BYTES + more),
        st.integers(1, 4),
        st.integers(-10, 10),  # the head has 8 bytes: exact multiples, one more, one less
    ),
)


@given(size=SIZES, fill=st.binary(min_size=1, max_size=7), fd_count=st.integers(0, 800))
def test_packets_and_back(size: int, fill: bytes, fd_count: int) -> None:
    payload = (fill * (size // len(fill) + 1))[:size]
    fds = list(range(100, 100 + fd_count))
    parts = packets(payload, fd_count)
    assert all(0 < len(data) <= PACKET_BYTES for data, _, _ in parts)
    assert all(after - first <= PACKET_FDS for _, first, after in parts)
    whole, assembly = assemble(parts, fds)
    assert whole == payload
    assert list(assembly.fds) == fds


@given(fd_count=st.integers(0, 800), size=SIZES, last=st.booleans())
def test_what_is_missing_is_waited_for(fd_count: int, size: int, last: bool) -> None:
    parts = packets(b"x" * size, fd_count)
    if len(parts) > 1:
        part = parts[:-1] if last else parts[:1]
        assert assemble(part, list(range(fd_count)))[0] is None


@given(
    first=st.tuples(st.integers(0, 40), st.integers(0, 5)) | st.tuples(st.integers(0, 2**32 - 1)),
    parts=st.lists(
        st.tuples(st.binary(max_size=30), st.lists(st.just(9), max_size=4)), min_size=1, max_size=6
    ),
)
def test_garbage_packets(first: tuple[int, ...], parts: list[tuple[bytes, list[int]]]) -> None:
    """`ProtocolError` or a record of the announced sizes; every descriptor is kept, to be closed."""
    head = b"".join(number.to_bytes(4, "little") for number in first)
    assembly, given_fds = Assembly(), 0
    for index, (data, fds) in enumerate(parts):
        given_fds += len(fds)
        try:
            whole = assembly.feed(head + data if index == 0 else data, fds)
        except ProtocolError:
            assert len(assembly.fds) == given_fds
            return
        assert len(assembly.fds) == given_fds
        if whole is not None:
            assert (len(whole), given_fds) == first if len(first) == 2 else len(whole) == first[0]
            return


def test_more_than_was_announced_is_an_error() -> None:
    size, fd_count = 10, 2
    (data, _, _), *_ = packets(b"x" * size, fd_count)
    for surplus, fds in ((b"y", [1, 2]), (b"", [1, 2, 3])):
        with pytest.raises(ProtocolError):
            Assembly().feed(data + surplus, fds)


def test_a_record_is_not_collected_without_end() -> None:
    assert Assembly().feed(wire.RECORD_BYTES.to_bytes(4, "little") + bytes(4), []) is None
    with pytest.raises(ProtocolError):
        Assembly().feed((wire.RECORD_BYTES + 1).to_bytes(4, "little") + bytes(4), [])
