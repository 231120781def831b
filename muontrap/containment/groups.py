"""A command's cgroup: made, locked as ours, joined, killed, read and removed. See cgroups(7).

It is one directory in each hierarchy that the command needs.  Whose a directory is, its lock says
(flock(2)): the guard that made it holds it, and what nobody holds was left behind by a dead guard.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select

from muontrap.containment.processes import NO_MORE, Held, Pack, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

# Names of directories that are removed at the end, each with two hexadecimal numbers after it; what is
# in one that is kept is not killed for that.
PREFIX, KEPT = "muontrap-", "muontrap-kept-"
_DIGITS = 10

_PROCS = "cgroup.procs"
_SIGKILL = 9
_READ_SIZE = 65536
# Another guard may take a new directory, not locked yet, for one that was left behind.
_TRIES = 50
# Between two strikes at an abandoned group.
_PAUSE_MS = 5
_STRIKES = 40
# Looks at who is in a group, each of which opens those that are new.
_ROUNDS = 5


class Directory:
    """A directory of one hierarchy, held open and locked."""

    __slots__ = ("fd", "made", "path")

    def __init__(self, path: str, fd: int, *, made: bool) -> None:
        self.path: str = path
        self.fd: int = fd
        self.made: bool = made

    @classmethod
    def make(cls, path: str, *, new: bool) -> Directory:
        """Make it, or without `new` take one over in which there is nothing."""
        made = False
        for _ in range(_TRIES):
            made = _make(path, new=new and not made) or made
            try:
                directory = cls._lock(path, made=made)
            except OSError:
                if made:
                    os.rmdir(path)
                raise
            if directory is None:
                select.poll().poll(1)  # whoever has it for a moment removes it
            elif made or not directory.is_in_use():
                return directory
            else:
                directory.close()
                raise OSError(errno.EBUSY, "there are processes in it", path)
        raise OSError(errno.EBUSY, "another program has locked it", path)

    @classmethod
    def abandoned(cls, path: str) -> Directory | None:
        """Return a directory that nobody holds, None for one that somebody does."""
        return cls._lock(path, made=True)

    @classmethod
    def _lock(cls, path: str, *, made: bool) -> Directory | None:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_ino == os.stat(path).st_ino:
                return cls(path, fd, made=made)
        except (BlockingIOError, FileNotFoundError):
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def pids(self) -> set[int]:
        """Return the processes in it and in groups below, which a command may have made."""
        found: set[int] = set()
        for folder in self._folders():
            try:
                found.update(map(int, _read(f"{folder}/{_PROCS}").split()))
            except OSError as error:
                if error.errno in NO_MORE:
                    raise
                # It is removed, or threaded: then its processes are listed in the group above.
        return found

    def is_in_use(self) -> bool:
        """Tell whether there is a process in it or below."""
        try:
            return b"populated 1" in _read(f"{self.path}/cgroup.events")
        except OSError:
            return bool(self.pids())  # v1

    def strike(self) -> None:
        """Kill what is in it, where the kernel can do that, else let nothing fork until it is thawed."""
        if not self.write_if_there("cgroup.kill", "1"):
            self.write_if_there("cgroup.freeze", "1")
            self.write_if_there("freezer.state", "FROZEN")

    def thaw(self) -> None:
        """Let what is in it go on, in the groups below too, whoever has frozen it."""
        try:
            for folder in self._folders():
                _write_if_there(f"{folder}/cgroup.freeze", "0")
                _write_if_there(f"{folder}/freezer.state", "THAWED")
        except OSError:
            pass  # no descriptor is left: the next look has some

    def write_if_there(self, name: str, value: str) -> bool:
        """Write to one of its files; return whether there is such a file, and it took that."""
        return _write_if_there(f"{self.path}/{name}", value)

    def remove(self) -> bool:
        """Remove it with what the command made below it; return False while the kernel refuses that."""
        if not self.made:
            return True
        try:
            if self.is_in_use():
                return False  # and what is below it, which may have been left alone on purpose, stays
            folders = list(self._folders())
        except OSError:
            folders = [self.path]  # no descriptor is left to read that with: the kernel refuses the removal
        for folder in reversed(folders):
            try:
                os.rmdir(folder)
            except FileNotFoundError:
                pass
            except OSError:
                return False
        return True

    def close(self) -> None:
        """Let go of it, and of its lock."""
        os.close(self.fd)

    def _folders(self) -> Iterator[str]:
        """Yield it and all groups below, each before those that are below it, however deep."""
        waiting = [self.path]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting += _below(folder)


def _below(folder: str) -> list[str]:
    try:
        # Each directory in it adds a link: its "..".
        if os.stat(folder).st_nlink <= 2:
            return []
        with os.scandir(folder) as found:
            return [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if error.errno in NO_MORE:
            raise
        return []  # it has been removed


class Group:
    """All directories of one command."""

    def __init__(self, directories: list[Directory]) -> None:
        self._directories = directories

    @classmethod
    def make(cls, plan: Iterable[tuple[str, bool]], settings: Sequence[Sequence[str]]) -> Group:
        """Make the directories, (path, whether it has to be new), and write the settings.

        A setting is (file, value), or (file, value, other file, its value) for a kernel that may not
        have the first.  `OSError` names the file that failed; nothing is left then.
        """
        group = cls([])
        try:
            for path, new in plan:
                group._directories.append(Directory.make(path, new=new))
            for setting in settings:
                _set(*setting)
        except BaseException:
            group.remove()
            group.close()
            raise
        return group

    def entrances(self) -> list[tuple[str, int]]:
        """Open what a process writes "0" to, to join: (path, descriptor) for each directory."""
        paths = [f"{directory.path}/{_PROCS}" for directory in self._directories]
        opened: list[tuple[str, int]] = []
        try:
            for path in paths:
                opened.append((path, os.open(path, os.O_WRONLY | os.O_CLOEXEC)))
        except BaseException:
            for _, fd in opened:
                os.close(fd)
            raise
        return opened

    def pids(self) -> set[int]:
        """Return the processes that are in any of them."""
        found: set[int] = set()
        return found.union(*(directory.pids() for directory in self._directories))

    def members(self) -> Iterator[Held]:
        """Yield the processes that are in any of them, opened.

        Raises:
            OSError: these are not all, for want of descriptors, or as they fork and exit too fast (`EAGAIN`).
        """
        with Pack() as opened:
            pids = self.pids()
            for _ in range(_ROUNDS):
                opened.take(map(Held.open, pids.difference(held.pid for held in opened)))
                pids = self.pids()  # again, for now none can become another's any more
                missed = pids.difference(held.pid for held in opened)
                if opened.lacking or not missed:
                    break
            members = [held for held in opened if held.pid in pids]
            opened[:] = [held for held in opened if held.pid not in pids]
            yield from members
            if opened.lacking:
                raise opened.lacking
            if missed:
                raise OSError(errno.EAGAIN, "processes come and go", self._directories[0].path)

    def is_in_use(self) -> bool:
        """Tell whether a process is in any of them, or may be: no descriptor is left to read that with."""
        try:
            return any(directory.is_in_use() for directory in self._directories)
        except OSError:
            return True

    def strike(self) -> None:
        """Kill all where the kernel can do that, else let none fork until `release`."""
        for directory in self._directories:
            directory.strike()

    def release(self) -> None:
        """Let go on what `strike` held, or somebody froze: frozen by v1, a killed process does not die."""
        for directory in self._directories:
            directory.thaw()

    def remove(self) -> bool:
        """Remove all that were made, and let go of them; return False while one can't be."""
        # Not all(): each is tried.
        removed = False not in [directory.remove() for directory in self._directories]
        if removed:
            self.close()
        return removed

    def close(self) -> None:
        """Let go of them."""
        for directory in self._directories:
            directory.close()
        self._directories = []


class OomKills:
    """Of a v1 group: v1 has no `memory.oom.group`, so who wants that has to be told of each OOM kill.

    `fd` becomes readable when the group is out of memory, which is just before the kill.
    See <kernel>/Documentation/admin-guide/cgroup-v1/memory.rst, "OOM Control".
    """

    def __init__(self, directory: str) -> None:
        self._control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        self.fd: int = -1
        try:
            self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            write_file(f"{directory}/cgroup.event_control", f"{self.fd} {self._control}")
        except BaseException:
            self.close()
            raise
        self._before = self._count()

    def has_grown(self) -> bool:
        """Tell whether a process was killed since this object was made."""
        return self._count() > self._before

    def close(self) -> None:
        """Let go of the group."""
        for fd in (self._control, self.fd):
            if fd >= 0:
                os.close(fd)

    def _count(self) -> int:
        try:
            text = os.pread(self._control, 4096, 0)
        except OSError:
            return 0  # ENODEV: the group has been removed
        return int(text.partition(b"oom_kill ")[2].split()[0])


def read_files(paths: Iterable[str], longest: int) -> dict[bytes, bytes]:
    """Return path -> content of those files that there are, and that are not longer."""
    found = {}
    for path in paths:
        try:
            text = _read(path)
        except OSError:
            continue  # another kernel has it, or has it not for this group
        if len(text) <= longest:
            found[os.fsencode(path)] = text
    return found


def remove_abandoned(base: str) -> None:
    """Remove what dead guards left in a directory, with the processes in it."""
    try:
        names = list(filter(_is_ours, os.listdir(base)))
    except OSError:
        return
    for name in names:
        try:
            directory = Directory.abandoned(f"{base}/{name}")
            if directory:
                _remove_abandoned(Group([directory]), kept=name.startswith(KEPT))
        except OSError:
            pass  # another user's, who has to do that


def _is_ours(name: str) -> bool:
    guard, _, number = name.removeprefix(KEPT).removeprefix(PREFIX).partition("-")
    return (
        name.startswith(PREFIX) and len(number) == _DIGITS and set(guard + number) <= set("0123456789abcdef")
    )


def _remove_abandoned(group: Group, *, kept: bool) -> None:
    try:
        for _ in range(1 if kept else _STRIKES):
            if group.remove():
                return
            if not kept:
                group.strike()
                with Pack() as members:
                    members.take(group.members())
                    send(members, _SIGKILL)
                group.release()
                select.poll().poll(_PAUSE_MS)
    finally:
        group.close()


def _make(path: str, *, new: bool) -> bool:
    try:
        os.mkdir(path)
    except FileExistsError:
        if new:
            raise
        return False
    return True


def _set(path: str, value: str, other: str, other_value: str) -> None:
    try:
        write_file(path, value)
    except FileNotFoundError:
        if not other:
            raise
        write_file(other, other_value)


def write_file(path: str, value: str) -> None:
    """Write to a file of a cgroup, in one piece; `OSError` names it."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, os.fsencode(value))
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None
    finally:
        os.close(fd)


def _write_if_there(path: str, value: str) -> bool:
    try:
        write_file(path, value)
    except OSError:
        return False
    return True


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        text = chunk = os.read(fd, _READ_SIZE)
        while chunk:
            chunk = os.read(fd, _READ_SIZE)
            text += chunk
        return text
    finally:
        os.close(fd)
