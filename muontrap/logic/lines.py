"""A stream's bytes divided into lines, in whatever sizes they come, and within bounded memory.

Lines end where those of `bytes.splitlines` do: at `\\n`, `\\r\\n` and a lone `\\r`; lines of text too,
where `str.splitlines` would see more ends.  They come without their end; a last one without an end
comes at `finish`.  After a `\\r` the line is there at once, and a `\\n` that comes next is nothing.
"""

from __future__ import annotations

import codecs

from muontrap.logic.command import MAX_LINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

# Here no character and no mistake reaches over an end of line, so lines decoded together are what
# they are one by one.  Twice as fast.
_TOGETHER = ("utf-8", "ascii", "iso8859-1")


class Cut:
    """Marks a piece of a line longer than `max_line`, but not its last piece: the next goes on with it."""

    __slots__ = ()


class CutBytes(Cut, bytes):
    """Such a piece, as bytes."""

    __slots__ = ()


class CutText(Cut, str):
    """Such a piece, as text."""

    __slots__ = ()


class _Splitter:
    __slots__ = ("_after_return", "_max_line", "_tail")

    def __init__(self, max_line: int) -> None:
        if max_line < 1:
            raise ValueError(f"max_line must be 1 or more, not {max_line!r}")
        self._max_line = max_line
        self._tail = bytearray()
        self._after_return = False

    def _take(self, chunk: bytes) -> bytes:
        """Return what was kept with what came, all ends as `\\n`; empty as long as no line can be in it."""
        if not chunk:
            return b""
        if self._after_return or b"\r" in chunk:
            known = int(self._after_return and chunk.startswith(b"\n"))
            self._after_return = chunk.endswith(b"\r")
            chunk = chunk[known:].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        if b"\n" not in chunk and len(self._tail) + len(chunk) <= self._max_line:
            self._tail += chunk  # not copied again and again, however small the chunks are
            return b""
        whole = b"".join((self._tail, chunk))
        self._tail.clear()
        return whole

    def _split(self, whole: bytes) -> list[bytes]:
        """Return the lines and pieces that are complete, keep the last."""
        lines = whole.split(b"\n")
        if len(whole) > self._max_line and self._has_long(lines):
            lines = [piece for line in lines for piece in self._pieces(line)]
        self._tail += lines.pop()
        return lines

    def _has_long(self, lines: list[bytes]) -> bool:
        return max(map(len, lines)) > self._max_line

    def _pieces(self, line: bytes) -> Iterator[bytes]:
        size = self._max_line
        last = max(len(line) - 1, 0) // size * size
        for at in range(0, last, size):
            yield CutBytes(line[at : at + size])
        yield line[last:]

    def _rest(self) -> list[bytes]:
        rest = [bytes(self._tail)] if self._tail else []
        self._tail.clear()
        return rest


class LineSplitter(_Splitter):
    """Bytes to lines of bytes. It keeps at most `max_line` bytes, of the line that has no end yet."""

    __slots__ = ()

    def __init__(self, max_line: int = MAX_LINE) -> None:
        super().__init__(max_line)

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the lines that are complete with this chunk; of a longer one its pieces, as `CutBytes`."""
        return self._split(self._take(chunk))

    def finish(self) -> list[bytes]:
        """Return the last line, if it had no end."""
        return self._rest()


class TextSplitter(_Splitter):
    """Bytes to lines of text; `max_line` counts bytes.

    A character that a cut would break comes whole with the next piece: the pieces together are the
    line, though one may be empty, or longer than `max_line` by less than a character.

    With errors="strict", `feed` and `finish` raise `UnicodeDecodeError`; its `object` has, joined by
    `\\n`, all that was to be delivered.
    """

    __slots__ = ("_decoder", "_encoding", "_errors", "_make_decoder", "_together")

    def __init__(self, max_line: int = MAX_LINE, encoding: str = "utf-8", errors: str = "replace") -> None:
        super().__init__(max_line)
        codecs.lookup_error(errors)
        if b"\r\n".decode(encoding, "replace") != "\r\n":
            raise ValueError(f"{encoding} has other ends of line than the bytes \\r and \\n")
        self._encoding = encoding
        self._errors = errors
        self._together = codecs.lookup(encoding).name in _TOGETHER
        self._make_decoder = codecs.getincrementaldecoder(encoding)
        self._decoder: codecs.IncrementalDecoder | None = None  # while a line comes in pieces

    def feed(self, chunk: bytes) -> list[str]:
        """Return the lines that are complete with this chunk; of a longer one its pieces, as `CutText`."""
        whole = self._take(chunk)
        one_by_one = self._decoder or not self._together
        if one_by_one or (len(whole) > self._max_line and self._has_long(whole.split(b"\n"))):
            return self._decode(self._split(whole))
        head, end, tail = whole.rpartition(b"\n")
        self._tail += tail
        return head.decode(self._encoding, self._errors).split("\n") if end else []

    def finish(self) -> list[str]:
        """Return the last line, if it had no end."""
        return self._decode(self._rest())

    def _decode(self, lines: list[bytes]) -> list[str]:
        texts: list[str] = []
        for line in lines:
            is_cut = isinstance(line, Cut)
            # A new one for each line: some codecs (iso2022) keep a shift through their reset.
            decoder = self._decoder or (self._make_decoder(self._errors) if is_cut else None)
            self._decoder = decoder if is_cut else None
            try:
                text = (
                    decoder.decode(line, not is_cut) if decoder else line.decode(self._encoding, self._errors)
                )
            except UnicodeDecodeError as error:
                self._decoder = None
                error.object = b"\n".join(lines)
                error.start = sum(map(len, lines[: len(texts)])) + len(texts)
                error.end = error.start + len(line)
                raise
            texts.append(CutText(text) if is_cut else text)
        return texts
