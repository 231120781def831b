"""What the kernel will load besides a program: the interpreter of a script, the loader of an ELF."""

from __future__ import annotations

import struct

HEAD_SIZE = 4096
_PT_INTERP = 3


def interpreter_of(head: bytes) -> bytes | None:
    """Return the path named by `#!` or PT_INTERP in a program's first `HEAD_SIZE` bytes.

    None where there is none, or where it can't be read from this much. See execve(2), elf(5).
    """
    if head.startswith(b"#!"):
        words = head[2:].split(b"\n", 1)[0].split(maxsplit=1)
        return words[0] if words else None
    if head.startswith(b"\x7fELF"):
        try:
            return _elf_interpreter(head)
        except (struct.error, IndexError, OverflowError):
            return None
    return None


def _elf_interpreter(head: bytes) -> bytes | None:
    order = "<" if head[5] == 1 else ">"
    wide = head[4] == 2
    (table,) = struct.unpack_from(order + ("Q" if wide else "I"), head, 32 if wide else 28)
    size, count = struct.unpack_from(order + "HH", head, 54 if wide else 42)
    for index in range(count):
        at = table + index * size
        if struct.unpack_from(order + "I", head, at)[0] == _PT_INTERP:
            word, offset_at, length_at = ("Q", 8, 32) if wide else ("I", 4, 16)
            (offset,) = struct.unpack_from(order + word, head, at + offset_at)
            (length,) = struct.unpack_from(order + word, head, at + length_at)
            path = head[offset : offset + length]
            return path.rstrip(b"\0") or None if len(path) == length else None
    return None
