"""Who may import whom: arrows go down only, and decisions have no I/O."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "muontrap"
DOOR = "__init__"  # muontrap/__init__.py: public names, found on first use
# room -> what it may import; of itself it may import all
ROOMS: dict[str, set[str]] = {
    DOOR: set(),
    "errors": set(),
    "kernel": {"errors"},
    "logic": {"errors"},
    "containment": {"logic", "kernel", "errors"},
    "guard": {"containment", "logic", "kernel", "errors"},
    "host": {"containment", "logic", "kernel", "errors", DOOR},
    "supervise": {"host", "logic", "errors"},
    "doctor": {"host", "containment", "logic", "kernel", "errors", DOOR},
    "cli": {"doctor", "supervise", "host", "logic", "errors", DOOR},
    "__main__": {"cli"},
}
# Decisions: `now` is a parameter, and bytes come from somebody who has read them.
NO_LOGIC = {
    *("os", "posix", "time", "select", "selectors", "io", "_io", "pathlib", "shutil", "tempfile", "fcntl"),
    *("socket", "_socket", "threading", "_thread", "asyncio", "multiprocessing", "subprocess", "mmap"),
    *("signal", "_signal", "resource", "logging", "warnings", "ctypes", "random", "pwd", "grp", "datetime"),
}
FILES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in FILES]


def room_of(module: str) -> str:
    """Return the room of `muontrap.<room>...`."""
    return module.partition(".")[2].partition(".")[0] or DOOR


def imports(path: Path, *, types: bool = True) -> Iterator[tuple[str, int]]:
    """Yield (module, line); without those for type checkers alone, if so asked."""
    tree = ast.parse(path.read_text(), str(path))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if not types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            base = node.module or ""
            # `from muontrap.guard import transport` imports a module of that room; from the door, names.
            yield from (
                (f"{base}.{alias.name}" if _is_room(base) else base, node.lineno) for alias in node.names
            )


def _is_room(module: str) -> bool:
    return module.count(".") == 1 and module.startswith("muontrap.") and (PACKAGE / room_of(module)).is_dir()


def own_room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_is_in_the_table() -> None:
    assert {own_room(path) for path in FILES} == set(ROOMS)


def test_arrows_go_down_only() -> None:
    """The table itself has no circle, and host and guard never meet."""
    order: list[str] = []
    while len(order) < len(ROOMS):
        free = [room for room in ROOMS if room not in order and ROOMS[room] <= set(order)]
        assert free, f"a circle among {ROOMS.keys() - set(order)}"
        order += free
    for room in ("host", "guard"):
        assert not {"host", "guard", "cli"} & ROOMS[room]


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_imports_follow_the_table(path: Path) -> None:
    room = own_room(path)
    allowed = ROOMS[room] | ({room} - {DOOR})
    if path.name == "__init__.py" and room == DOOR:
        pairs = list(imports(path, types=False))
    else:
        pairs = list(imports(path))
    wrong = [
        f"{module} (line {line})"
        for module, line in pairs
        if module.partition(".")[0] == "muontrap" and room_of(module) not in allowed
    ]
    assert not wrong, f"{room} must not import {', '.join(wrong)}"


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_nothing_but_the_standard_library_and_cffi(path: Path) -> None:
    known = {*sys.stdlib_module_names, "muontrap", "_cffi_backend"}
    assert not [pair for pair in imports(path, types=False) if pair[0].partition(".")[0] not in known]


LOGIC = sorted((PACKAGE / "logic").glob("*.py"))


@pytest.mark.parametrize("path", [*LOGIC, PACKAGE / "errors.py"], ids=lambda path: path.name)
def test_decisions_have_no_io(path: Path) -> None:
    tree = ast.parse(path.read_text())
    in_memory = [node.lineno for node in tree.body if ast.unparse(node) == "from io import BytesIO"]
    wrong = [
        (module, line)
        for module, line in imports(path, types=False)
        if module.partition(".")[0] in NO_LOGIC and line not in in_memory
    ]
    assert not wrong
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = {function.id for function in called if isinstance(function, ast.Name)}
    assert not names & {"open", "print", "input", "exec", "eval", "__import__"}


@pytest.mark.parametrize("path", FILES, ids=IDS)
def test_only_the_kernel_room_calls_the_kernel_by_cffi(path: Path) -> None:
    """What others take from it are its functions; where its library lies is host/link.py's to know."""
    room = own_room(path)
    modules = {module for module, _ in imports(path)}
    assert "ctypes" not in modules
    if room != "kernel":
        assert not {module for module in modules if module.endswith(("_generated_ffi", ".abi"))}
        assert "_cffi_backend" not in modules or path == PACKAGE / "host" / "link.py"


def test_the_import_reader_sees_all_forms(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "import os, muontrap.host.link as link\n"
        "from muontrap.guard import loop, spawn\n"
        "from muontrap.errors import ProtocolError\n"
        "if TYPE_CHECKING:\n    from muontrap.host.run import run\n"
        "def f():\n    import time\n"
    )
    found = [module for module, _ in imports(source)]
    assert sorted(found) == [
        *("muontrap.errors", "muontrap.guard.loop", "muontrap.guard.spawn"),
        *("muontrap.host.link", "muontrap.host.run", "os", "time"),
    ]
    assert "muontrap.host.run" not in [module for module, _ in imports(source, types=False)]
