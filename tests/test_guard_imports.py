"""What a guard loads: each module delays its start, and every fork copies it.

Held by this test: no `typing`, `enum`, `dataclasses`, `re` ... in modules that the guard has.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import _cffi_backend
import pytest

ROOT = Path(__file__).parent.parent
OWN = {
    "muontrap",
    "muontrap.containment",
    "muontrap.containment.groups",
    "muontrap.containment.processes",
    "muontrap.containment.tagged",
    "muontrap.errors",
    "muontrap.guard",
    "muontrap.guard.__main__",
    "muontrap.guard.child",
    "muontrap.guard.asker",
    "muontrap.guard.commands",
    "muontrap.guard.family",
    "muontrap.guard.fork_exec",
    "muontrap.guard.loop",
    "muontrap.guard.placement",
    "muontrap.guard.priority",
    "muontrap.guard.spawn",
    "muontrap.guard.transport",
    "muontrap.guard.watch",
    "muontrap.kernel",
    "muontrap.kernel._generated_ffi",
    "muontrap.kernel.abi",
    "muontrap.kernel.identity",
    "muontrap.kernel.process",
    "muontrap.kernel.signals",
    "muontrap.kernel.sockets",
    "muontrap.kernel.spawn",
    "muontrap.logic",
    "muontrap.logic.escalation",
    "muontrap.logic.ledger",
    "muontrap.logic.ownership",
    "muontrap.logic.procfs",
    "muontrap.logic.steps",
    "muontrap.logic.tags",
    "muontrap.logic.wire",
}
# Small, or C; then `os`, which an interpreter started with -S does not have yet, with what it needs.
STANDARD = {
    *("__future__", "_cffi_backend", "_posixsubprocess", "_signal", "_socket", "_struct", "errno", "fcntl"),
    *("_functools", "gc", "itertools", "math", "mmap", "resource", "select", "struct", "time"),
    *("_abc", "_collections_abc", "_stat", "abc", "genericpath", "os", "os.path", "posixpath", "stat"),
}
HEAVY = ("typing", "dataclasses", "enum", "re", "collections", "signal", "socket", "subprocess")
ALSO_HEAVY = (
    "selectors",
    "json",
    "functools",
    "inspect",
    "logging",
    "threading",
    "pathlib",
    "traceback",
    "types",
)


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """What the host's own bootstrap loads beyond a bare interpreter, up to the call of `run`."""
    folders = [str(ROOT), str(Path(_cffi_backend.__file__ or "").parent)]
    code = (
        "import sys; before = set(sys.modules); sys.path += sys.argv[1:]; "
        "from muontrap.guard.__main__ import run; print(*sorted(set(sys.modules) - before))"
    )
    argv = [sys.executable, "-I", "-S", "-c", code, *folders]
    return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())


def test_muontraps_own_modules(loaded: set[str]) -> None:
    assert {name for name in loaded if name.partition(".")[0] == "muontrap"} == OWN


@pytest.mark.parametrize("name", [*HEAVY, *ALSO_HEAVY])
def test_not_loaded(loaded: set[str], name: str) -> None:
    assert name not in loaded


def test_the_standard_library(loaded: set[str]) -> None:
    surplus = {name for name in loaded if name.partition(".")[0] != "muontrap"} - STANDARD
    assert not surplus


def test_the_host_starts_it_like_this() -> None:
    """So that the above is about the same interpreter, flags and order of folders."""
    from muontrap.host import link

    assert "sys.path += " in link._BOOTSTRAP
    assert "from muontrap.guard.__main__ import run" in link._BOOTSTRAP
    assert '"-I", "-S", "-c"' in Path(link.__file__ or "").read_text()
