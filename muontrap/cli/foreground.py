"""`muontrap supervise`: reads a file, and goes on as a program that has nothing of what that took.

What reads TOML, checks it and says what is wrong is 3 MB, of a process that is there for months and looks
at its file again when somebody says so.  So it is left by `execve`: the process stays the same, for systemd
and whoever started it.  A file is read again by a process of its own.
"""

from __future__ import annotations

import os
import pickle
import sys

import muontrap
from muontrap.cli.supervising import read
from muontrap.cli.tree import MARKER, Task, tend

_SETUP = "import sys; sys.path += sys.argv[1:3]; from muontrap.cli.tree import go_on; go_on(int(sys.argv[3]))"


def supervise(path: str, directory: str | None) -> int:
    """Run it until it ends or a signal asks for that; return the exit status."""
    plan, status = read(path)
    if plan is None:
        return status
    # Of ourselves, and of what we need besides the standard library.
    found = [muontrap.__path__[0], str(sys.modules["_cffi_backend"].__file__)]
    folders = [os.path.dirname(os.path.abspath(each)) for each in found]
    task = Task(plan, directory, [*sys.path, *folders], _name_of_process())
    if os.environ.pop(MARKER, None) is None:
        _go_on_afresh(task, folders)
    return tend(task)


def _go_on_afresh(task: Task, folders: list[str]) -> None:
    """Replace this program by one that tends the tree; return if that can't be."""
    if not sys.executable or getattr(sys, "frozen", False):
        return
    os.environ[MARKER] = "1"  # against an executable that is no Python, but a program that comes here again
    argv = [sys.executable, "-I", "-S", "-X", f"utf8={sys.flags.utf8_mode}", "-c", _SETUP, *folders]
    try:
        memory = os.memfd_create("muontrap-task", 0)
        with open(memory, "wb", closefd=False) as file:
            pickle.dump(task, file)
        os.lseek(memory, 0, os.SEEK_SET)
        os.execv(sys.executable, [*argv, str(memory), "supervise", task.plan.path])
    except OSError:
        del os.environ[MARKER]


def _name_of_process() -> str:
    """Return the name that `killall` and `ps` have, which `execve` changes."""
    with open("/proc/self/comm", encoding="utf-8", errors="surrogateescape") as file:
        return file.read().rstrip("\n")
