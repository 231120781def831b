"""What `build_ffi.py` declares: its committed output, and what the system's headers say.

ABI mode has no compiler to help: a wrong number or offset would be found only by what it breaks.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

import cffi
import pytest

from muontrap.kernel import _generated_ffi

ROOT = Path(__file__).parents[2]
NUMBERS = itertools.count()


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build_ffi = load("build_ffi", ROOT / "build_ffi.py")
CONSTANTS = re.findall(r"^#define (\w+) (\d+)$", build_ffi.DECLARATIONS, re.MULTILINE)
FUNCTIONS = re.findall(r"^\w[\w ]*?[ *](\w+)\(", build_ffi.DECLARATIONS, re.MULTILINE)
# What the code takes for granted besides: buffers that are large enough, and where a word is.
FACTS = """
#define SIGSET_SIZE ...
#define STATFS_SIZE ...
#define F_TYPE_OFFSET ...
#define STATX_BUFFER ...
#define MNT_ID_OFFSET ...
#define SIGINFO_SIZE ...
#define SPAWN_SIZE ...
"""
FACTS_SOURCE = """
#include <stddef.h>
#include <signal.h>
#define SIGSET_SIZE sizeof(sigset_t)
#define STATFS_SIZE sizeof(struct statfs)
#define F_TYPE_OFFSET offsetof(struct statfs, f_type)
#define STATX_BUFFER sizeof(struct statx)
#define MNT_ID_OFFSET offsetof(struct statx, stx_mnt_id)
#define SIGINFO_SIZE sizeof(struct signalfd_siginfo)
#define SPAWN_SIZE (sizeof(posix_spawnattr_t) + sizeof(posix_spawn_file_actions_t))
"""
needs_compiler = pytest.mark.skipif(
    not shutil.which("cc") or not Path(sysconfig.get_path("include"), "Python.h").exists(),
    reason="needs a C compiler and Python's headers",
)


@pytest.fixture(scope="module")
def compile_in_api_mode(tmp_path_factory: pytest.TempPathFactory) -> Any:
    def build(declarations: str) -> ModuleType:
        """Compile the declarations against the headers; a prototype that contradicts them is an error."""
        name = f"declared_{next(NUMBERS)}"
        ffi = cffi.FFI()
        ffi.cdef(declarations + FACTS)
        source = "#undef _GNU_SOURCE\n" + build_ffi.HEADERS + FACTS_SOURCE  # Python.h defines it too
        ffi.set_source(name, source, extra_compile_args=["-Werror"])
        folder = tmp_path_factory.mktemp(name)
        return load(name, Path(ffi.compile(tmpdir=str(folder))))

    return build


@pytest.fixture(scope="module")
def compiled(compile_in_api_mode: Any) -> Any:
    return compile_in_api_mode(build_ffi.DECLARATIONS)


def test_the_committed_output_is_current(tmp_path: Path) -> None:
    written = tmp_path / "_generated_ffi.py"
    build_ffi.builder().emit_python_code(str(written))
    assert written.read_bytes() == Path(_generated_ffi.__file__).read_bytes(), "run python build_ffi.py"


def test_the_output_is_written_where_asked(tmp_path: Path) -> None:
    written = tmp_path / "out.py"
    subprocess.run([sys.executable, ROOT / "build_ffi.py", written], check=True)
    assert written.read_bytes() == build_ffi.OUTPUT.read_bytes()


def test_this_test_sees_all_declarations() -> None:
    declared = build_ffi.DECLARATIONS
    assert len(CONSTANTS) == declared.count("#define") > 0
    assert len(FUNCTIONS) == declared.count(");") > 0


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), CONSTANTS)
def test_constant(compiled: Any, name: str, value: str) -> None:
    """Reading one that is declared with a number makes cffi compare it with the header's."""
    assert getattr(compiled.lib, name) == int(value)


@needs_compiler
@pytest.mark.slow
def test_a_wrong_constant_is_found(compile_in_api_mode: Any) -> None:
    name, value = CONSTANTS[0]
    wrong = build_ffi.DECLARATIONS.replace(f"{name} {value}", f"{name} {int(value) + 1}")
    compiled = compile_in_api_mode(wrong)
    with pytest.raises(compiled.ffi.error, match=name):
        getattr(compiled.lib, name)


@needs_compiler
@pytest.mark.slow
def test_layouts(compiled: Any) -> None:
    ours, theirs = _generated_ffi.ffi, compiled.ffi
    structs = re.findall(r"struct (\w+) \{", build_ffi.DECLARATIONS)
    assert structs
    for name in structs:
        mine, its = ours.typeof(f"struct {name}"), theirs.typeof(f"struct {name}")
        assert ours.sizeof(mine) == theirs.sizeof(its)
        fields = [
            [(field, at.offset, ffi.sizeof(at.type)) for field, at in kind.fields]
            for ffi, kind in ((ours, mine), (theirs, its))
        ]
        assert fields[0] == fields[1]


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_function_is_there(compiled: Any, name: str) -> None:
    assert compiled.ffi.addressof(compiled.lib, name)
    assert hasattr(_generated_ffi.ffi.dlopen(None), name)


@needs_compiler
@pytest.mark.slow
def test_buffers_are_large_enough(compiled: Any) -> None:
    lib, word = compiled.lib, _generated_ffi.ffi.sizeof("unsigned long")
    assert lib.F_TYPE_OFFSET == 0
    assert 64 * word >= lib.STATFS_SIZE  # kernel/process.py
    assert lib.STATX_BUFFER <= 32 * 8
    assert lib.MNT_ID_OFFSET == 18 * 8
    assert lib.SIGSET_SIZE == 128  # kernel/signals.py
    assert lib.SIGINFO_SIZE == 128
    assert 128 * word >= lib.SPAWN_SIZE  # kernel/spawn.py: either, where both would fit
