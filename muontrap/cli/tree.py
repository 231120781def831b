"""The tree of `muontrap supervise`, in the foreground; and what its file says when it is read again."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from muontrap.cli import occupy_standard_streams
from muontrap.cli.report import BY_SIGNAL, say
from muontrap.errors import MuontrapError
from muontrap.host.launcher import Launcher
from muontrap.logic.command import DEVNULL, PIPE
from muontrap.supervise import log
from muontrap.supervise.appliance import Appliance
from muontrap.supervise.control import Control
from muontrap.supervise.directory import default_directory
from muontrap.supervise.plan import Plan, changes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

    from muontrap.supervise.supervisor import Supervisor

MARKER = "MUONTRAP_GOES_ON"
_BAD_DIRECTORY = 2
_HAS_TIMES = "JOURNAL_STREAM" not in os.environ  # the journal has its own
_READ = "import sys; sys.path[:] = {!r}; from muontrap.cli.supervising import hand_out; hand_out(sys.argv[1])"


class Task:
    """What is to be run, and where.

    Attributes:
        plan: what the file says.
        directory: of the socket, None for the default.
        folders: where Python finds what reads a file.
        name: of the process.
    """

    def __init__(self, plan: Plan, directory: str | None, folders: list[str], name: str) -> None:
        self.plan: Plan = plan
        self.directory: str | None = directory
        self.folders: list[str] = folders
        self.name: str = name


def go_on(memory: int) -> NoReturn:
    """Do the task that was left by the program before in this process; exit with its status."""
    from _pickle import load  # the half of it that is small

    occupy_standard_streams()
    del os.environ[MARKER]
    with open(memory, "rb") as file:
        task: Task = load(file)
    with contextlib.suppress(OSError), open("/proc/self/comm", "wb") as comm:
        comm.write(os.fsencode(task.name))
    try:
        raise SystemExit(tend(task))
    except KeyboardInterrupt:  # before there was a handler
        raise SystemExit(BY_SIGNAL + signal.SIGINT) from None


def tend(task: Task) -> int:
    """Run it until it ends or a signal asks for that; return the exit status."""
    name = os.path.basename(task.plan.path).removesuffix(".toml")
    try:
        control = Control(task.directory or default_directory(name))
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return _BAD_DIRECTORY
    log.set_plain(_write_line)
    root = task.plan.build()
    _see_to_logging()
    try:
        return Appliance(root, control, _Reload(task, root).go, say).run()
    finally:
        control.close()


class _Reload:
    """Makes a running tree what the file says now."""

    def __init__(self, task: Task, root: Supervisor) -> None:
        self._path = task.plan.path
        self._plan = task.plan
        self._folders = task.folders
        self._root = root

    def go(self) -> None:
        """Change only what has changed; nothing, if the file is not right."""
        plan = self._read()
        if plan is None:
            say("nothing was changed")
            return
        todo = changes(self._plan, plan)
        if todo.needs_restart:
            say(f"{', '.join(todo.needs_restart)} of the supervisor itself: only a restart changes that")
        plan.settings = self._plan.settings  # which it still runs with
        self._plan = plan
        removed = sum(self._try("removed", self._root.remove, name) for name in todo.remove)
        added = sum(self._try("added", self._add, name) for name in todo.add)
        parts = [f"{removed} removed"] * bool(removed) + [f"{added} added"] * bool(added)
        say(f"{self._path} was read again: {', '.join(parts) or 'nothing has changed'}")

    def _read(self) -> Plan | None:
        """Read the file, in a process of its own that says what is wrong."""
        from _pickle import loads

        argv = [sys.executable, "-c", _READ.format(self._folders), self._path]
        try:
            result = Launcher(argv, stdin=DEVNULL, stdout=PIPE).run()
        except (MuontrapError, OSError) as error:
            say(f"{self._path} can't be read: {error}")
            return None
        if result.returncode != 0:
            return None
        plan: Plan = loads(result.stdout)
        return plan

    def _add(self, name: str) -> None:
        above, _, _ = name.rpartition("/")
        owner = self._root.child(above) if above else self._root
        child = self._plan.build_child(name)
        _see_to_logging()
        owner.add(child)  # type: ignore[union-attr]

    def _try(self, what: str, act: Callable[[str], object], name: str) -> bool:
        """Do one part; the others are done too, whatever the tree refuses, as one that ends does."""
        try:
            act(name)
        except (KeyError, OSError, ValueError) as error:
            say(f"{name} could not be {what}: {error.args[0] if isinstance(error, KeyError) else error}")
            return False
        return True


def _write_line(text: str) -> None:
    """Write to stderr what is said of the tree, as `logging` would."""
    when = ""
    if _HAS_TIMES:
        now = time.time()
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now)) + f",{int(now % 1 * 1000):03} "
    with contextlib.suppress(OSError):
        os.write(2, f"{when}{log.NAME}: {text}\n".encode(errors="backslashreplace"))


def _see_to_logging() -> None:
    """Have `logging` write all of it, once a daemon has use for that."""
    logging = sys.modules.get("logging")
    if logging:
        when = "%(asctime)s " if _HAS_TIMES else ""
        logging.basicConfig(level=logging.INFO, format=f"{when}%(name)s: %(message)s")
        log.set_plain(None)
