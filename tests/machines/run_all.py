"""Run the tests of cgroups on every kind of machine: `make test-v2`.

This machine is one of them: to its root the kind that it is itself needs no other. A test that is skipped
on all of them tests nothing, and fails the run. What failed is run once more on its machine, with nothing
beside it. Arguments choose kinds ("v2", "v2-user"), in which case nothing is asked of the rest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]

# What needs cgroups, or must do without: files of tests, and options of pytest.
# Launches are slow there: of the pairs of layer, death and command, a few.
_PAIRS = "(sigkill-daemon] or guard-main-thread-ends] or escapes) and not then"
CGROUP_TESTS = ["tests/cgroups", "-k", f"checks or not each_layer_alone or ({_PAIRS})"]
CHECKS = "tests/machines/checks.py"  # that the machine is what it is taken for

# name: arguments of boot.py
MACHINES = {
    "v2": ["v2"],
    "v2-user": ["v2", "--user"],
    "v1": ["v1"],
    "hybrid": ["hybrid"],
    "none": ["none"],
}
MORE = {  # when they are asked for: each takes minutes
    "v1-user": ["v1", "--user"],
    "hybrid-user": ["hybrid", "--user"],
    "none-user": ["none", "--user"],
}
THIS = "this machine"
AT_ONCE = int(os.environ.get("MUONTRAP_MACHINES_AT_ONCE", "2"))
DEADLINE = 900  # seconds, for one machine
# pytest's exit statuses: tests have failed; there are none, also when all modules were skipped
FAILED, NONE_COLLECTED = 1, 5


class Report(NamedTuple):
    """What one machine said of its tests."""

    name: str
    status: int
    seconds: float
    passed: frozenset[str]
    failed: frozenset[str]
    skipped: dict[str, str]  # test: reason

    def line(self) -> str:
        counts = f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        return f"{self.name:>12}: {counts} in {self.seconds:.0f} s"


def reason(skipped: ET.Element) -> str:
    """Why a test was skipped. Of a whole module's, only the text says it: ('FILE', LINE, 'Skipped: WHY')."""
    _, of_module, why = (skipped.text or "").rpartition("Skipped: ")
    if skipped.get("message") == "collection skipped" and of_module:
        return why.rstrip("')\"")
    return skipped.get("message") or "no reason given"


def read_report(junit: Path) -> tuple[set[str], set[str], dict[str, str]]:
    """Tests that passed, that failed, and that were skipped, from pytest's report.

    A module that was skipped as a whole is a test by the name of the module; an expected failure has passed.
    """
    passed, failed, skipped = set(), set(), {}
    for case in ET.parse(junit).iter("testcase"):
        test = "::".join(filter(None, (case.get("classname"), case.get("name"))))
        what = {element.tag: element for element in case}
        if "failure" in what or "error" in what:
            failed.add(test)
        elif "skipped" in what and what["skipped"].get("type") != "pytest.xfail":
            skipped[test] = reason(what["skipped"])
        else:
            passed.add(test)
    return passed - failed, failed, skipped


def kind_of_this() -> str:
    """What kind of machine this is to its root; "" to others."""
    mounts = Path("/proc/self/mountinfo").read_text("utf-8").splitlines()
    mounted = {line.partition(" - ")[2].split()[0] for line in mounts}
    kinds = {(False, False): "none", (True, False): "v1", (False, True): "v2", (True, True): "hybrid"}
    return "" if os.geteuid() else kinds["cgroup" in mounted, "cgroup2" in mounted]


def run_one(name: str, folder: Path, tests: Sequence[str] = (CHECKS, *CGROUP_TESTS)) -> Report:
    """Run tests on one machine. What it prints is shown when it has ended, in one piece."""
    junit = folder / f"{name}.xml"
    junit.unlink(missing_ok=True)
    if name == THIS:
        tests = [test for test in tests if test != CHECKS]
        argv = ["-m", "pytest", "-p", "no:cacheprovider", f"--junit-xml={junit}", *tests]
    else:
        boot = [str(HERE / "boot.py"), *(MACHINES | MORE)[name], f"--junit={junit}", f"--deadline={DEADLINE}"]
        argv = [*boot, "--", *tests]
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, *argv], cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    )  # fmt: skip
    print(f"\n=== {name}\n{done.stdout}", end="", flush=True)
    passed, failed, skipped = read_report(junit) if junit.exists() else (set(), set(), {})
    found = frozenset(passed), frozenset(failed), skipped
    return Report(name, done.returncode, time.monotonic() - begin, *found)


def run_again(before: Report, folder: Path) -> Report:
    """Run what failed once more, and say how all the tests have gone now."""
    parts = (test.partition("::") for test in sorted(before.failed))
    again = run_one(before.name, folder, [f"{at.replace('.', '/')}.py::{name}" for at, _, name in parts])
    print(f"{before.name}: failed, then passed: {', '.join(sorted(again.passed)) or 'none'}")
    passed, failed = before.passed | again.passed, before.failed - again.passed
    return Report(before.name, again.status, before.seconds + again.seconds, passed, failed, before.skipped)


def never_run(reports: Iterable[Report]) -> dict[str, str]:
    """Tests, and modules, that every machine skipped, and why."""
    reports = list(reports)
    ran = {test for report in reports for test in report.passed | report.failed}
    return {
        test: why
        for report in reports
        for test, why in report.skipped.items()
        if test not in ran and not any(other.startswith((f"{test}::", f"{test}.")) for other in ran)
    }


def summary(reports: Sequence[Report], *, whole: bool) -> list[str]:
    """What is wrong, after a table of what was."""
    print("\n=== summary")
    for report in reports:
        print(report.line())
        for why, count in Counter(report.skipped.values()).most_common():
            print(f"{'':>14}{count} skipped: {why}")
    wrong = [f"{report.name}: {test} failed" for report in reports for test in sorted(report.failed)]
    wrong += [
        f"{report.name}: exit status {report.status}"
        for report in reports
        if report.status and not report.failed and not (report.status == NONE_COLLECTED and report.skipped)
    ]
    if whole:
        wrong += [f"{test} ran nowhere: {why}" for test, why in never_run(reports).items()]
    return wrong


def main() -> int:
    chosen = sys.argv[1:] or [THIS, *(name for name in MACHINES if name != kind_of_this())]
    if unknown := set(chosen) - {THIS, *MACHINES, *MORE}:
        raise SystemExit(f"no such machine: {', '.join(unknown)}; there are {', '.join(MACHINES | MORE)}")
    with tempfile.TemporaryDirectory(prefix="machines-") as folder, ThreadPoolExecutor(AT_ONCE) as pool:
        first = list(pool.map(lambda name: run_one(name, Path(folder)), chosen))
        reports = [run_again(each, Path(folder)) if each.status == FAILED else each for each in first]
    wrong = summary(reports, whole=not sys.argv[1:])
    print(*wrong, sep="\n")
    passed, failed, skipped = (sum(map(len, tests)) for tests in zip(*(r[3:] for r in reports), strict=True))
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
