"""Ground: an arena with the same group in each hierarchy, in which muontrap makes the groups of its commands.

    HOME/ground-PID-N           `base`: what a test gives as cgroup_base
    ├── host                    host programs, their guards and watches
    └── muontrap-...            commands

So the kernel's lists below it are all processes of a test, also those that have left one of the hierarchies;
and its directories are all groups that were made. A machine without cgroups has an ordinary arena.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arena import Arena, read_stat
from machine import HOME, MOUNTS, OURS, V2, groups_of

import muontrap

_numbers = itertools.count(1)
BOUND = 60.0  # seconds, for what ends by itself; a machine of user-mode-linux is slow


class Tree:
    """The same group in each hierarchy; what `Arena` needs to know of its processes."""

    def __init__(self) -> None:
        self.base = f"{HOME}/ground-{os.getpid()}-{next(_numbers)}".strip("/")
        self.roots = [point / self.base for point in dict.fromkeys(OURS.values())]
        for root in self.roots:
            self._make(root)
            self._make(root / "host")

    @staticmethod
    def _make(path: Path) -> None:
        path.mkdir()
        for name in ("cpuset.cpus", "cpuset.mems"):  # of v1: empty in a new group, which then takes nobody
            if (path / name).exists() and not (path / "cgroup.controllers").exists():
                (path / name).write_text((path.parent / name).read_text("ascii"), "ascii")

    def enter(self, argv: Sequence[str]) -> list[str]:
        entrances = [str(root / "host" / "cgroup.procs") for root in self.roots]
        script = 'while [ "$1" != -- ]; do echo $$ >"$1" || exit; shift; done; shift; exec "$@"'
        return ["/bin/sh", "-c", script, "sh", *entrances, "--", *argv]

    def folders(self) -> list[Path]:
        """All its directories, those below before those above."""
        return [Path(folder) for root in self.roots for folder, _, _ in os.walk(str(root), topdown=False)]

    def groups(self) -> list[str]:
        """Its directories, but for what the tests made."""
        own = {*self.roots, *(root / "host" for root in self.roots)}
        return sorted(str(folder) for folder in self.folders() if folder not in own)

    def pids(self) -> set[int]:
        found: set[int] = set()
        for folder in self.folders():
            with contextlib.suppress(OSError):
                found.update(map(int, (folder / "cgroup.procs").read_text("ascii").split()))
        return found

    def freeze(self, *, frozen: bool) -> None:
        """Of each group: a command may have frozen one of its own."""
        for folder in self.folders():
            for name, values in ("freezer.state", ("THAWED", "FROZEN")), ("cgroup.freeze", ("0", "1")):
                with contextlib.suppress(OSError):
                    if (folder / name).exists():
                        (folder / name).write_text(values[frozen], "ascii")

    def remove(self) -> None:
        for folder in self.folders():
            with contextlib.suppress(OSError):
                folder.rmdir()


class Ground(Arena):
    """An arena whose groups are known to the test. `base` is None where there are no cgroups."""

    def __init__(self) -> None:
        super().__init__()
        self.tree: Tree | None = None
        self.base: str | None = None
        if OURS:
            self.ledger.remove()
            self.ledger = self.tree = Tree()  # type: ignore[assignment]
            self.base = self.tree.base

    def run(self, *args: str, **options: Any) -> muontrap.CompletedProcess:
        """Run a command, whose cgroup is to be here, to its end."""
        return self.launcher(*args, **options).run(capture_output=True, timeout=BOUND)

    def launch(self, *args: str, **options: Any) -> muontrap.Process:
        """Start a command, whose cgroup is to be here."""
        return self.launcher(*args, **options).launch(timeout=BOUND)

    def launcher(self, *args: str, **options: Any) -> muontrap.Launcher:
        if self.base and "cgroup_path" not in options:
            options.setdefault("cgroup_base", self.base)
        return muontrap.Launcher(args, **{"text": True, "delay_to_sigkill": 0.05, **options})

    def groups(self) -> list[str]:
        """Directories that muontrap, or a command, has made here."""
        return self.tree.groups() if self.tree else []

    def make(self, name: str, controller: str) -> Path:
        """A group of the test's own, in the hierarchy of a controller, that can limit what it can."""
        above = self.folder_of(controller)
        if (above / "cgroup.subtree_control").exists() and controller:
            (above / "cgroup.subtree_control").write_text(f"+{controller}", "ascii")
        (above / name).mkdir()
        return above / name

    def groups_of(self, pid: int) -> set[str]:
        """The groups here that a process is in."""
        everywhere = {str(group_of(pid, name)) for name in OURS}
        return {group for group in everywhere if f"/{self.base}/" in group}

    def folder_of(self, controller: str) -> Path:
        """This ground in the hierarchy of a controller; in v2, where v1 has it not."""
        return OURS.get(controller, OURS.get(V2, Path("/nowhere"))) / str(self.base)

    def assert_clean(self) -> None:
        """Nothing is left: no process, no group."""
        self.assert_left({host.pid for host in self.hosts} | self.of_muontrap())
        assert not self.groups()

    def of_muontrap(self) -> set[int]:
        """Guards and watches."""
        watches = set(self.named("muontrap-watch"))
        guards = {pid for pid in self.named("muontrap-guard") if read_stat(f"/proc/{pid}/stat")[1] in watches}
        return watches | guards

    def guard(self) -> int:
        """The one guard: a command is called so, too, until its program is executed."""
        (guard,) = self.of_muontrap() - {self.the("muontrap-watch")}
        return guard


def group_of(pid: int, controller: str) -> Path:
    """The directory of the group that a process is in, by the kernel."""
    name = controller if controller in MOUNTS else V2
    return MOUNTS[name] / groups_of(pid)[name].strip("/")
