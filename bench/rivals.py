"""What the benchmarks share: whom we are compared with, interleaved runs, the table and the goals."""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

Samples = dict[str, list[float]]

BASE = "subprocess.run"
SETPRIV = "setpriv --pdeathsig KILL"
UNSHARE = "unshare --pid --fork --kill-child"
TINI = "tini -s --"


def available(prefixes: tuple[str, ...]) -> list[str]:
    """Those of the prefixes that work on this machine for this user; says which do not."""
    found = []
    for prefix in prefixes:
        argv = [*prefix.split(), "true"]
        if shutil.which(argv[0]) and subprocess.run(argv, capture_output=True).returncode == 0:
            found.append(prefix)
        else:
            print(f"left out, does not work here: {prefix}", file=sys.stderr)
    return found


def timed(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1000


def interleave(
    candidates: Mapping[str, Callable[[], float]],
    seconds: float,
    *,
    pause: float = 0.0,
    rounds: int = 5,
    block: int = 1,
) -> Samples:
    """What the candidates return, run in turn (each round in another order) for so long.

    `block` calls of one candidate follow each other, which is what "back to back" means.
    """
    samples: Samples = {name: [] for name in candidates}
    names = list(candidates)
    for name in names:  # the first run starts guards and fills caches
        candidates[name]()
    end, done = time.perf_counter() + seconds, 0
    while time.perf_counter() < end or done < rounds:
        for name in names:
            for _ in range(block):
                time.sleep(pause)
                samples[name].append(candidates[name]())
        names.append(names.pop(0))
        done += 1
    return samples


class Report:
    """Prints each section as a table when it is there and the goals at the end, or all as JSON.

    `numbers` are more options: what each is, and its default.
    """

    def __init__(self, description: str, seconds: float, **numbers: tuple[str, int]) -> None:
        parser = argparse.ArgumentParser(description=description)
        parser.add_argument(
            "--seconds", type=float, default=seconds, help="for each section (default: %(default)s)"
        )
        parser.add_argument("--json", action="store_true", help="JSON in place of tables")
        for name, (meaning, default) in numbers.items():
            parser.add_argument(
                f"--{name}", type=int, default=default, help=f"{meaning} (default: {default})"
            )
        options = parser.parse_args()
        self.seconds: float = options.seconds
        self.numbers: dict[str, int] = {name: getattr(options, name) for name in numbers}
        self._json: bool = options.json
        self._sections: dict[str, dict[str, dict[str, float]]] = {}
        self._goals: list[dict[str, object]] = []
        self._say(f"{description} Python {platform.python_version()}, Linux {platform.release()}.")

    def _say(self, text: str) -> None:
        if not self._json:
            print(text, flush=True)

    def section(self, title: str, samples: Samples, unit: str = "ms", base: str = BASE) -> dict[str, float]:
        """Adds a table; returns the median of each candidate."""
        medians = {name: statistics.median(values) for name, values in samples.items()}
        rows = {
            name: {
                "median": medians[name],
                "ratio": medians[name] / medians[base],
                "min": min(values),
                "max": max(values),
                "runs": len(values),
            }
            for name, values in samples.items()
        }
        self._sections[title] = rows
        self._say(f"\n{title} ({unit})\n{'':36}{'median':>10}{'ratio':>8}{'min':>10}{'max':>10}{'runs':>7}")
        for name, row in rows.items():
            figures = "{median:10.2f}{ratio:8.2f}{min:10.2f}{max:10.2f}{runs:7}".format_map(row)
            self._say(f"{name:36}{figures}")
        return medians

    def goal(self, text: str, value: float, limit: float, *, at_least: bool = False) -> None:
        met = value >= limit if at_least else value <= limit
        self._goals.append({"goal": text, "value": value, "limit": limit, "met": met})

    def end(self) -> None:
        if self._json:
            print(json.dumps({"sections": self._sections, "goals": self._goals}, indent=2))
        if self._goals:
            self._say("\nGoals")
        for goal in self._goals:
            mark = "pass" if goal["met"] else "FAIL"
            self._say(f"{mark}  {goal['goal']}: {goal['value']:.2f} (limit {goal['limit']:.2f})")
