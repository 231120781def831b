"""A stream's bytes divided into lines, in whatever sizes they come, and within bounded memory.

Lines end where those of `bytes.splitlines` do: at `\\n`, `\\r\\n` and a lone `\\r`; lines of text too,
where `str.splitlines` would see more ends.  A last line without an end comes at `finish`.

Without their ends, a line is there at once after a `\\r`, and a `\\n` that comes next is nothing.  With
them, it is there when the next byte says what its end is, or `finish`.
"""

from __future__ import annotations

import codecs
from io import BytesIO
from itertools import repeat

from muontrap.logic.command import MAX_LINE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    __slots__ = ("_after_return", "_keepends", "_max_line", "_tail")

    def __init__(self, max_line: int, *, keepends: bool) -> None:
        if max_line < 1:
            raise ValueError(f"max_line must be 1 or more, not {max_line!r}")
        self._max_line = max_line
        self._keepends = keepends
        self._tail = bytearray()
        self._after_return = False

    def _is_long(self, chunk: bytes) -> bool:
        return len(self._tail) + len(chunk) > self._max_line

    def _same_ends(self, chunk: bytes) -> bytes:
        """Return it with all ends as `\\n`; what only completes an end that was there is left out."""
        if self._after_return or b"\r" in chunk:
            known = int(self._after_return and chunk.startswith(b"\n"))
            self._after_return = chunk.endswith(b"\r") if chunk else self._after_return
            chunk = chunk[known:].replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        return chunk

    def _with_tail(self, chunk: bytes | memoryview) -> bytes:
        whole = b"".join((self._tail, chunk))
        self._tail.clear()
        return whole

    def _complete(self, chunk: bytes) -> bytes:
        """Return the lines that are complete with this, in one and with their ends; keep the rest.

        What is kept is not copied again and again, however small the chunks are.
        """
        end = chunk.rfind(b"\n") + 1
        whole = self._with_tail(memoryview(chunk)[:end]) if end else b""
        self._tail += chunk[end:]
        return whole

    def _without_ends(self, chunk: bytes) -> list[bytes]:
        """Return the lines and pieces that are complete, keep the last."""
        chunk = self._same_ends(chunk)
        if self._is_long(chunk):
            lines = self._cut(self._with_tail(chunk).split(b"\n"))
        else:
            lines = chunk.split(b"\n")
            if len(lines) > 1:
                lines[0] = self._with_tail(lines[0])
        self._tail += lines.pop()
        return lines

    def _with_ends(self, chunk: bytes) -> Iterable[bytes]:
        """Return the lines and pieces that are complete, with their ends, keep the last.

        An iteration of `BytesIO` makes each line when it is asked for: twice as fast as a list.
        """
        if self._after_return or b"\r" in chunk or self._is_long(chunk):
            return self._with_any_ends(self._with_tail(chunk))
        return BytesIO(self._complete(chunk))

    def _with_any_ends(self, whole: bytes) -> list[bytes]:
        lines = self._cut(whole.splitlines(True))
        self._after_return = whole.endswith(b"\r")
        if lines and not lines[-1].endswith(b"\n"):
            self._tail += lines.pop()
        return lines

    def _cut(self, lines: list[bytes]) -> list[bytes]:
        if max(map(len, lines), default=0) <= self._max_line:
            return lines
        return [piece for line in lines for piece in self._pieces(line)]

    def _pieces(self, line: bytes) -> Iterator[bytes]:
        """Divide a line that may be too long; its end does not count, and comes with the last piece."""
        size = self._max_line
        last = max(len(line.rstrip(b"\r\n")) - 1, 0) // size * size
        for at in range(0, last, size):
            yield CutBytes(line[at : at + size])
        yield line[last:]

    def _rest(self) -> list[bytes]:
        rest = [bytes(self._tail)] if self._tail else []
        self._tail.clear()
        self._after_return = False
        return rest


class LineSplitter(_Splitter):
    """Bytes to lines of bytes.

    It keeps at most `max_line` bytes, of the line that has no end yet, and with `keepends` a `\\r`.
    """

    __slots__ = ()

    def __init__(self, max_line: int = MAX_LINE, *, keepends: bool = False) -> None:
        super().__init__(max_line, keepends=keepends)

    def feed(self, chunk: bytes) -> Iterable[bytes]:
        """Return the lines that are complete with this chunk; of a longer one its pieces, as `CutBytes`."""
        return self._with_ends(chunk) if self._keepends else self._without_ends(chunk)

    def finish(self) -> list[bytes]:
        """Return the last line, if it had no end."""
        return self._rest()


class TextSplitter(_Splitter):
    """Bytes to lines of text; `max_line` counts bytes.

    A character that a cut would break comes whole with the next piece: the pieces together are the
    line, though one may be empty, or longer than `max_line` by less than a character.

    With errors="strict", `feed` and `finish` raise `UnicodeDecodeError`; its `object` has, joined by
    `\\n` where ends are not kept, all that was to be delivered.
    """

    __slots__ = ("_decoder", "_encoding", "_errors", "_make_decoder", "_together")

    def __init__(
        self,
        max_line: int = MAX_LINE,
        encoding: str = "utf-8",
        errors: str = "replace",
        *,
        keepends: bool = False,
    ) -> None:
        super().__init__(max_line, keepends=keepends)
        codecs.lookup_error(errors)
        if b"\r\n".decode(encoding, "replace") != "\r\n":
            raise ValueError(f"{encoding} has other ends of line than the bytes \\r and \\n")
        self._encoding = encoding
        self._errors = errors
        self._together = codecs.lookup(encoding).name in _TOGETHER
        self._make_decoder = codecs.getincrementaldecoder(encoding)
        self._decoder: codecs.IncrementalDecoder | None = None  # while a line comes in pieces

    def feed(self, chunk: bytes) -> Iterable[str]:
        """Return the lines that are complete with this chunk; of a longer one its pieces, as `CutText`."""
        if self._keepends:
            return self._text_with_ends(chunk)
        if self._decoder or not self._together or self._is_long(chunk):
            return self._decode(self._without_ends(chunk))
        whole = self._complete(self._same_ends(chunk))
        return whole[:-1].decode(self._encoding, self._errors).split("\n") if whole else []

    def finish(self) -> list[str]:
        """Return the last line, if it had no end."""
        return self._decode(self._rest())

    def _text_with_ends(self, chunk: bytes) -> Iterable[str]:
        lines = self._with_ends(chunk)
        if self._decoder or not self._together or not isinstance(lines, BytesIO):
            return self._decode(list(lines))
        if lines.getvalue().isascii():
            return map(bytes.decode, lines)
        if self._errors == "strict":
            return self._decode(list(lines))
        return map(bytes.decode, lines, repeat(self._encoding), repeat(self._errors))

    def _decode(self, lines: list[bytes]) -> list[str]:
        texts: list[str] = []
        joint = b"" if self._keepends else b"\n"
        for line in lines:
            is_cut = isinstance(line, Cut)
            content = line.rstrip(b"\r\n")
            # A new one for each line: some codecs (iso2022) keep a shift through their reset.
            decoder = self._decoder or (self._make_decoder(self._errors) if is_cut else None)
            self._decoder = decoder if is_cut else None
            try:
                text = (
                    decoder.decode(content, not is_cut)
                    if decoder
                    else content.decode(self._encoding, self._errors)
                )
            except UnicodeDecodeError as error:
                self._decoder = None
                error.object = joint.join(lines)
                error.start = sum(map(len, lines[: len(texts)])) + len(texts) * len(joint)
                error.end = error.start + len(line)
                raise
            texts.append(CutText(text) if is_cut else text + line[len(content) :].decode("ascii"))
        return texts
