"""Where this machine's cgroup hierarchies are, and where in them a process is.

Parsers of /proc/PID/mountinfo (proc_pid_mountinfo(5)) and /proc/PID/cgroup (cgroups(7)), and the
`Layout` that both together come to.  No path is assumed.
"""

from __future__ import annotations

import sys

from muontrap.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Literal

# <kernel>/include/linux/cgroup_subsys.h: what else stands among a v1 mount's options is no controller.
_CONTROLLERS = {
    *("cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "net_cls", "perf_event"),
    *("net_prio", "hugetlb", "pids", "rdma", "misc", "dmem", "debug"),
}
_KINDS = {b"cgroup": 1, b"cgroup2": 2}
_OCTAL = b"01234567"


class _Value:
    """Attributes, compared and shown together."""

    __slots__: tuple[str, ...] = ()

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        shown = []
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, frozenset):  # sorted, for a set's own order differs among equal ones
                value = sorted(value)
            shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


class Mount(_Value):
    """A mounted cgroup hierarchy that a path can reach.

    Attributes:
        version: 1 or 2.
        controllers: of a v1 hierarchy, its name among them ("name=systemd"); empty for v2, where each
            group has its own (`cgroup.controllers`).
        root: the group that is seen at `point`; not "/" in a container, or for a bind mount.
        point: where it is mounted.
        writable: neither this mount nor its file system is read-only.
    """

    __slots__ = ("controllers", "point", "root", "version", "writable")

    def __init__(
        self, *, version: int, controllers: frozenset[str], root: str, point: str, writable: bool
    ) -> None:
        self.version: int = version
        self.controllers: frozenset[str] = controllers
        self.root: str = root
        self.point: str = point
        self.writable: bool = writable


class Place(_Value):
    """Where a process is in a hierarchy.

    Attributes:
        version: 1 or 2.
        point: where the hierarchy is mounted.
        own: directory of the process's own group; None when that group was removed, or is outside of
            what is mounted (a cgroup namespace, a container).
        writable: the mount is not read-only, which says nothing about permissions.
    """

    __slots__ = ("own", "point", "version", "writable")

    def __init__(self, *, version: int, point: str, own: str | None, writable: bool) -> None:
        self.version: int = version
        self.point: str = point
        self.own: str | None = own
        self.writable: bool = writable


class Layout(_Value):
    """What a machine has.

    Attributes:
        unified: the v2 hierarchy, None where it isn't mounted.  In a hybrid layout it may have no
            controllers.
        controllers: v1 controller -> its hierarchy.  Those with a name only ("name=systemd") have
            nothing to limit, and are left out.
    """

    __slots__ = ("controllers", "unified")

    def __init__(self, *, unified: Place | None, controllers: Mapping[str, Place]) -> None:
        self.unified: Place | None = unified
        self.controllers: Mapping[str, Place] = controllers

    @property
    def kind(self) -> Literal["v2", "v1", "hybrid", "none"]:
        """Which versions there are; "hybrid" means both."""
        if self.unified is None:
            return "v1" if self.controllers else "none"
        return "hybrid" if self.controllers else "v2"


def parse_mountinfo(text: bytes) -> list[Mount]:
    """Return the cgroup hierarchies in /proc/PID/mountinfo, in its order.

    Those that another mount hides, over the same point or over a directory above, are left out.
    """
    lines = [_split(line) for line in text.split(b"\n") if line]
    ids = {number for number, *_ in lines}
    # The outermost mounts have a parent that is not listed, or (rootfs) themselves.
    on = {
        (parent if parent in ids and parent != number else None, point): number
        for number, parent, point, _ in lines
    }
    return [
        _mount(words)
        for number, _, point, words in lines
        if words[words.index(b"-", 6) + 1] in _KINDS and _resolve(on, point) == number
    ]


def parse_own(text: bytes) -> dict[str, str]:
    """Return the paths of /proc/PID/cgroup: controller -> path, with "" for v2.

    A path is relative to the hierarchy, as the reader's cgroup namespace sees it.  A v2 group that
    was removed (the kernel adds " (deleted)") is absent: no directory belongs to it.
    """
    paths = {}
    for line in filter(None, text.split(b"\n")):
        number, controllers, path = [*line.split(b":", 2), b"", b""][:3]
        names = _text(controllers).split(",")
        unified = number == b"0" and names == [""]
        if not (number.isdigit() and path.startswith(b"/") and (unified or all(names))):
            raise ProtocolError(f"not a line of /proc/PID/cgroup: {line!r}")
        if not (unified and path.endswith(b" (deleted)")):
            paths.update(dict.fromkeys(names, _text(path)))
    return paths


def layout(mounts: Iterable[Mount], own: Mapping[str, str]) -> Layout:
    """Return where the hierarchies are, and where in each the process is that `own` is about.

    Of several mounts of a hierarchy, one that has the process's own group is preferred, then one that
    is writable, then the first.
    """
    found: dict[str, list[Place]] = {}
    for mount in mounts:
        # A controller that is v1's here is in the process's list: the kernel wrote both.
        names = {""} if mount.version == 2 else mount.controllers & _CONTROLLERS & own.keys()
        for name in names:
            directory = _directory(mount, own.get(name))
            place = Place(version=mount.version, point=mount.point, own=directory, writable=mount.writable)
            found.setdefault(name, []).append(place)
    best = {
        name: min(places, key=lambda place: (place.own is None, not place.writable))
        for name, places in sorted(found.items())
    }
    return Layout(unified=best.pop("", None), controllers=best)


def _split(line: bytes) -> tuple[int, int, bytes, list[bytes]]:
    """Return a mount's id, its parent's id, its point as it stands there, and all words of the line."""
    words = line.split(b" ")
    try:
        number, parent, point = int(words[0]), int(words[1]), words[4]
        kind = words[words.index(b"-", 6) + 1]  # tags before it are optional
    except (IndexError, ValueError) as error:
        raise ProtocolError(f"not a line of /proc/PID/mountinfo: {line!r}") from error
    if not (kind and point.startswith(b"/")):
        raise ProtocolError(f"not a line of /proc/PID/mountinfo: {line!r}")
    return number, parent, point, words


def _resolve(on: Mapping[tuple[int | None, bytes], int], point: bytes) -> int | None:
    """Return the mount that a path leads to: at each directory, up to the topmost mount there."""
    at: int | None = None
    path = b""
    for name in [b"", *(name for name in point.split(b"/") if name)]:
        path = path.rstrip(b"/") + b"/" + name
        climbed = set()  # the kernel has no circles, other bytes may
        while at not in climbed and (at, path) in on:
            climbed.add(at)
            at = on[at, path]
    return at


def _mount(words: list[bytes]) -> Mount:
    _, _, _, root, point, options, *rest = words
    kind, _, *super_options = rest[rest.index(b"-") + 1 :] + [b""] * 2
    flags = super_options[0].split(b",")
    version = _KINDS[kind]
    names = {_text(flag) for flag in flags} if version == 1 else set()
    return Mount(
        version=version,
        controllers=frozenset(name for name in names if name in _CONTROLLERS or name.startswith("name=")),
        root=_path(root),
        point=_path(point),
        writable=b"rw" in options.split(b",") and b"rw" in flags,
    )


def _directory(mount: Mount, path: str | None) -> str | None:
    """Return the directory of the group at `path`, where it is below what is mounted."""
    base = mount.root.rstrip("/")
    if path is None or not f"{path}/".startswith(f"{base}/"):
        return None
    names = [name for name in path[len(base) :].split("/") if name]
    # "/.." is the kernel's way to say: above the root of the reader's cgroup namespace.
    return None if ".." in names else "/".join([mount.point.rstrip("/"), *names]) or "/"


def _path(escaped: bytes) -> str:
    """Return a path of mountinfo, where space, tab, newline and backslash are octal."""
    head, *parts = escaped.split(b"\\")
    if not escaped.startswith(b"/") or any(len(part) < 3 or part[:3].strip(_OCTAL) for part in parts):
        raise ProtocolError(f"not a path of /proc/PID/mountinfo: {escaped!r}")
    # The kernel writes a byte: at most \377.
    return _text(head + b"".join(bytes((int(part[:3], 8) & 0xFF,)) + part[3:] for part in parts))


def _text(name: bytes) -> str:
    return name.decode(sys.getfilesystemencoding(), "surrogateescape")
