"""A hundred daemons and five hundred under one supervisor: start, stop, memory, CPU; beside supervisord.

Each run is in a process of its own, which all that is left falls to: it waits until the kernel knows
no child of it any more.

    start   from the supervisor's `execve` (Python's start, imports and its file are in that) until it
            says that all run: `Supervisor.start` returns; `muontrap supervise` has logged "ready" for
            each; supervisord, with startsecs=0, has logged "entered RUNNING state" for each, or
            ("spawned") the word before that, which comes as soon as it has forked
    stop    from SIGTERM (API: `Supervisor.stop` follows it) until nothing is left
    memory  PSS of all but the daemons themselves: supervisord; or host, guard and watch
    CPU     of the same, once all have come to rest
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from rivals import Report, Samples

from muontrap.kernel.process import set_child_subreaper

FEW = 100
COMMAND = ["sleep", "1000"]
API, CLI = "muontrap, API", "muontrap supervise"
RIVAL, RIVAL_AS_ONE = "supervisord", "supervisord, one program"
RIVALS, OURS = (RIVAL, RIVAL_AS_ONE), (API, CLI)
# What each says in a line for each daemon, or once for all.
SAYS = {API: b"up", CLI: b" ready\n", RIVAL: b"entered RUNNING state", RIVAL_AS_ONE: b"entered RUNNING state"}

HOST = f"""
import signal, sys
from muontrap import Daemon, Supervisor
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
daemons = [Daemon({COMMAND!r}, name=f"d{{number}}") for number in range(int(sys.argv[1]))]
with Supervisor(daemons):
    print("up", flush=True)
    signal.sigwait([signal.SIGTERM])
"""
# It reads their output, as muontrap does, and keeps none of it.
PROGRAM = f"""
command={" ".join(COMMAND)}
startsecs=0
redirect_stderr=true
stdout_logfile=NONE
"""


def supervisor(way: str, count: int, directory: Path) -> list[str]:
    """Write its file, and return what to execute."""
    if way == API:
        return [sys.executable, "-c", HOST, str(count)]
    if way == CLI:
        path = directory / "daemons.toml"
        path.write_text(
            "".join(f"[daemon.d{each}]\ncommand = {json.dumps(COMMAND)}\n" for each in range(count))
        )
        return [
            sys.executable,
            "-m",
            "muontrap",
            "supervise",
            str(path),
            "--directory",
            str(directory / "control"),
        ]
    path = directory / "supervisord.conf"
    programs = (
        f"[program:d]{PROGRAM}numprocs={count}\nprocess_name=d%(process_num)d\n"
        if way == RIVAL_AS_ONE
        else "".join(f"[program:d{each}]{PROGRAM}" for each in range(count))
    )
    # Three descriptors for each; a child closes so many one by one, so no more than that.
    settings = (
        f"logfile=/dev/null\nlogfile_maxbytes=0\npidfile={directory}/pid\nminfds={max(1024, 4 * count)}\n"
    )
    path.write_text(f"[supervisord]\n{settings}{programs}")
    return [sys.executable, "-m", "supervisor.supervisord", "--nodaemon", "--configuration", str(path)]


def descendants(pid: int) -> list[int]:
    lists = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    children = [int(child) for found in lists for child in found]
    return children + [below for child in children for below in descendants(child)]


def pss(pids: list[int]) -> float:
    """MiB."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def cpu(pids: list[int]) -> float:
    """Milliseconds so far."""
    threads = [path for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(int(path.read_text().split()[0]) for path in threads) / 1e6


def supervise(way: str, count: int, seconds: float) -> None:
    """Start one supervisor, let it rest, stop it, and print what that took."""
    set_child_subreaper()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o700)
        argv = supervisor(way, count, Path(name))
        begin = time.perf_counter()
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert process.stdout is not None
        found: dict[str, float] = {}
        said: Counter[bytes] = Counter()
        while said[SAYS[way]] < (1 if way == API else count):
            line = process.stdout.readline()
            assert line, f"{way} has ended"
            said.update(word for word in (SAYS[way], b"spawned: ") if word in line)
            if said[b"spawned: "] == count:
                found.setdefault("spawned", time.perf_counter() - begin)
        found["start"] = time.perf_counter() - begin
        time.sleep(1)  # also for the kernel, which says that `execve` is done before it has changed the name
        names = {pid: Path(f"/proc/{pid}/comm").read_text().strip() for pid in descendants(os.getpid())}
        assert Counter(names.values())[COMMAND[0]] == count, "not all run"
        pids = [pid for pid, name in names.items() if name != COMMAND[0]]
        spent = cpu(pids)
        time.sleep(seconds)
        found |= {"cpu": (cpu(pids) - spent) / seconds, "memory": pss(pids)}
        begin = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        process.stdout.read()
        try:
            while True:
                os.waitpid(-1, 0)
        except ChildProcessError:
            found["stop"] = time.perf_counter() - begin
        process.returncode = 0  # reaped above
    print(json.dumps(found))


def in_new_process(way: str, count: int, seconds: float) -> dict[str, float]:
    program = f"import supervise; supervise.supervise({way!r}, {count}, {seconds})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, stdout=subprocess.PIPE, check=True
    )
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def main() -> None:
    report = Report(
        f"Daemons ({' '.join(COMMAND)}) under one supervisor.",
        seconds=10,
        count=(f"daemons, besides {FEW}", 500),
        rounds=("runs of each", 3),
    )
    if not find_spec("supervisor"):
        sys.exit("there is no supervisord to compare with: pip install 'muontrap[bench]'")
    ways = [*RIVALS, *OURS]
    memory: dict[int, dict[str, float]] = {}
    for count in (FEW, report.numbers["count"]):
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in (*RIVALS, *OURS)}
        for _ in range(report.numbers["rounds"]):
            for way in ways:
                runs[way].append(in_new_process(way, count, report.seconds))
            ways.append(ways.pop(0))

        def samples(field: str, runs: dict[str, list[dict[str, float]]] = runs) -> Samples:
            return {way: [figures[field] for figures in found] for way, found in runs.items()}

        spawned = {f"{way}, spawned": [figures["spawned"] for figures in runs[way]] for way in RIVALS}
        medians = {
            "start": report.section(f"{count}: start", samples("start") | spawned, "s", RIVAL),
            "stop": report.section(f"{count}: stop", samples("stop"), "s", RIVAL),
            "memory": report.section(f"{count}: memory in all", samples("memory"), "MiB", RIVAL),
            "CPU at rest": report.section(f"{count}: CPU at rest", samples("cpu"), "ms/s", RIVAL),
        }
        memory[count] = medians["memory"]
        for what, found in medians.items():
            best = min(value for way, value in found.items() if way not in OURS)
            for way in OURS:
                report.goal(f"{what} of {count}, {way}, ratio to supervisord", found[way] / best, 1.0)
    few, many = memory.values()
    each = {way: [(many[way] - few[way]) * 1024 / (report.numbers["count"] - FEW)] for way in few}
    report.section("memory for each daemon more", each, "KiB", RIVAL)
    report.end()


if __name__ == "__main__":
    main()
