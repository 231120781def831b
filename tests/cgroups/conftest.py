"""A ground for each test of cgroups, and what a machine must have for a test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from ground import Ground
from machine import OURS, VERSION


@pytest.fixture
def ground() -> Iterator[Ground]:
    """An arena, in cgroups if there are any; `needs` says of what."""
    with Ground() as made:
        yield made


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`@pytest.mark.needs("memory", ...)`: controllers, or a "group" in any hierarchy."""
    for item in items:
        for mark in item.iter_markers("needs"):
            for what in mark.args:
                there = bool(OURS) if what == "group" else VERSION[what]
                if not there:
                    item.add_marker(pytest.mark.skip(reason=f"this machine gives this user no {what}"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*what): controllers, or 'group': cgroups of any kind")
