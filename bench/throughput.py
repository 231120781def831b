"""MB/s of each way to read a command's output, and what memory it takes in the host."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from launch import GIB, memory_available
from rivals import BASE, Report, Samples, interleave

import muontrap

# Reads a command's output to its end; returns how many bytes, or lines, came.
Way = Callable[[list[str]], int]

MIB = 1 << 20
# What `stdio_window` gives the window that is named, and a pipe of 64 KiB as the rivals have it.
DEFAULT, LARGE, LARGEST = "10,240", "65,536", "524,288"
WINDOWS = {DEFAULT: (10_240, None), LARGE: (65_536, 131_072)}
# For short lines `for line in Popen.stdout` has about 400 MB/s.
SHORT, LONG = 20, 80
LAST = 9_999
OURS = "muontrap.run"
POPEN_READ = "Popen.stdout.read(65536)"
POPEN_LINES = "for line in Popen.stdout"
POPEN_TEXT = "the same, text=True"


def bare(size: int, argv: list[str]) -> int:
    with subprocess.Popen(argv, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        return total(iter(partial(os.read, process.stdout.fileno(), size), b""))


def popen_read(argv: list[str]) -> int:
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        return total(iter(partial(process.stdout.read, 65536), b""))


def popen_lines(text: bool, argv: list[str]) -> int:
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=text) as process:
        assert process.stdout is not None
        return last_number(process.stdout)


def asyncio_streams(argv: list[str], *, by_line: bool) -> int:
    async def read() -> int:
        process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
        assert process.stdout is not None
        came, last = 0, b""
        while data := await (process.stdout.readline() if by_line else process.stdout.read(65536)):
            came, last = came + len(data), data
        await process.wait()
        return int(last) if by_line else came

    return asyncio.run(read())


def subprocess_run(argv: list[str]) -> int:
    return len(subprocess.run(argv, capture_output=True, check=True).stdout)


def split(size: int, argv: list[str]) -> int:
    """As fast as lines without their ends can be made of what `os.read` gives."""

    def found() -> Iterator[list[bytes]]:
        tail = b""
        for chunk in iter(partial(os.read, fd, size), b""):
            lines = (tail + chunk).split(b"\n")
            tail = lines.pop()
            yield lines

    with subprocess.Popen(argv, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        fd = process.stdout.fileno()
        return last_number(chain.from_iterable(found()))


def chunks(window: int | None, argv: list[str]) -> int:
    with muontrap.Launcher(argv, stdout=muontrap.PIPE, stdio_window=window).launch() as process:
        return total(process.chunks())


def file_object(argv: list[str]) -> int:
    with muontrap.Launcher(argv, stdout=muontrap.PIPE).launch() as process:
        assert process.stdout is not None
        return total(iter(partial(process.stdout.read, 65536), b""))


def callback(window: int | None, argv: list[str]) -> int:
    came = 0

    def take(data: bytes) -> None:
        nonlocal came
        came += len(data)

    with muontrap.Launcher(argv, stdio_window=window).launch(on_stdout=take) as process:
        process.wait()
    return came


class Null(io.FileIO):
    """/dev/null, as a raw file that has counted what was written."""

    def __init__(self) -> None:
        super().__init__("/dev/null", "w")
        self.came = 0

    def write(self, data: Any) -> int:
        count = super().write(data)
        self.came += count
        return count


def into_file(window: int | None, argv: list[str]) -> int:
    with Null() as file:
        muontrap.run(argv, into=file, stdio_window=window, check=True)
        return file.came


def into_callable(window: int | None, text: bool, argv: list[str]) -> int:
    last: deque[Any] = deque(maxlen=1)
    muontrap.run(argv, into=last.append, stdio_window=window, text=text, check=True)
    return last_number(last)


def lines(window: int | None, text: bool, keepends: bool, argv: list[str]) -> int:
    launcher = muontrap.Launcher(argv, stdout=muontrap.PIPE, stdio_window=window, text=text)
    with launcher.launch() as process:
        return last_number(process.lines(keepends=keepends))


def muontrap_run(argv: list[str]) -> int:
    return len(muontrap.run(argv, capture_output=True, check=True).stdout)


def total(chunks: Iterator[bytes]) -> int:
    came = 0
    for chunk in chunks:
        came += len(chunk)
    return came


def last_number(lines: Iterable[Any]) -> int:
    """Go through lines with nothing to do for each; what the last one says shows that all came."""
    last: Any = -1
    for line in lines:
        last = line
    return int(last)


BYTES: dict[str, Way] = {
    POPEN_READ: popen_read,
    "asyncio StreamReader.read(65536)": partial(asyncio_streams, by_line=False),
    "process.stdout.read(65536)": file_object,
}
LINES: dict[str, Way] = {
    POPEN_LINES: partial(popen_lines, False),
    POPEN_TEXT: partial(popen_lines, True),
    "asyncio StreamReader.readline()": partial(asyncio_streams, by_line=True),
}
for _name, (_size, _window) in WINDOWS.items():
    BYTES |= {
        f"os.read loop, {_name}": partial(bare, _size),
        f"chunks, {_name}": partial(chunks, _window),
        f"on_stdout, {_name}": partial(callback, _window),
        f"run(into=binary file), {_name}": partial(into_file, _window),
    }
    LINES |= {
        f"os.read and bytes.split, {_name}": partial(split, _size),
        f"lines, {_name}": partial(lines, _window, False, False),
        f"lines, keepends=True, {_name}": partial(lines, _window, False, True),
        f"lines, text=True, {_name}": partial(lines, _window, True, False),
        f"the same, keepends=True, {_name}": partial(lines, _window, True, True),
        f"run(into=callable), {_name}": partial(into_callable, _window, False),
        f"the same, text=True, {_name}": partial(into_callable, _window, True),
    }
LINES[f"lines, keepends=True, {LARGEST}"] = partial(lines, 2**20, False, True)
CAPTURED: dict[str, Way] = {BASE: subprocess_run, OURS: muontrap_run}


def mb_per_second(way: Way, argv: list[str], size: int, expected: int) -> float:
    start = time.perf_counter()
    came = way(argv)
    rate = size / 1e6 / (time.perf_counter() - start)
    assert came == expected, f"{came} of {expected} came"
    return rate


def peak(name: str, argv: list[str]) -> None:
    """Print the bytes that this process had more at most than after a first reading of next to nothing."""
    way = (BYTES | LINES | CAPTURED)[name]
    way(["echo", "0"])  # guards and modules
    before = _memory("VmRSS")
    way(argv)
    print(_memory("VmHWM") - before)


def _memory(field: str) -> int:
    # Not ru_maxrss: that begins at what the process that started this one had.
    return next(
        int(line.split()[1]) * 1024
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith(field)
    )


def peak_in_new_host(name: str, argv: list[str]) -> float:
    """MiB."""
    program = f"import throughput; throughput.peak({name!r}, {argv!r})"
    host = [sys.executable, "-c", program]
    done = subprocess.run(host, cwd=Path(__file__).parent, stdout=subprocess.PIPE, check=True)
    return int(done.stdout) / MIB


def write_lines(path: Path, size: int, length: int) -> None:
    """Write about as many bytes, in lines of that length with their ends, more or less a quarter.

    They are numbered from 0 to `LAST`, and again.
    """
    quarter = length // 4
    some = b"".join(
        b"%*d\n" % (length - 1 - quarter + number * 17 % (2 * quarter), number) for number in range(LAST + 1)
    )
    with open(path, "wb") as file:
        file.writelines(repeat(some, size // len(some)))


def main() -> None:
    report = Report(
        "Output of a command read in each way.",
        seconds=40,
        pieces=("MiB of zeros, read in pieces", 512),
        lines=("MiB of lines", 128),
        captured=("MiB of zeros, captured", 1024 if memory_available() > 4 * GIB else 256),
    )

    def rates(ways: dict[str, Way], argv: list[str], size: int, expected: int) -> Samples:
        runs = {name: partial(mb_per_second, way, argv, size, expected) for name, way in ways.items()}
        return interleave(runs, report.seconds)

    def zeros(size: int) -> list[str]:
        return ["head", "-c", str(size), "/dev/zero"]

    size = report.numbers["pieces"] * MIB
    in_pieces = report.section("in pieces", rates(BYTES, zeros(size), size, size), "MB/s", POPEN_READ)
    argvs = dict.fromkeys(BYTES, zeros(size))
    size = report.numbers["captured"] * MIB
    whole = f"run(capture_output=True) of {size >> 20} MiB"
    captured = report.section(whole, rates(CAPTURED, zeros(size), size, size), "MB/s")
    argvs |= dict.fromkeys(CAPTURED, zeros(size))
    by_line: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        for length in (SHORT, LONG):
            path = Path(folder, f"lines of {length} bytes")
            write_lines(path, report.numbers["lines"] * MIB, length)
            # The cheapest writer found: `head -c` has half of its speed, `dd bs=1M` the same.
            cat = ["cat", str(path)]
            size = path.stat().st_size
            by_line[length] = report.section(path.name, rates(LINES, cat, size, LAST), "MB/s", POPEN_LINES)
        argvs |= dict.fromkeys(LINES, cat)
        hosts = {name: partial(peak_in_new_host, name, argv) for name, argv in argvs.items()}
        memory = report.section("what the host has more at most", interleave(hosts, 0, rounds=2), "MiB")

    for name in WINDOWS:
        ratio = in_pieces[f"chunks, {name}"] / in_pieces[f"os.read loop, {name}"]
        report.goal(f"chunks, window {name}, MB/s, ratio to os.read loop", ratio, 0.95, at_least=True)
    for length, found in by_line.items():
        for name in found:
            if name.startswith("lines, ") and "text" not in name:
                ratio = found[name] / found[POPEN_LINES]
                text = f"{name}: of {length} bytes, MB/s, ratio to {POPEN_LINES}"
                report.goal(text, ratio, 2.0, at_least=True)
    report.goal(f"{whole}, time, ratio to {BASE}", captured[BASE] / captured[OURS], 1.0)
    report.goal(f"{whole}, memory, ratio to {BASE}", memory[OURS] / memory[BASE], 1.0)
    report.end()


if __name__ == "__main__":
    main()
