"""Where a command's cgroup can be, what it is told, and what it says: v1, v2 and both at once.

The host chooses directories and settings, and says what can't be before anything is started; the guard
makes the directories, and is the only one that removes them.
"""

from __future__ import annotations

import errno
import os

from muontrap.containment.groups import KEPT, PREFIX, write_file
from muontrap.containment.processes import read
from muontrap.errors import ContainmentError, ProtocolError
from muontrap.host.delegation import bases, below, discover, is_threaded, refusal, why_not
from muontrap.logic.accounting import (
    FILES_V1,
    FILES_V2,
    CgroupStatistics,
    merge,
    out_of_memory,
    statistics_v1,
    statistics_v2,
)
from muontrap.logic.limits import (
    Limits,
    controller_of,
    from_files_v1,
    from_files_v2,
    limit_files,
    settings_v1,
    settings_v2,
    without_counterpart_v1,
)
from muontrap.logic.wire import Placement, Readings, decode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Literal

    from muontrap.logic.command import Command
    from muontrap.logic.hierarchy import Layout, Place
    from muontrap.logic.limits import Setting

# Which v1 hierarchy contains best, where there is no v2: in the first, what forks can be held.
_CONTAINING = ("freezer", "pids", "memory", "cpu", "cpuacct")


class Cgroup:
    """The cgroup of a running command: `Process.cgroup`.

    Attributes:
        path: its directory; the one of v2 where it is in several hierarchies.
        paths: all of them: v1 controller -> directory, and "" for v2.
    """

    def __init__(self, paths: Mapping[str, str], *, oom_group_v1: bool) -> None:
        self.paths: Mapping[str, str] = paths
        self.path: str = paths.get("") or next(iter(paths.values()))
        self._oom_group_v1 = oom_group_v1

    def read(self, file: str) -> str:
        """Return the content of a file such as "memory.peak", without the newline at its end.

        Raises:
            ValueError: that is no name of a file.
            FileNotFoundError: the kernel has no such file here, or the command has ended.
        """
        return self._read(file).decode("utf-8", "replace").removesuffix("\n")

    def write(self, file: str, value: str | int) -> None:
        """Write to a file such as "memory.max".

        Raises:
            ValueError: that is no name of a file.
            OSError: the kernel refuses that; it names the file and the value.
        """
        path = self._file(file)
        try:
            write_file(path, str(value))
        except OSError as error:
            raise refusal(error.errno or 0, path, str(value)) from error

    def statistics(self) -> CgroupStatistics:
        """Return what it has used until now.

        Raises:
            FileNotFoundError: the command has ended: `CompletedProcess.cgroup` has the last figures.
        """
        self._check_there()
        return self.statistics_of(self._contents(self.readings()))

    def limits(self) -> Limits:
        """Return the limits that are in force, in a form that another launch takes.

        Raises:
            FileNotFoundError: the command has ended.
        """
        self._check_there()
        found = Limits()
        for version, parse in ((1, from_files_v1), (2, from_files_v2)):
            directories = self._directories(version)
            paths = [f"{at}/{file}" for at in directories for _, file in limit_files(version)]
            files = {os.path.basename(path): text.decode() for path, text in self._contents(paths).items()}
            found = found.beside(parse(files))
        if found.memory_max is not None and found.memory_oom_group is None:
            return Limits(memory_oom_group=self._oom_group_v1).beside(found)
        return found

    def readings(self) -> list[str]:
        """Return the files that `statistics` looks at."""
        names = [(at, name) for at in self._directories(2) for name in FILES_V2]
        for controller, at in self.paths.items():
            names += [(at, name) for name in FILES_V1.get(controller, ())]
        return list(dict.fromkeys(f"{at}/{name}" for at, name in names))

    def statistics_of(self, files: Mapping[str, bytes]) -> CgroupStatistics:
        """Return the figures in path -> content of `readings`."""
        found = [
            {os.path.basename(path): text for path, text in files.items() if os.path.dirname(path) in at}
            for at in (self._directories(1), self._directories(2))
        ]
        hz = os.sysconf("SC_CLK_TCK")
        return merge(statistics_v1(found[0], hz), statistics_v2(found[1]))

    def __repr__(self) -> str:
        return f"Cgroup({self.path!r})"

    def _check_there(self) -> None:
        if not os.path.isdir(self.path):
            raise FileNotFoundError(errno.ENOENT, "its cgroup is removed: the command has ended", self.path)

    def _directories(self, version: int) -> set[str]:
        return {at for controller, at in self.paths.items() if bool(controller) == (version == 1)}

    def _file(self, name: str) -> str:
        controller = name.partition(".")[0]
        if "/" in name or "\0" in name or not name.strip("."):
            raise ValueError(f"{name!r} is no name of a cgroup's file, such as 'memory.max'")
        return f"{self.paths.get(controller, self.path)}/{name}"

    def _read(self, name: str) -> bytes:
        return read(self._file(name))

    def _contents(self, paths: Iterable[str]) -> dict[str, bytes]:
        found = {}
        for path in paths:
            try:
                found[path] = read(path)
            except OSError:
                pass  # not of this kernel, or not of this group
        return found


class Placing:
    """What the guard is told of one command's cgroup, and what it means when it refuses."""

    def __init__(self, cgroup: Cgroup, placement: Placement, *, version: int) -> None:
        self.cgroup = cgroup
        self.placement = placement
        self.version = version

    def refused(self, code: int, path: str) -> OSError:
        """Return the exception for a file that the guard could not write, or a directory."""
        texts = list(map(os.fsdecode, self.placement.settings))
        values = dict(zip(texts[::4] + texts[2::4], texts[1::4] + texts[3::4], strict=True))
        return refusal(code, path or f"{self.cgroup.path}/cgroup.procs", values.get(path, ""))

    def outcome(self, data: bytes) -> tuple[CgroupStatistics | None, Literal["", "limit", "outside"]]:
        """Return the last figures, and whether an OOM killer took processes, from a `Readings`."""
        try:
            readings = decode(data)
            assert isinstance(readings, Readings)
            before, after = (
                self.cgroup.statistics_of({os.fsdecode(path): text for path, text in files.items()})
                for files in (readings.before, readings.after)
            )
        except ProtocolError:
            return None, ""  # a kernel of the future: no reason to lose the result
        return after, out_of_memory(after, before if readings.before else None)


def place(command: Command, guard_id: int) -> Placing | None:
    """Return what a command asks for; None where it doesn't, or "auto" finds nothing.

    Raises:
        ContainmentError: this machine or this user can't have that.
    """
    limits = command.limits or Limits()
    if limits.memory_max is not None and limits.memory_oom_group is None:
        limits = limits.replace(memory_oom_group=True)
    try:
        return _Choice(command, limits, discover()).placing(guard_id)
    except (ContainmentError, ProtocolError, OSError, ValueError):
        if command.insists_on_cgroup:
            raise
        return None


class _Choice:
    """Hierarchies and directories for one command."""

    def __init__(self, command: Command, limits: Limits, found: Layout) -> None:
        self._command = command
        self._layout = found
        v1 = [name for name in limits.as_dict() if controller_of(name, 1) in found.controllers]
        self._limits_v1 = _only(limits, v1)
        self._limits_v2 = _only(limits, [name for name in limits.as_dict() if name not in v1])
        asked = [*command.cgroup_controllers, *(controller for controller, _, _ in command.cgroup_sets)]
        self._v1 = {controller_of(name, 1) for name in v1} | {
            name for name in asked if name in found.controllers
        }
        self._v2 = {controller_of(name, 2) for name in self._limits_v2.as_dict()}
        self._v2 |= {name for name in asked if name not in found.controllers and name != "cgroup"}
        self._check()

    def placing(self, guard_id: int) -> Placing:
        prefix = KEPT if self._command.kill_mode == "process" else PREFIX
        name = f"{prefix}{guard_id:x}-{os.urandom(5).hex()}"
        paths = {
            controller: self._directory(self._layout.controllers[controller], set(), name)
            for controller in sorted(self._v1)
        }
        paths.update(self._containing(name, needed=not paths))
        points = {self._layout.controllers[name].point: path for name, path in paths.items() if name}
        for controller, place in self._layout.controllers.items():
            if place.point in points:  # mounted together: it has figures to be read, too
                paths.setdefault(controller, points[place.point])
        cgroup = Cgroup(paths, oom_group_v1=bool(self._limits_v1.memory_oom_group))
        placement = Placement(
            directories=[os.fsencode(self._mark + path) for path in dict.fromkeys(paths.values())],
            settings=[os.fsencode(text) for setting in self._settings(cgroup) for text in setting],
            readings=list(map(os.fsencode, cgroup.readings())),
            oom_group=os.fsencode(paths["memory"]) if self._limits_v1.memory_oom_group else b"",
        )
        return Placing(cgroup, placement, version=2 if "" in paths else 1)

    @property
    def _mark(self) -> str:
        return "=" if self._command.cgroup_path else "+"

    def _check(self) -> None:
        lacking = without_counterpart_v1(self._limits_v1)
        if lacking:
            controller = controller_of(lacking[0], 1)
            raise ContainmentError(
                f"{lacking[0]}: cgroup v1, which has the {controller} controller here "
                f"({self._layout.controllers[controller].point}), can't do that; boot with "
                f"cgroup_no_v1={controller} to have it in v2"
            )
        if self._v2 and not self._layout.unified:
            missing = ", ".join(sorted(self._v2))
            raise ContainmentError(
                f"no cgroup controller {missing} on this machine: it has no v2 hierarchy, and of v1 "
                f"{', '.join(self._layout.controllers) or 'none'}; mount -t cgroup2 none /sys/fs/cgroup"
            )

    def _containing(self, name: str, *, needed: bool) -> dict[str, str]:
        """Return the hierarchy that contains: v2, or v1's freezer, even where no limit needs it."""
        unified = self._layout.unified
        reasons = []
        if unified:
            try:
                return {"": self._directory(unified, self._v2, name)}
            except ContainmentError as error:
                if self._v2:
                    raise
                reasons.append(str(error))
        for controller in _CONTAINING:
            if controller in self._layout.controllers and controller not in self._v1:
                try:
                    return {controller: self._directory(self._layout.controllers[controller], set(), name)}
                except ContainmentError as error:
                    reasons.append(str(error))
        if needed:
            raise ContainmentError("; ".join(reasons) or "no cgroup hierarchy is mounted on this machine")
        return {}

    def _directory(self, place: Place, controllers: set[str], name: str) -> str:
        """Return the path of the command's group in a hierarchy."""
        path = self._command.cgroup_path
        if path:
            parent, _, name = path.rpartition("/")
            directory = below(place, parent)
            there = os.path.isdir(f"{directory}/{name}")
            self._refuse(
                is_threaded(f"{directory}/{name}") if there else why_not(place, directory, controllers)
            )
            return f"{directory}/{name}"
        reasons = []
        for base in bases(place, self._command.cgroup_base):
            reason = why_not(place, base, controllers)
            if not reason:
                return f"{base}/{name}"
            reasons.append(reason)
        self._refuse("; ".join(reasons) or f"this process is in no group below {place.point}")
        raise AssertionError

    def _refuse(self, reason: str) -> None:
        if reason:
            raise ContainmentError(reason)

    def _settings(self, cgroup: Cgroup) -> list[tuple[str, str, str, str]]:
        settings = [*self._cpuset(cgroup)]
        for setting in settings_v1(self._limits_v1):
            settings.append(_quadruple(cgroup.paths[setting.controller], setting))
        for setting in settings_v2(self._limits_v2):
            settings.append(_quadruple(cgroup.paths[""], setting))
        for controller, file, value in self._command.cgroup_sets:
            settings.append((f"{cgroup.paths.get(controller, cgroup.path)}/{file}", value, "", ""))
        return settings

    def _cpuset(self, cgroup: Cgroup) -> list[tuple[str, str, str, str]]:
        """A new v1 group has no CPUs and no memory nodes, and then no process can join it."""
        path = cgroup.paths.get("cpuset", "")
        if not path or os.path.isdir(path):
            return []
        base = os.path.dirname(path)
        files = ("cpuset.cpus", "cpuset.mems")
        return [(f"{path}/{file}", read(f"{base}/{file}").decode().strip(), "", "") for file in files]


def _only(limits: Limits, names: Iterable[str]) -> Limits:
    chosen = set(names)
    return Limits(**{name: value for name, value in limits.as_dict().items() if name in chosen})


def _quadruple(directory: str, setting: Setting) -> tuple[str, str, str, str]:
    other = setting.instead
    instead = (f"{directory}/{other.file}", other.value) if other else ("", "")
    return (f"{directory}/{setting.file}", setting.value, *instead)
