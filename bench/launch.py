"""Latency of running /bin/true to its end with stdout captured, and launches per second from 4 threads."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rivals import BASE, SETPRIV, TINI, UNSHARE, Report, Samples, available, interleave, timed

import muontrap

COMMAND = ["/bin/true"]
SPAWN, FORK = "muontrap.run", 'muontrap.run(user="nobody")'
GIB = 1 << 30


def ours() -> dict[str, Callable[[], object]]:
    runs: dict[str, Callable[[], object]] = {
        BASE: partial(subprocess.run, COMMAND, capture_output=True, check=True),
        SPAWN: partial(muontrap.run, COMMAND, capture_output=True, check=True),
    }
    if os.geteuid() == 0:
        runs[FORK] = partial(muontrap.run, COMMAND, capture_output=True, check=True, user="nobody")
    return runs


def rivals() -> dict[str, Callable[[], object]]:
    return {
        prefix: partial(subprocess.run, [*prefix.split(), *COMMAND], capture_output=True, check=True)
        for prefix in available((SETPRIV, UNSHARE, TINI))
    }


@contextlib.contextmanager
def busy_threads(count: int) -> Iterator[None]:
    """Threads that want the interpreter all the time."""
    done = False

    def spin() -> None:
        while not done:
            pass

    threads = [threading.Thread(target=spin) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done = True
        for thread in threads:
            thread.join()


def per_second(run: Callable[[], object], threads: int = 4, seconds: float = 1.0) -> float:
    """Launches that so many threads finish in a second."""
    start = time.perf_counter()

    def work() -> int:
        count = 0
        while time.perf_counter() < start + seconds:
            run()
            count += 1
        return count

    with ThreadPoolExecutor(threads) as pool:
        done = sum(worker.result() for worker in [pool.submit(work) for _ in range(threads)])
    return done / (time.perf_counter() - start)


def memory_available() -> int:
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def throughput(report: Report) -> Samples:
    runs = {name: partial(per_second, run) for name, run in ours().items()}
    return interleave(runs, report.seconds, rounds=3)


def main() -> None:
    report = Report("Running /bin/true to its end, stdout captured.", seconds=10)
    runs = {name: partial(timed, run) for name, run in (ours() | rivals()).items()}
    measure = partial(interleave, runs, report.seconds)
    report.section("idle host: 20 ms of rest before each launch", measure(pause=0.02))
    latency = report.section("back to back", measure(block=20))
    if memory_available() > 2 * GIB:
        ballast = bytearray(GIB)
        ballast[::4096] = b"1" * (GIB // 4096)  # pages count once they are written
        report.section("1 GiB host, back to back", measure(block=20))
        del ballast
    with busy_threads(8):
        report.section("8 busy threads", measure())
    rates = report.section("launches per second from 4 threads", throughput(report), unit="1/s")

    report.goal("back to back, default, ratio to subprocess.run", latency[SPAWN] / latency[BASE], 1.5)
    if FORK in runs and UNSHARE in runs:
        report.goal("back to back, user=, ratio to unshare", latency[FORK] / latency[UNSHARE], 1.0)
    report.goal("4 threads, ratio to subprocess.run", rates[SPAWN] / rates[BASE], 0.65, at_least=True)
    report.end()


if __name__ == "__main__":
    main()
