"""The fuzz targets hold their invariants for a moment at least, and would say if they did not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parents[2] / "fuzz"


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FUZZ.glob("fuzz_*.py")), ids=lambda path: path.stem)
def test_target(path: Path) -> None:
    done = subprocess.run([sys.executable, path, "--seconds", "0.3"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "none fails" in done.stdout


def test_a_failure_is_told(tmp_path: Path) -> None:
    target = tmp_path / "fuzz_bad.py"
    target.write_text(
        f"import sys; sys.path.insert(0, {str(FUZZ)!r}); import harness\n"
        "def target(data):\n    assert b'x' not in data\n"
        "harness.run(target, [b'abx'])\n"
    )
    done = subprocess.run([sys.executable, target, "--seconds", "5"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "fails on b'abx'" in done.stderr
