"""The splitters against `splitlines` of the whole, for any bytes in any chunks."""

from __future__ import annotations

import codecs
from collections.abc import Iterable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from muontrap.logic.command import MAX_LINE
from muontrap.logic.lines import Cut, CutBytes, CutText, LineSplitter, TextSplitter

# Ends, characters of two to four bytes whole and broken, what only `str` takes for an end, and shifts.
PARTS = st.sampled_from(
    (
        *(
            b"\n",
            b"\r",
            b"\r\n",
            b"a",
            b"bcd",
            "é€😀".encode(),
            b"\xe2\x82",
            b"\xf0\x9f",
            b"\xed\xa0",
            b"\xff",
        ),
        *(char.encode() for char in "\x00\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\ufeff"),
        *(b"\x82\xa0", b"\x81", b"~{", b"+AOk-", b"\\"),
    )
)
DATA = st.lists(PARTS | st.binary(max_size=3), max_size=30).map(b"".join)
CHUNKS = st.lists(DATA, max_size=8)
LIMITS = st.integers(1, 12) | st.just(MAX_LINE)
ENCODINGS = (
    "utf-8",
    "UTF8",
    "ascii",
    "latin-1",
    "cp1252",
    "utf-8-sig",
    "shift_jis",
    "gb18030",
    "hz",
    "utf-7",
)
ASCII_BASED = ("utf-8", "UTF8", "ascii", "latin-1", "cp1252")
ERRORS = ("replace", "ignore", "backslashreplace", "surrogateescape")


def split(splitter: LineSplitter, chunks: Iterable[bytes]) -> list[bytes]:
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.finish()


def split_text(splitter: TextSplitter, chunks: Iterable[bytes]) -> list[str]:
    return [line for chunk in chunks for line in splitter.feed(chunk)] + splitter.finish()


def each_byte(data: bytes) -> list[bytes]:
    return [bytes((byte,)) for byte in data]


@given(chunks=CHUNKS)
def test_lines_are_those_of_the_whole(chunks: list[bytes]) -> None:
    data = b"".join(chunks)
    for cut in (chunks, [data], each_byte(data)):
        for keepends in (False, True):
            lines = split(LineSplitter(MAX_LINE, keepends=keepends), cut)
            assert lines == data.splitlines(keepends)
            assert {type(line) for line in lines} <= {bytes}


@given(chunks=CHUNKS, limit=LIMITS)
def test_pieces(chunks: list[bytes], limit: int) -> None:
    """Each but the last of a line is `limit` bytes and marked; together they are the line."""
    data = b"".join(chunks)
    expected = []
    for line in data.splitlines():
        starts = range(0, len(line) or 1, limit)
        expected += [(line[at : at + limit], at != starts[-1]) for at in starts]
    for cut in (chunks, [data], each_byte(data)):
        pieces = split(LineSplitter(limit), cut)
        assert [(piece, isinstance(piece, CutBytes)) for piece in pieces] == expected
        whole = split(LineSplitter(limit, keepends=True), cut)
        assert [(piece.rstrip(b"\r\n"), isinstance(piece, CutBytes)) for piece in whole] == expected
        assert b"".join(whole) == data


@given(chunks=CHUNKS, limit=LIMITS)
def test_what_is_kept_is_bounded_and_nothing_waits_longer_than_it_must(
    chunks: list[bytes], limit: int
) -> None:
    splitters = LineSplitter(limit), TextSplitter(limit)
    with_ends = LineSplitter(limit, keepends=True), TextSplitter(limit, keepends=True)
    lines: list[bytes] = []
    whole_lines: list[bytes] = []
    data = b""
    for chunk in chunks:
        lines += splitters[0].feed(chunk)
        splitters[1].feed(chunk)
        whole_lines += with_ends[0].feed(chunk)
        list(with_ends[1].feed(chunk))
        data += chunk
        assert len(splitters[0]._tail) <= limit
        assert splitters[0]._tail == splitters[1]._tail
        assert with_ends[0]._tail == with_ends[1]._tail
        assert len(with_ends[0]._tail.removesuffix(b"\r")) <= limit
        ended = [line for line in data.splitlines(True) if line.endswith((b"\r", b"\n"))]
        assert sum(not isinstance(line, Cut) for line in lines) == len(ended)
        held = data.endswith(b"\r")  # a `\n` may follow
        assert sum(not isinstance(line, Cut) for line in whole_lines) == len(ended) - held


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(chunks=CHUNKS, limit=LIMITS, errors=st.sampled_from(ERRORS))
@example(chunks=["é€😀".encode()], limit=1, errors="replace")
@example(chunks=[b"\xe2\x82\nok\n"], limit=MAX_LINE, errors="replace")
def test_any_bytes_are_text(encoding: str, chunks: list[bytes], limit: int, errors: str) -> None:
    """The same text as line by line, in any chunks, also joined from pieces; marked where the bytes are."""
    if errors == "surrogateescape" and encoding not in ASCII_BASED:
        errors = "replace"  # the handler looks at what follows a broken character, or refuses it
    data = b"".join(chunks)
    expected = [line.decode(encoding, errors) for line in data.splitlines()]
    marks = [isinstance(piece, Cut) for piece in split(LineSplitter(limit), [data])]
    for cut in (chunks, [data], each_byte(data)):
        pieces = split_text(TextSplitter(limit, encoding, errors), cut)
        assert [isinstance(piece, CutText) for piece in pieces] == marks
        joined = [""]
        for piece in pieces:
            joined[-1] += piece
            if not isinstance(piece, Cut):
                joined.append("")
        assert joined == [*expected, ""]


@pytest.mark.parametrize("encoding", ENCODINGS)
@given(chunks=CHUNKS, limit=LIMITS, errors=st.sampled_from(ERRORS))
@example(chunks=[b"\xe2\x82\nok\n"], limit=MAX_LINE, errors="replace")
@example(chunks=[b"~\n{\n", b"\r"], limit=MAX_LINE, errors="replace")
def test_text_with_ends_is_text_and_ends(encoding: str, chunks: list[bytes], limit: int, errors: str) -> None:
    if errors == "surrogateescape" and encoding not in ASCII_BASED:
        errors = "replace"
    data = b"".join(chunks)
    without = split_text(TextSplitter(limit, encoding, errors), [data])
    ends = [
        piece[len(piece.rstrip(b"\r\n")) :] for piece in split(LineSplitter(limit, keepends=True), [data])
    ]
    expected = [
        (text + end.decode(), isinstance(text, CutText)) for text, end in zip(without, ends, strict=True)
    ]
    for cut in (chunks, [data], each_byte(data)):
        pieces = split_text(TextSplitter(limit, encoding, errors, keepends=True), cut)
        assert [(piece, isinstance(piece, CutText)) for piece in pieces] == expected


@given(data=DATA)
def test_a_character_is_not_broken(data: bytes) -> None:
    text = data.decode("utf-8", "ignore").replace("\r", "").replace("\n", "")
    pieces = split_text(TextSplitter(3), [text.encode()])
    assert "".join(pieces) == text
    assert all(len(piece.encode()) < 3 + 4 for piece in pieces)


def test_a_shift_ends_with_its_line() -> None:
    """Not so with `IncrementalDecoder.reset` of this codec."""
    lines = split_text(TextSplitter(2, "iso2022_jp"), [b"}@\x1b(J\\\n\\"])
    assert "".join(lines) == "}@\u00a5\\"


def test_a_return_ends_the_line_at_once() -> None:
    """A progress bar is seen when it is written, and its end of line is not seen twice."""
    splitter = LineSplitter(MAX_LINE)
    assert splitter.feed(b"50 %\r") == [b"50 %"]
    assert splitter.feed(b"") == []
    assert splitter.feed(b"\n") == []
    assert splitter.feed(b"\n") == [b""]
    assert splitter.feed(b"60 %\r") == [b"60 %"]
    assert splitter.feed(b"70 %\r") == [b"70 %"]
    assert splitter.finish() == []


def test_a_return_is_held_back_with_ends() -> None:
    """Until it is known whether the end is `\\r` or `\\r\\n`; else nothing is."""
    splitter = LineSplitter(3, keepends=True)
    assert list(splitter.feed(b"abc\r")) == []
    assert list(splitter.feed(b"")) == []
    assert list(splitter.feed(b"\n")) == [b"abc\r\n"]
    assert list(splitter.feed(b"abc\r")) == []
    assert list(splitter.feed(b"d\n\r")) == [b"abc\r", b"d\n"]
    assert list(splitter.feed(b"\r")) == [b"\r"]
    assert splitter.finish() == [b"\r"]
    assert splitter.finish() == []
    assert list(splitter.feed(b"\n")) == [b"\n"]


def test_a_line_as_long_as_allowed_is_not_cut() -> None:
    for splitter in (LineSplitter(3), TextSplitter(3)):
        assert splitter.feed(b"abc") == []
        lines = splitter.feed(b"\nabcd")
        assert lines in ([b"abc", b"abc"], ["abc", "abc"])
        assert [isinstance(line, Cut) for line in lines] == [False, True]
        assert splitter.finish() in ([b"d"], ["d"])
        assert splitter.finish() == []


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_strict(encoding: str) -> None:
    """The exception has what was to be delivered; what comes later is read on."""
    splitter = TextSplitter(encoding=encoding, errors="strict")
    assert splitter.feed(b"one\ntw") == ["one"]
    with pytest.raises(UnicodeDecodeError) as caught:
        splitter.feed(b"o\n\x81\nthr")
    assert caught.value.object == b"two\n\x81"
    assert (caught.value.start, caught.value.end) == (4, 5)
    assert "position 4" in str(caught.value)
    assert splitter.feed(b"ee\n") == ["three"]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_strict_with_ends(encoding: str) -> None:
    splitter = TextSplitter(encoding=encoding, errors="strict", keepends=True)
    assert list(splitter.feed(b"one\ntw")) == ["one\n"]
    with pytest.raises(UnicodeDecodeError) as caught:
        splitter.feed(b"o\n\x81\nthr")
    assert caught.value.object == b"two\n\x81\n"
    assert (caught.value.start, caught.value.end) == (4, 6)
    assert list(splitter.feed(b"ee\n")) == ["three\n"]


def test_strict_in_a_piece() -> None:
    splitter = TextSplitter(4, errors="strict")
    with pytest.raises(UnicodeDecodeError) as caught:
        splitter.feed(b"ok\n123\xe2\xff678901")
    assert caught.value.object == b"ok\n123\xe2\n\xff678"
    assert (caught.value.start, caught.value.end) == (8, 12)
    assert splitter.finish() == ["901"]


@given(chunks=CHUNKS, limit=LIMITS)
def test_strict_takes_what_decodes(chunks: list[bytes], limit: int) -> None:
    chunks = [chunk.decode("utf-8", "ignore").encode() for chunk in chunks]
    pieces = split_text(TextSplitter(limit, errors="strict"), chunks)
    assert pieces == split_text(TextSplitter(limit), chunks)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "cp037"])
def test_an_encoding_with_other_ends(encoding: str) -> None:
    with pytest.raises(ValueError, match=f"{encoding} has other ends"):
        TextSplitter(encoding=encoding)


@pytest.mark.parametrize("options", [{"encoding": "klingon"}, {"encoding": "hex"}, {"errors": "klingon"}])
def test_what_does_not_exist(options: dict[str, str]) -> None:
    with pytest.raises(LookupError):
        TextSplitter(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [LineSplitter, TextSplitter])
def test_max_line_is_checked(kind: type[LineSplitter | TextSplitter]) -> None:
    with pytest.raises(ValueError, match="max_line must be 1 or more, not 0"):
        kind(0)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1"])
def test_together_is_for_those_that_can(encoding: str) -> None:
    """All two-byte heads before an end of line: decoded together they are what they are alone."""
    lines = [bytes((one, two)) for one in range(0x80, 0x100) for two in range(256) if two not in b"\r\n"]
    together = b"\n".join(lines).decode(encoding, "replace").split("\n")
    assert together == [line.decode(encoding, "replace") for line in lines]
    assert codecs.lookup(encoding).name in ("utf-8", "ascii", "iso8859-1")
    assert TextSplitter(encoding=encoding)._together
