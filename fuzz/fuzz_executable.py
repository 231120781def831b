"""Any bytes in place of a program name an interpreter that stands in them, or none; no exception."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import harness

from muontrap.logic.executable import HEAD_SIZE, interpreter_of


def target(data: bytes) -> None:
    """Look for the interpreter in the first bytes, as the host does."""
    found = interpreter_of(data[:HEAD_SIZE])
    assert found is None or (found and found in data)


def corpus() -> list[bytes]:
    """Scripts, this interpreter, and small ELF files of both sizes and both byte orders."""
    items = [
        b"#!/bin/sh\n",
        b"#! /usr/bin/env python3 -I\nprint()\n",
        Path(sys.executable).read_bytes()[:900],
    ]
    for order, mark in (("<", 1), (">", 2)):
        wide = b"\x7fELF\x02" + bytes((mark, 1)) + bytes(9)
        wide += struct.pack(order + "HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        wide += struct.pack(order + "IIQQQQQQ", 3, 4, 120, 0, 0, 8, 8, 1) + b"/lib/ld\0"
        narrow = b"\x7fELF\x01" + bytes((mark, 1)) + bytes(9)
        narrow += struct.pack(order + "HHIIIIIHHHHHH", 2, 3, 1, 0, 52, 0, 0, 52, 32, 1, 0, 0, 0)
        narrow += struct.pack(order + "IIIIIIII", 3, 84, 0, 0, 8, 8, 4, 1) + b"/lib/ld\0"
        items += [wide, narrow]
    return items


if __name__ == "__main__":
    harness.run(target, corpus())
