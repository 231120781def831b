"""What interprets a program: scripts, ELF of both sizes and both byte orders, and any bytes."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from muontrap.logic.executable import HEAD_SIZE, interpreter_of

PATHS = st.text("abc/._-", min_size=1, max_size=40).map(lambda text: b"/" + text.encode())
LAYOUTS = [(wide, order) for wide in (True, False) for order in "<>"]


def elf(
    path: bytes | None, *, wide: bool, order: str, at: int = 0, before: int = 2, length: int = -1
) -> bytes:
    """An ELF file with `before` other program headers, then PT_INTERP, and the path at `at`. See elf(5)."""
    table, size = (64, 56) if wide else (52, 32)
    headers = [(1, 0, 0)] * before
    if path is not None:
        at = at or table + size * (before + 1)
        headers.append((3, at, len(path) + 1 if length < 0 else length))
    ident = b"\x7fELF" + bytes((2 if wide else 1, 1 if order == "<" else 2, 1)) + bytes(9)
    form, entry = ("HHIQQQIHHHHHH", "IIQQQQQQ") if wide else ("HHIIIIIHHHHHH", "IIIIIIII")
    image = ident + struct.pack(order + form, 2, 62, 1, 0, table, 0, 0, table, size, len(headers), 0, 0, 0)
    for kind, offset, count in headers:
        fields = (
            (kind, 4, offset, 0, 0, count, count, 1) if wide else (kind, offset, 0, 0, count, count, 4, 1)
        )
        image += struct.pack(order + entry, *fields)
    return image.ljust(at, b"\0") + (path + b"\0" if path else b"")


@given(
    path=PATHS,
    argument=st.sampled_from([b"", b" ", b" -x", b"\t-x y", b" \t "]),
    space=st.sampled_from([b"", b" ", b"\t "]),
)
def test_script(path: bytes, argument: bytes, space: bytes) -> None:
    assert interpreter_of(b"#!" + space + path + argument + b"\nexit\n") == path


@pytest.mark.parametrize(
    "head", [b"", b"#", b"#!", b"#!\n/bin/sh", b"#! \n", b"echo\n", b"\x7fEL", b"\x7fELF"]
)
def test_none(head: bytes) -> None:
    assert interpreter_of(head) is None


@pytest.mark.parametrize(("wide", "order"), LAYOUTS)
@given(path=PATHS, before=st.integers(0, 12), gap=st.integers(0, 500))
def test_elf(wide: bool, order: str, path: bytes, before: int, gap: int) -> None:
    at = 1000 + gap
    assert interpreter_of(elf(path, wide=wide, order=order, at=at, before=before)) == path


@pytest.mark.parametrize(("wide", "order"), LAYOUTS)
def test_static_elf(wide: bool, order: str) -> None:
    assert interpreter_of(elf(None, wide=wide, order=order)) is None


@pytest.mark.parametrize(("wide", "order"), LAYOUTS)
@given(at=st.integers(HEAD_SIZE - 20, HEAD_SIZE + 20))
def test_a_path_that_is_not_all_there_is_not_told(wide: bool, order: str, at: int) -> None:
    path = b"/lib/ld-linux.so"
    head = elf(path, wide=wide, order=order, at=at)[:HEAD_SIZE]
    found = interpreter_of(head)
    assert found in (None, path)
    assert (found == path) == (at + len(path) + 1 <= HEAD_SIZE)


@pytest.mark.parametrize(("wide", "order"), LAYOUTS)
@given(data=st.data(), path=PATHS)
def test_a_broken_elf_is_no_error(wide: bool, order: str, data: st.DataObject, path: bytes) -> None:
    image = bytearray(elf(path, wide=wide, order=order))
    for _ in range(data.draw(st.integers(1, 4))):
        image[data.draw(st.integers(4, len(image) - 1))] = data.draw(
            st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])
        )
    found = interpreter_of(bytes(image[: data.draw(st.integers(4, len(image)))]))
    assert found is None or found


@pytest.mark.parametrize(("wide", "order"), LAYOUTS)
def test_a_table_beyond_all_files(wide: bool, order: str) -> None:
    image = bytearray(elf(b"/lib/ld.so", wide=wide, order=order))
    at, size = (32, 8) if wide else (28, 4)
    image[at : at + size] = b"\xff" * size
    assert interpreter_of(bytes(image)) is None


@given(head=st.binary(max_size=200))
@example(head=b"#!" + bytes(100))
def test_any_bytes(head: bytes) -> None:
    for start in (b"", b"#!", b"\x7fELF", b"\x7fELF\x02\x01", b"\x7fELF\x01\x02"):
        found = interpreter_of(start + head)
        assert found is None or (found and found in start + head)


def test_this_interpreter() -> None:
    found = interpreter_of(Path(sys.executable).read_bytes()[:HEAD_SIZE])
    assert found is None or Path(found.decode()).exists()
