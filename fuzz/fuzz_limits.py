"""Any text in a cgroup's files is limits that can be written and read again, or raises ProtocolError."""

from __future__ import annotations

import harness

from muontrap.errors import ProtocolError
from muontrap.logic import limits

VERSIONS = {
    1: (limits.from_files_v1, limits.settings_v1),
    2: (limits.from_files_v2, limits.settings_v2),
}


def target(data: bytes) -> None:
    """Read the text as each file, then all files from it; and as a size."""
    text = data.decode("utf-8", "surrogateescape")
    for version, (read, write) in VERSIONS.items():
        names = [name for _, name in limits.limit_files(version)]
        for files in (*({name: text} for name in names), dict.fromkeys(names, text)):
            try:
                found = read(files)
            except ProtocolError:
                continue
            assert hash(found) == hash(read(files))
            for setting in write(found):
                assert "\n" not in setting.value
                assert setting.file in names
    for option in ("memory_max", "cpu_max", "cpuset_cpus"):
        try:
            limits.Limits(**{option: text})  # type: ignore[arg-type]
        except ValueError as error:
            if option not in str(error):
                raise


def corpus() -> list[bytes]:
    """What kernels write, and what people do."""
    return [
        *(b"max\n", b"4096\n", b"-1\n", b"9223372036854771712\n", b"0\n", b"0-3,5\n", b"\n"),
        *(b"50000 100000\n", b"max 100000\n", b"default 100\n8:16 50\n"),
        *(b"8:16 rbps=2097152 wbps=max riops=max wiops=120\n", b"8:16 1048576\n8:0 12\n"),
        *(b"256M", b"1.5 GiB", b"infinity", b"0.5"),
    ]


if __name__ == "__main__":
    harness.run(target, corpus())
