"""Fixtures of all tests: the arena, and the times measured in it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "guarantees"))

from arena import Arena, CgroupLedger

# Under nohup(1) it would be ignored by whatever the tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

MANY = 2  # variants of a test
_measured: list[tuple[str, float]] = []


@pytest.fixture
def arena() -> Iterator[Arena]:
    """A cgroup of its own for this test."""
    with Arena() as made:
        yield made


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Callable[[float], None]:
    """Record how many seconds something took, for the summary that MUONTRAP_MEASURE asks for."""
    return lambda seconds: _measured.append((request.node.name, seconds))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With MUONTRAP_TEST_PAIRS=few, keep of each test that has many variants this Python's share.

    So `.ci/run` has it for the Pythons beside the default one, which has all variants: each runs each test,
    of up to 15 variants one, and no two the same.
    """
    if os.environ.get("MUONTRAP_TEST_PAIRS") != "few":
        return
    tests: dict[tuple[object, ...], list[pytest.Item]] = {}
    for item in items:
        tests.setdefault((item.path, getattr(item, "originalname", item.name)), []).append(item)
    share = {10: 0, 12: 1}.get(sys.version_info.minor, 2)
    others = {
        id(item)
        for variants in tests.values()
        if len(variants) > MANY
        for index, item in enumerate(variants)
        if (index - share) % min(15, len(variants))
    }
    config.hook.pytest_deselected(items=[item for item in items if id(item) in others])
    items[:] = [item for item in items if id(item) not in others]


def pytest_sessionfinish() -> None:
    CgroupLedger.bury()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The measured times, slowest first; MUONTRAP_MEASURE names a file, or is 1."""
    where = os.environ.get("MUONTRAP_MEASURE")
    if not where or not _measured:
        return
    lines = [
        f"{seconds * 1000:8.1f} ms  {name}" for name, seconds in sorted(_measured, key=lambda pair: -pair[1])
    ]
    if where != "1":
        Path(where).write_text("\n".join(lines) + "\n", encoding="utf-8")
    terminalreporter.section("measured")
    terminalreporter.write_line("\n".join(lines))
