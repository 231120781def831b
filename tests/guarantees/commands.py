"""The misbehaving commands that every guarantee is tried on: name -> command lines of one host, and
what they need.

A command here stays until it is stopped (`COMMANDS`), or its main process ends by itself and leaves
something behind (`LEAVERS`). The word "ready" is said once for each command line.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from arena import NOBODY, PROGRAMS, Arena

Argv = list[str]
ORDINARY = 54321  # a uid that has no account, and no process but those of these tests
Maker = Callable[[Arena], list[Argv]]


def argv(arena: Arena, name: str, *arguments: str) -> Argv:
    """The command line of one of tests/programs."""
    start = ["/bin/sh"] if name.endswith(".sh") else [sys.executable, "-S", "-E"]
    return [*start, str(PROGRAMS / name), str(arena.ready), *arguments]


def _plain(name: str, *arguments: str) -> Maker:
    return lambda arena: [argv(arena, name, *arguments)]


def need_root() -> None:
    if os.getuid():
        pytest.skip("needs root")


def need_program(name: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if not path:
        pytest.skip(f"needs {name}")
    return path


@functools.cache
def python_for_anybody() -> str:
    """An interpreter, like the one that runs the tests, that every user may start: not one below /root."""
    setpriv = need_program("setpriv")
    version = sys.version_info[:2]
    for python in (sys.executable, f"/usr/bin/python{version[0]}.{version[1]}"):
        line = [setpriv, f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups", "/bin/sh", "-c"]
        line.append(f'"{python}" -S -c "import sys; sys.exit(sys.version_info[:2] != {version})"')
        if os.path.exists(python) and not subprocess.run(line, capture_output=True, check=False).returncode:
            return python
    pytest.skip("no other user may start a Python of this version here")


def ordinary_user(*limits: str) -> dict[str, Any]:
    """For `Arena.host`: run the host as a user of its own, with these options of prlimit."""
    user = [need_program("setpriv"), f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups"]
    before = [need_program("prlimit"), *limits, *user] if limits else user
    return {"before": before, "python": python_for_anybody()}


def set_user_id_copy(arena: Arena, program: str, *, owner: int) -> str:
    need_root()
    copy = arena.copy_program(program, mode=0o4755, owner=owner)
    if os.statvfs(copy).f_flag & os.ST_NOSUID:
        pytest.skip("temporary files lie on a nosuid file system")
    return copy


def set_user_id(*how: str) -> Maker:
    def make(arena: Arena) -> list[Argv]:
        sleep = set_user_id_copy(arena, "/bin/sleep", owner=NOBODY)
        return [argv(arena, "exec_program.py", *how, sleep, "1000")]

    return make


def su(*arguments: str, beside: bool = False) -> Maker:
    def make(arena: Arena) -> list[Argv]:
        need_root()
        need_program("su")
        others = [argv(arena, "sleeper.py")] if beside else []
        return [*others, argv(arena, "su_daemon.sh", *arguments, str(arena.folder / "daemonized"))]

    return make


def pid_namespace(*arguments: str) -> Maker:
    def make(arena: Arena) -> list[Argv]:
        unshare = need_program("unshare")
        if subprocess.run([unshare, "-Upf", "true"], capture_output=True).returncode:
            pytest.skip("user namespaces are not allowed here")
        return [argv(arena, "enter_pid_namespace.sh", *arguments, str(arena.folder / "entered"))]

    return make


def nginx(*arguments: str) -> Maker:
    def make(arena: Arena) -> list[Argv]:
        need_program("nginx")
        return [argv(arena, "nginx.sh", str(arena.folder), *arguments)]

    return make


COMMANDS: dict[str, Maker] = {
    "sleeper": _plain("sleeper.py"),
    "ignore-signals": _plain("ignore_signals.py"),
    "tree-of-sessions": _plain("tree_of_sessions.py"),
    "daemon": _plain("daemon.py"),
    "stopped-children": _plain("stopped_children.py"),
    "stopped": _plain("stopped.py"),
    "chain": _plain("chain.py"),
    "fork-bomb": _plain("fork_bomb.py"),
    "daemonize-on-term": _plain("daemonize_on_term.py"),
    "main-thread-ends": _plain("main_thread_ends.py"),
    "set-user-id": set_user_id(),
    "set-user-id-child": set_user_id("--wait"),
    "su-daemon": su(),
    "su-daemon-beside": su(beside=True),
    "su-daemon-left-beside": su("exit", beside=True),
    "pid-namespace": pid_namespace(),
    "traced-child": _plain("traced_child.py"),
    "clone-parent": _plain("clone_parent.py"),
    "unmarked-daemon": _plain("shed_mark.py"),
    "unmarked-chain": _plain("shed_mark.py", "chain"),
    "nginx": nginx(),
}

LEAVERS: dict[str, Maker] = {
    "ignore-signals": _plain("ignore_signals.py", "exit"),
    "tree-of-sessions": _plain("tree_of_sessions.py", "exit"),
    "daemon": _plain("daemon.py", "exit"),
    "daemon-holding-stdout": _plain("daemon.py", "exit", "hold"),
    "stopped-children": _plain("stopped_children.py", "exit"),
    "chain": _plain("chain.py", "exit"),
    "main-thread-ends": _plain("main_thread_ends.py", "exit"),
    "set-user-id": set_user_id("--child"),
    "su-daemon": su("exit"),
    "pid-namespace": pid_namespace("exit"),
    "traced-child": _plain("traced_child.py", "exit"),
    "clone-parent": _plain("clone_parent.py", "exit"),
    "unmarked-daemon": _plain("shed_mark.py", "exit"),
    "unmarked-chain": _plain("shed_mark.py", "exit", "chain"),
    "nginx": nginx("exit"),
}


def locks_limit(pid: int) -> str:
    """The soft RLIMIT_LOCKS of a process: where muontrap's mark is."""
    for line in Path(f"/proc/{pid}/limits").read_text(encoding="ascii").splitlines():
        if line.startswith("Max file locks"):
            return line.split()[3]
    raise AssertionError(f"/proc/{pid}/limits has no file locks")
