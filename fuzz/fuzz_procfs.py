"""Any bytes in place of a file of /proc are parsed, or raise ProtocolError or ValueError; never more."""

from __future__ import annotations

from pathlib import Path

import harness

from muontrap.errors import ProtocolError
from muontrap.logic import procfs

PARSERS = (
    procfs.parse_stat,
    procfs.parse_children,
    procfs.parse_last_pid,
    procfs.privileges,
    lambda text: procfs.parse_soft_limit(text, b"Max file locks"),
)


def target(data: bytes) -> None:
    """Give the bytes to every parser."""
    for parse in PARSERS:
        try:
            parse(data)
        except (ProtocolError, ValueError):
            pass


def corpus() -> list[bytes]:
    """What this machine's kernel writes."""
    files = [Path("/proc/self", name).read_bytes() for name in ("stat", "status", "limits")]
    return [*files, Path("/proc/loadavg").read_bytes(), b"1 22 333 "]


if __name__ == "__main__":
    harness.run(target, corpus())
