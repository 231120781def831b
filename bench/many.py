"""Many commands at once, each of which writes some lines per second into a logger."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from rivals import Report, Samples

import muontrap
from muontrap.host import link

Wait = Callable[[], object]

PAUSE = 0.2
# Nobody writes into its stdin: `read` is there to wait, until the host closes the other end.
CHATTER = f"""
while read -t {PAUSE}; [ $? -gt 128 ]; do
    echo "line $((++number)) of $$, about as long as what a program has to say about its work"
done
"""
OURS, THREADS, ASYNCIO = "muontrap", "subprocess, a thread for each", "asyncio"
GUARD = "muontrap, guard and watch"


class Counter(logging.Handler):
    """As cheap as a handler can be."""

    def __init__(self, awaited: int) -> None:
        super().__init__()
        self.count = 0
        self.all_write = threading.Event()
        self._awaited = awaited

    def emit(self, record: logging.LogRecord) -> None:
        self.count += bool(record.getMessage())
        if self.count == self._awaited:
            self.all_write.set()


def with_muontrap(logger: logging.Logger) -> Callable[[list[str], int], Wait]:
    def launch(argv: list[str], stdin: int) -> Wait:
        return muontrap.Launcher(argv, stdin=stdin).launch(into=logger).wait

    return launch


def with_threads(logger: logging.Logger) -> Callable[[list[str], int], Wait]:
    def launch(argv: list[str], stdin: int) -> Wait:
        process = subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, text=True)

        def read() -> None:
            with process:
                assert process.stdout is not None
                for line in process.stdout:
                    logger.info(line.rstrip("\n"))

        thread = threading.Thread(target=read)
        thread.start()
        return thread.join

    return launch


def with_asyncio(logger: logging.Logger) -> Callable[[list[str], int], Wait]:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    async def read(process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            logger.info(line.decode(errors="replace").rstrip("\n"))
        await process.wait()

    def launch(argv: list[str], stdin: int) -> Wait:
        starting = asyncio.create_subprocess_exec(*argv, stdin=stdin, stdout=subprocess.PIPE)
        process = asyncio.run_coroutine_threadsafe(starting, loop).result()
        return asyncio.run_coroutine_threadsafe(read(process), loop).result

    return launch


WAYS = {THREADS: with_threads, ASYNCIO: with_asyncio, OURS: with_muontrap}


def cpu(pids: list[int]) -> float:
    """Seconds so far."""
    times = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in pids]
    return sum(int(ticks) for pair in times for ticks in pair) / os.sysconf("SC_CLK_TCK")


def kib(pids: list[int]) -> int:
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def host(way: str, count: int, seconds: float) -> None:
    """Launch them all, let them write for so long, and print what that took."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    counter = Counter(awaited=3 * count)
    logger = logging.getLogger("many")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(counter)
    launch = partial(WAYS[way](logger), ["bash", "-c", CHATTER])
    stdin, end = os.pipe()

    waits = [launch(stdin)]
    helpers = (
        [link._links.current.hello.guard_pid, link._links.current.hello.watch_pid] if way == OURS else []
    )
    pids = {way: [os.getpid()], GUARD: helpers}
    before = {name: kib(pids[name]) for name in pids}
    start = time.perf_counter()
    waits += [launch(stdin) for _ in range(count - 1)]
    launched = time.perf_counter()
    assert counter.all_write.wait(120), f"{counter.count} lines in 120 s"
    spent, lines = {name: cpu(pids[name]) for name in pids}, counter.count
    begin = time.perf_counter()
    time.sleep(seconds)
    rate = (counter.count - lines) / (time.perf_counter() - begin)
    thousands = (counter.count - lines) / 1000
    found = {
        "lines": rate,
        "cpu": {name: (cpu(pids[name]) - spent[name]) * 1000 / thousands for name in pids},
        "memory": {name: (kib(pids[name]) - before[name]) / count for name in pids},
        "threads": threading.active_count(),
        "pumps": sum(thread.name == "muontrap-pump" for thread in threading.enumerate()),
        "launch": launched - start,
    }
    os.close(end)
    start = time.perf_counter()
    for wait in waits:
        wait()
    found["end"] = time.perf_counter() - start
    print(json.dumps(found))


def in_new_host(way: str, count: int, seconds: float) -> dict[str, object]:
    program = f"import many; many.host({way!r}, {count}, {seconds})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


def room() -> int:
    """Return how many commands this user can have, with a thread each and 8 descriptors."""
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, processes = resource.getrlimit(resource.RLIMIT_NPROC)
    pids = int(Path("/proc/sys/kernel/pid_max").read_text())
    return min(descriptors // 8, *(most // 4 for most in (processes, pids) if most > 0))


def main() -> None:
    report = Report(
        f"Commands that log a line each {PAUSE} s.", seconds=10, count=("commands at once", min(1000, room()))
    )
    count = report.numbers["count"]
    hosts = {way: [in_new_host(way, count, report.seconds)] for way in WAYS}
    for way in reversed(WAYS):
        hosts[way].append(in_new_host(way, count, report.seconds))

    def samples(field: str) -> Samples:
        return {way: [found[field] for found in runs] for way, runs in hosts.items()}

    def with_guard(field: str) -> Samples:
        own = {way: [found[way] for found in runs] for way, runs in samples(field).items()}
        return own | {GUARD: [found[GUARD] for found in samples(field)[OURS]]}

    report.section(f"lines of {count} commands", samples("lines"), "1/s", THREADS)
    report.section("CPU for 1,000 lines", with_guard("cpu"), "ms", THREADS)
    report.section("memory for each command, resident", with_guard("memory"), "KiB", THREADS)
    report.section("threads of the host", samples("threads"), "number", THREADS)
    report.section("launch of all", samples("launch"), "s", THREADS)
    report.section("from their stdin's end until all are waited for", samples("end"), "s", THREADS)
    report.goal("threads named muontrap-pump", max(samples("pumps")[OURS]), 1)
    report.end()


if __name__ == "__main__":
    main()
