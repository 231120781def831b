"""`muontrap supervise`: a file's tree as the main process of an appliance or a container."""

from __future__ import annotations

import logging
import os

from muontrap.cli.report import say
from muontrap.cli.supervising import BAD_FILE, read
from muontrap.supervise.appliance import Appliance
from muontrap.supervise.config import changes
from muontrap.supervise.control import Control
from muontrap.supervise.directory import default_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muontrap.supervise.config import Plan
    from muontrap.supervise.supervisor import Supervisor


def supervise(path: str, directory: str | None) -> int:
    """Run it until it ends or a signal asks for that; return the exit status."""
    plan, status = read(path)
    if plan is None:
        return status
    name = os.path.basename(path).removesuffix(".toml")
    try:
        control = Control(directory or default_directory(name))
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return BAD_FILE
    # The journal has times of its own.
    when = "" if "JOURNAL_STREAM" in os.environ else "%(asctime)s "
    logging.basicConfig(level=logging.INFO, format=f"{when}%(name)s: %(message)s")
    root = plan.build()
    try:
        return Appliance(root, control, _Reload(path, plan, root).go, say).run()
    finally:
        control.close()


class _Reload:
    """Makes a running tree what the file says now."""

    def __init__(self, path: str, plan: Plan, root: Supervisor) -> None:
        self._path = path
        self._plan = plan
        self._root = root

    def go(self) -> None:
        """Change only what has changed; nothing, if the file is not right."""
        plan, _ = read(self._path)
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

    def _add(self, name: str) -> None:
        above, _, _ = name.rpartition("/")
        owner = self._root.child(above) if above else self._root
        owner.add(self._plan.build_child(name))  # type: ignore[union-attr]

    def _try(self, what: str, act: Callable[[str], object], name: str) -> bool:
        """Do one part; the others are done too, whatever the tree refuses, as one that ends does."""
        try:
            act(name)
        except (KeyError, OSError, ValueError) as error:
            say(f"{name} could not be {what}: {error.args[0] if isinstance(error, KeyError) else error}")
            return False
        return True
