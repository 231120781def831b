"""What the project's files say about itself agrees."""

import re
from pathlib import Path

import pytest

import muontrap

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("file", "pattern"),
    [
        ("pyproject.toml", r'^version = "(.+)"$'),
        ("README.md", r"^This is muontrap (\S+) "),
        ("CHANGELOG.md", r"^## \[(\d[^]]*)\]"),
    ],
)
def test_version(file: str, pattern: str) -> None:
    """The first match is the current version: the changelog has the newest first."""
    found = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert found, f"{file} names no version"
    assert found[1] == muontrap.__version__
