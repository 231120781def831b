"""Where on this machine this user can make cgroups: discovery, bases, and what would change a no.

Whose right is what, in v2: <kernel>/Documentation/admin-guide/cgroup-v2.rst, "Delegation".
"""

from __future__ import annotations

import errno
import os
from functools import lru_cache

from muontrap.containment.groups import write_file
from muontrap.containment.processes import read
from muontrap.errors import ContainmentError
from muontrap.logic.command import check_cgroup_path
from muontrap.logic.hierarchy import layout, parse_mountinfo, parse_own

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muontrap.logic.hierarchy import Layout, Place

_BASE = "MUONTRAP_CGROUP_BASE"
_DELEGATE = "systemd-run --user --scope -p Delegate=yes COMMAND"
_REMEDIES = {
    errno.EACCES: f"this user may not; as root, chown it, or {_DELEGATE}",
    errno.EPERM: f"this user may not; as root, chown it, or {_DELEGATE}",
    errno.EEXIST: "there is one already",
    errno.EINVAL: "the kernel does not take that value",
    errno.ERANGE: "the kernel does not take that value",
    errno.EBUSY: "it is in use: choose another, or end what is in it",
    errno.ENOENT: "there is no such file: mkdir its directory, or enable its controller in "
    "cgroup.subtree_control of the directory above",
    errno.ENOSPC: "it has no CPUs or no memory nodes, or there are too many cgroups",
    errno.EOPNOTSUPP: "it is threaded: choose a base that is not",
    errno.ENODEV: "there is no such device",
}


def discover() -> Layout:
    """Return where this machine's hierarchies are, and this process in them."""
    return _layout(read("/proc/self/mountinfo"), read("/proc/self/cgroup"))


@lru_cache(maxsize=1)
def _layout(mounts: bytes, own: bytes) -> Layout:
    return layout(parse_mountinfo(mounts), parse_own(own))


def bases(place: Place, asked: str | None = None) -> list[str]:
    """Return where groups can be made in a hierarchy, the best first: `asked`, or what this process has."""
    if not asked and os.environ.get(_BASE):
        asked = check_cgroup_path(_BASE, os.environ[_BASE])
    if asked:
        return [below(place, asked)]
    found = [] if place.own is None else [place.own]
    if os.geteuid() == 0:
        found.append(place.point)
    elif found and place.own != place.point:
        found.append(os.path.dirname(found[0]))  # this process is in a leaf of what was delegated
    return list(dict.fromkeys(found))


def below(place: Place, path: str) -> str:
    """Return a directory of the hierarchy; what its path leads out of is refused by the option's check."""
    directory = os.path.normpath(os.path.join(place.point, path))
    straight = os.path.join(os.path.realpath(place.point), path).rstrip("/")
    if os.path.realpath(directory) != straight:
        raise ContainmentError(f"{directory} is not a directory of the hierarchy: a link leads elsewhere")
    return directory


def why_not(place: Place, base: str, controllers: set[str], *, enable: bool = True) -> str:
    """Tell why a group can't be made in a directory, and what would change that; "" if it can.

    With `enable`, its groups get the controllers that they need and may have.
    """
    if not os.path.isdir(base):
        return f"{base} does not exist: mkdir {base}"
    if not place.writable:
        return f"{place.point} is mounted read-only: mount -o remount,rw {place.point}"
    if not os.access(base, os.W_OK | os.X_OK, effective_ids=True):
        files = ("cgroup.procs", "tasks" if place.version == 1 else "cgroup.{threads,subtree_control}")
        return (
            f"{base} is not writable for this user: as root, chown USER {base} "
            f"{' '.join(f'{base}/{file}' for file in files)}, or {_DELEGATE}"
        )
    if place.version == 1:
        return ""
    return is_threaded(base) or _cannot_leave(place, base) or _cannot_enable(base, controllers, enable)


def is_threaded(base: str) -> str:
    """Tell that a directory of v2 is threaded, or below one that is; "" if not."""
    try:
        kind = read(f"{base}/cgroup.type").decode().strip()
    except FileNotFoundError:
        return ""  # the root of all, or v1
    return "" if kind == "domain" else f"{base} is {kind}: what is in its groups can't be listed"


def _cannot_leave(place: Place, base: str) -> str:
    """To move a process is a right on the group that both groups are in (cgroup-v2.rst, "Delegation")."""
    if os.geteuid() == 0:
        return ""
    if place.own is None:
        return f"this process's own cgroup is not below {place.point}: {_DELEGATE}"
    common = os.path.commonpath((place.own, base))
    if os.access(f"{common}/cgroup.procs", os.W_OK, effective_ids=True):
        return ""
    return f"{common}/cgroup.procs is not writable, so no process can be moved to {base}: {_DELEGATE}"


def _cannot_enable(base: str, controllers: set[str], enable: bool) -> str:
    if not controllers:
        return ""
    missing = controllers - set(read(f"{base}/cgroup.controllers").decode().split())
    names = " ".join(f"+{name}" for name in sorted(missing))
    is_root = not os.path.exists(f"{base}/cgroup.type")
    if missing and is_root:
        return (
            f"{base}, the root of cgroup v2, has no controller {', '.join(sorted(missing))}: this kernel has "
            f"none, or has given it to v1: boot with cgroup_no_v1={','.join(sorted(missing))}"
        )
    if missing:
        return (
            f"{base} has no controller {', '.join(sorted(missing))}: "
            f"echo {names} > {os.path.dirname(base)}/cgroup.subtree_control"
        )
    file = f"{base}/cgroup.subtree_control"
    disabled = controllers - set(read(file).decode().split())
    if not disabled:
        return ""
    names = " ".join(f"+{name}" for name in sorted(disabled))
    # The root alone may have both processes and controllers.  The kernel does not always refuse: with cpu,
    # cpuset and pids, which can be divided among threads, it would make the group threaded, for good.
    if not is_root and read(f"{base}/cgroup.procs"):
        move = f"for p in $(cat {base}/cgroup.procs); do echo $p > {base}/leaf/cgroup.procs; done"
        return (
            f"{base} can't have {', '.join(sorted(disabled))} for its groups as long as there are "
            f"processes in it: mkdir {base}/leaf; {move}"
        )
    try:
        if enable:
            write_file(file, names)
        elif not os.access(file, os.W_OK, effective_ids=True):
            return f"{file} is not writable for this user: as root, echo {names} > {file}"
    except OSError as error:
        return f"{', '.join(sorted(disabled))} can't be enabled: echo {names} > {file}: {error.strerror}"
    return ""


def refusal(code: int, path: str, value: str) -> OSError:
    """Return the exception for a file of a cgroup that refused: it names file, value and remedy."""
    wanted = f" (writing {value!r})" if value else ""
    remedy = f": {_REMEDIES[code]}" if code in _REMEDIES else ""
    return OSError(code, f"{os.strerror(code)}{wanted}{remedy}", path)
