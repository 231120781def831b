"""Any bytes in any chunks are the lines of the whole, as bytes and as text; nothing raises."""

from __future__ import annotations

import harness

from muontrap.logic.lines import Cut, LineSplitter, TextSplitter

ENCODINGS = ("utf-8", "latin-1", "shift_jis", "gb18030")


def target(data: bytes) -> None:
    """Take the first byte for `max_line` and the encoding, the others for a chunk's size and its bytes."""
    limit = 1 + (data[0] >> 2 if data else 0)
    encoding = ENCODINGS[data[0] & 3 if data else 0]
    splitter, texts = LineSplitter(limit), TextSplitter(limit, encoding)
    with_ends, texts_with_ends = (
        LineSplitter(limit, keepends=True),
        TextSplitter(limit, encoding, keepends=True),
    )
    whole, at = b"", 1
    ended: list[bytes] = []
    ended_texts: list[str] = []
    lines: list[bytes] = []
    decoded: list[str] = []
    while at < len(data):
        chunk = data[at + 1 : at + 1 + data[at]]
        at += 1 + data[at]
        whole += chunk
        lines += splitter.feed(chunk)
        decoded += texts.feed(chunk)
        ended += with_ends.feed(chunk)
        ended_texts += texts_with_ends.feed(chunk)
        assert len(splitter._tail) <= limit
        assert len(with_ends._tail.removesuffix(b"\r")) <= limit
    lines += splitter.finish()
    decoded += texts.finish()
    ended += with_ends.finish()
    ended_texts += texts_with_ends.finish()
    assert b"".join(ended) == whole
    assert [line.rstrip(b"\r\n") for line in ended] == lines
    assert [text.rstrip("\r\n") for text in ended_texts] == decoded
    assert [isinstance(line, Cut) for line in ended] == [isinstance(text, Cut) for text in ended_texts]
    assert all(len(line) == limit if isinstance(line, Cut) else len(line) <= limit for line in lines)
    expected = whole.splitlines()
    assert b"".join(line if isinstance(line, Cut) else line + b"\n" for line in lines) == _ended(expected)
    text = "".join(line if isinstance(line, Cut) else line + "\n" for line in decoded)
    assert text == "".join(line.decode(encoding, "replace") + "\n" for line in expected)


def _ended(lines: list[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def corpus() -> list[bytes]:
    """Ends of line and characters broken by chunks and by cuts."""
    return [
        b"\xfc\x05one\r\n\x06two\nth\x05ree\r\r",
        b"\x08\x04\xe2\x82\xac\n\x02\xf0\x9f\x03\x98\x80\r\x01\n\x03\xed\xa0\x80",
        b"\x06\x05\x82\xa0\x81\n\x83\x04\\\x83\n\xff",
        b"\x07\x06\x81\x30\x81\x30\r\n\x03\x84\x31\x95",
        b"\x10\x30" + "a\x0bb\x0cc\x1cd\x1de\x1ef\x85g\u2028h\u2029i".encode() + b"\n" * 9,
    ]


if __name__ == "__main__":
    harness.run(target, corpus())
