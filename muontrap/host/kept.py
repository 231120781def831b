"""Output that is kept until it is asked for: bytes, or the text that they are.

The user's file object may have read from the pipe before, and its decoder goes on where it has stopped.
"""

from __future__ import annotations

import codecs
import io

from muontrap.host.streams import codec, with_methods

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

    from muontrap.logic.command import Command


class Kept:
    """What has come of one stream.

    Attributes:
        take: takes bytes.
    """

    _text: str | None = None

    def __init__(self, command: Command, file: Any) -> None:
        self._command = command
        self._file = file
        self._reads = 0  # of the file object, when it was asked what it has read
        # What the file object had decoded; and what came before the user has read again, which it never saw.
        self._before: tuple[str | bytes, ...] = ()
        self._data = io.BytesIO()
        self.take: Callable[[bytes], object] = self._data.write

    def take_ahead(self) -> None:
        """Take what the file object has read of the pipe, and not given yet."""
        if not self._file or self._file.closed:
            return
        text, data = _read_ahead(self._file, is_text=self._command.is_text)
        reads = _raw(self._file).reads
        if reads != self._reads:
            self._reads = reads
            self._before += tuple(filter(None, (self._data.getvalue(), text)))
            self._data.seek(0)
            self._data.truncate()
            self.take(data)

    def so_far(self) -> bytes:
        """Return the bytes."""
        data = self._data.getvalue()  # which makes no copy, as long as it is the only one
        return b"".join(map(self._encoded, (*self._before, data))) if self._before else data

    def text(self, *, is_cut: bool) -> str:
        """Return the text, without a last character that may be cut.

        Raises:
            UnicodeError: it does not decode; mostly a `UnicodeDecodeError`, with the bytes in its `object`.
        """
        if self._text is None:
            texts: list[str] = []
            pieces = (*self._before, self._data.getvalue())
            for number, piece in enumerate(pieces, 1):
                try:
                    texts.append(self._decoded(piece, is_last=number == len(pieces), is_cut=is_cut))
                except UnicodeDecodeError as error:
                    before = b"".join(map(self._encoded, pieces[: number - 1]))
                    error.object = b"".join([before, error.object, *map(self._encoded, pieces[number:])])
                    error.start += len(before)
                    error.end += len(before)
                    raise
            self._text = "".join(texts)
        return self._text

    def _codec(self) -> tuple[str, str]:
        """Return encoding and error handler, which the user may have changed (`reconfigure`)."""
        if self._file and not self._file.closed:
            return self._file.encoding, self._file.errors
        return codec(self._command)

    def _encoded(self, piece: str | bytes) -> bytes:
        if isinstance(piece, bytes):
            return piece
        encoding, errors = self._codec()
        return piece.encode(encoding, errors)[len("".encode(encoding)) :]  # without a byte order mark

    def _decoded(self, piece: str | bytes, *, is_last: bool, is_cut: bool) -> str:
        if isinstance(piece, str):
            return piece
        if is_last and self._reads and not self._file.closed:
            text: str = with_methods(self._file.buffer, self._file.read, read=io.BytesIO(piece).read)
            return text
        encoding, errors = self._codec()
        if is_cut or not is_last:
            text = codecs.getincrementaldecoder(encoding)(errors).decode(piece)
        else:
            text = piece.decode(encoding, errors)
        return text.replace("\r\n", "\n").replace("\r", "\n")


def _raw(file: Any) -> Any:
    """Return the `Raw` below a file object."""
    buffer = getattr(file, "buffer", file)
    return getattr(buffer, "raw", buffer)


class _NothingNew(Exception):
    pass


def _nothing_new(*_: object) -> NoReturn:
    raise _NothingNew


def _without_reading(stream: Any, act: Callable[[], Any], *names: str) -> None:
    """Act until a stream would read anew, by one of these methods."""
    try:
        with_methods(stream, act, **dict.fromkeys(names, _nothing_new))
    except _NothingNew:
        pass


def _read_ahead(file: Any, *, is_text: bool) -> tuple[str, bytes]:
    """Return what a file object has read and not given: text that is decoded, and bytes."""
    text: list[str] = []
    data: list[bytes] = []

    def take_text() -> None:
        while piece := file.read(1):
            text.append(piece)

    buffer = file.buffer if is_text else file
    if is_text:
        _without_reading(buffer, take_text, "read", "read1")
    if hasattr(buffer, "peek"):
        _without_reading(buffer.raw, lambda: data.append(buffer.read(len(buffer.peek()))), "readinto")
    return "".join(text), b"".join(data)
