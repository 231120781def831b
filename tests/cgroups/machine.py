"""What the kernel says of this machine's cgroups: nothing of muontrap is asked.

A hierarchy is known by a controller, `V2` for the unified one. `HOME` is the group, the same in each
hierarchy, below which these tests make theirs: the root for root, for others the parent of their own group
(the other leaves of what was delegated to them).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

V2 = ""
CONTROLLERS_V1 = {"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"}
IS_UML = bool(os.environ.get("MUONTRAP_MACHINE"))  # far slower, and times are in ticks of 10 ms


def groups_of(pid: int | str = "self") -> dict[str, str]:
    """The groups of a process: hierarchy -> path, "/" for the root."""
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text("utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _mounts() -> dict[str, Path]:
    found = {}
    for line in Path("/proc/self/mountinfo").read_text("utf-8").splitlines():
        mount, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        names = {"cgroup": CONTROLLERS_V1 & {*options.split(",")}, "cgroup2": {V2}}.get(kind, set())
        found.update(dict.fromkeys(names, Path(mount.split()[4])))
    return found


def _home() -> str:
    if os.geteuid() == 0:
        return ""
    paths = {os.path.dirname(path).strip("/") for name, path in groups_of().items() if name in MOUNTS}
    return paths.pop() if len(paths) == 1 else ""


def _can_be_ours(point: Path) -> bool:
    probe = point / HOME / f"probe-{os.getpid()}"
    try:
        probe.mkdir()
    except OSError:
        return False
    probe.rmdir()
    return True


def _version_of(controller: str) -> int:
    """1 or 2, 0 where the tests can't have it."""
    if controller in OURS:
        return 1
    with contextlib.suppress(OSError, KeyError):
        file = OURS[V2] / HOME / "cgroup.controllers"
        return 2 if controller in file.read_text("ascii").split() else 0
    return 0


MOUNTS: Mapping[str, Path] = _mounts()
HOME: str = _home()
# Hierarchies in which the tests can make groups.
OURS: Mapping[str, Path] = {name: point for name, point in sorted(MOUNTS.items()) if _can_be_ours(point)}
VERSION: Mapping[str, int] = {name: _version_of(name) for name in ("memory", "cpu", "pids", "io", "cpuset")}
VERSION = {**VERSION, "io": VERSION["io"] or _version_of("blkio")}
if V2 in OURS:  # what groups in HOME can limit, and give to groups in them
    for _name in (OURS[V2] / HOME / "cgroup.controllers").read_text("ascii").split():
        with contextlib.suppress(OSError):
            (OURS[V2] / HOME / "cgroup.subtree_control").write_text(f"+{_name}", "ascii")
