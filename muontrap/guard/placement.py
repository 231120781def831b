"""The cgroup of one command in the guard: made before there is a process, removed when there is none."""

from __future__ import annotations

import os

from muontrap.containment.groups import Group, OomKills, read_files, remove_abandoned
from muontrap.guard.spawn import StepFailed
from muontrap.logic.wire import Readings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muontrap.logic.wire import Placement

# What a record to the host has room for.
_LONGEST_READING, _ALL_READINGS = 2048, 7000


class Placed:
    """A command's group, what is to be read of it, and whether an OOM kill has to take all of it."""

    __slots__ = ("_before", "_paths", "group", "oom_kills")

    def __init__(self, placement: Placement) -> None:
        plan = [(os.fsdecode(name[1:]), name[:1] == b"+") for name in placement.directories]
        texts = list(map(os.fsdecode, placement.settings))
        self._paths = list(map(os.fsdecode, placement.readings))
        self._before: dict[bytes, bytes] = {}
        self.oom_kills: OomKills | None = None
        self.group: Group = Group.make(plan, list(zip(*[iter(texts)] * 4, strict=True)))
        try:
            if not all(new for _, new in plan):
                self._before = self._read()
            if placement.oom_group:
                self.oom_kills = OomKills(os.fsdecode(placement.oom_group))
        except BaseException:
            self.close()
            self.group.close()
            raise

    def readings(self) -> Readings:
        """Return what the files say."""
        return Readings(before=self._before, after=self._read())

    def close(self) -> bool:
        """Remove the group if nothing is in it; return whether it is removed."""
        if self.oom_kills:
            self.oom_kills.close()
            self.oom_kills = None
        return self.group.remove()

    def _read(self) -> dict[bytes, bytes]:
        found = {}
        room = _ALL_READINGS
        for path, text in read_files(self._paths, _LONGEST_READING).items():
            room -= len(path) + len(text)
            if room > 0:
                found[path] = text
        return found


class Placer:
    """Makes them, and sees to it that what dead guards left beside them is removed."""

    def __init__(self, tell_watch: Callable[[bytes], None]) -> None:
        self._tell_watch = tell_watch
        self._known: set[bytes] = set()

    def place(self, placement: Placement) -> Placed:
        """Make the group of a launch; `StepFailed` names the file that refused."""
        for name in placement.directories:
            if name[:1] == b"+":
                self._note(os.path.dirname(name[1:]))
        try:
            return Placed(placement)
        except OSError as error:
            path = error.filename if isinstance(error.filename, str) else ""
            raise StepFailed(error.errno or 0, "cgroup", path) from error

    def _note(self, directory: bytes) -> None:
        if directory not in self._known:
            self._known.add(directory)
            self._tell_watch(directory)
            remove_abandoned(os.fsdecode(directory))
