"""Looks at the machine: `Facts`.  It starts one small command, and leaves nothing behind."""

from __future__ import annotations

import os
import platform
import pwd
import subprocess
import time
from typing import NamedTuple

import muontrap
from muontrap.containment.groups import PREFIX, Directory
from muontrap.containment.processes import read
from muontrap.containment.tagged import usable_format
from muontrap.errors import ContainmentError, MuontrapError
from muontrap.host.cgroups import place
from muontrap.host.delegation import bases, discover, why_not
from muontrap.host.launcher import Launcher
from muontrap.kernel.process import (
    RLIM_INFINITY,
    RLIMIT_LOCKS,
    get_limit,
    has_close_range,
    is_dead,
    pidfd_open,
    pidfd_open_if_there,
    pidfd_send_signal,
)
from muontrap.logic.command import DEVNULL, PIPE, Command

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muontrap.logic.hierarchy import Layout, Place

_BOUND = 20.0  # s, for what takes milliseconds
# A shell that leaves an orphan, and says its pid.
_ORPHAN = ["sh", "-c", "sleep 60 >/dev/null & echo $!"]


class Trial(NamedTuple):
    """One command, run with the default options.

    Attributes:
        error: why there was none; "" if there was.
        seconds: from before the guard's start to the end.
        layers: what contained it.
        left: whether a process that it had left behind was alive after its end.
    """

    error: str
    seconds: float = 0.0
    layers: tuple[str, ...] = ()
    left: bool = False


class Group(NamedTuple):
    """Where a cgroup can be made, for one controller or for containment alone.

    Attributes:
        version: of the hierarchy, 1 or 2; 0 where there is none.
        base: the directory; "" where it can't.
        reasons: why not, "REASON: COMMAND" for each directory that was tried.
        files: names that a group with that controller has; None where there is none to look at.
    """

    version: int
    base: str
    reasons: tuple[str, ...] = ()
    files: frozenset[str] | None = None


class Facts(NamedTuple):
    """All that was seen.

    Attributes:
        version, python: of muontrap, of Python.
        release, machine: as uname(2) has them.
        uid, user: effective ones; the number again where it has no name.
        pidfd: why pidfds don't work, "" where they do.
        close_range, children, cgroup_kill: whether the kernel has them (/proc/PID/task/TID/children).
        locks: the hard limit RLIMIT_LOCKS; None for no limit.
        tag_width: bits that a tag can have, 0 where none is possible.
        trial: of the default containment.
        layout: where the hierarchies are.
        listed: controllers of /proc/cgroups -> whether this kernel was booted with them.
        group: where a group without controllers can be made.
        controllers: name -> where a group with it can be made; v1's names for those that are v1's here.
        capabilities: the effective set, as a number.
        namespaces: why no user namespace can be made, "" where one can.
        systemd: whether it runs this machine.
    """

    version: str
    python: str
    release: str
    machine: str
    uid: int
    user: str
    pidfd: str
    close_range: bool
    children: bool
    cgroup_kill: bool
    locks: int | None
    tag_width: int
    trial: Trial
    layout: Layout
    listed: dict[str, bool]
    group: Group
    controllers: dict[str, Group]
    capabilities: int
    namespaces: str
    systemd: bool


def look() -> Facts:
    """Return the facts of this machine, as this process sees it."""
    system = os.uname()
    layout = discover()
    hard = get_limit(0, RLIMIT_LOCKS)[1]
    form = usable_format()
    return Facts(
        version=muontrap.__version__,
        python=platform.python_version(),
        release=system.release,
        machine=system.machine,
        uid=os.geteuid(),
        user=_user(),
        pidfd=_pidfd(),
        close_range=has_close_range(),
        children=os.path.exists(f"/proc/self/task/{os.getpid()}/children"),
        cgroup_kill=_has_cgroup_kill(layout.unified),
        locks=None if hard == RLIM_INFINITY else hard,
        tag_width=form.width if form else 0,
        trial=_try(),
        layout=layout,
        listed=_listed(),
        group=_containing(),
        controllers=_controllers(layout),
        capabilities=_capabilities(),
        namespaces=_namespaces(),
        systemd=os.path.isdir("/run/systemd/system"),  # sd_booted(3)
    )


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _pidfd() -> str:
    try:
        own = pidfd_open(os.getpid())
        try:
            pidfd_send_signal(own, 0)
        finally:
            os.close(own)
    except OSError as error:
        return f"{error.filename or 'pidfd'}: {error.strerror}"
    return ""


def _try() -> Trial:
    begin = time.monotonic()
    try:
        with Launcher(_ORPHAN, stdin=subprocess.DEVNULL, stdout=PIPE, cwd="/").launch(
            timeout=_BOUND
        ) as process:
            layers = process.containment
            said, _ = process.communicate(timeout=_BOUND)
    except (OSError, MuontrapError, subprocess.TimeoutExpired) as error:
        return Trial(f"{type(error).__name__}: {error}")
    return Trial("", time.monotonic() - begin, layers, _is_alive(int(said)))


def _is_alive(pid: int) -> bool:
    pidfd = pidfd_open_if_there(pid)
    if pidfd is None:
        return False
    try:
        return not is_dead(pidfd)
    finally:
        os.close(pidfd)


def _has_cgroup_kill(unified: Place | None) -> bool:
    """Look into groups of the hierarchy, of which the root alone has no such file."""
    if unified is None:
        return False
    with os.scandir(unified.point) as entries:
        groups = [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    if unified.own and unified.own != unified.point:
        groups.append(unified.own)
    if groups:
        return any(os.path.exists(f"{group}/cgroup.kill") for group in groups)
    major, minor = os.uname().release.split(".")[:2]
    return (int(major), int(minor.split("-")[0])) >= (5, 14)


def _listed() -> dict[str, bool]:
    try:
        rows = [line.split() for line in read("/proc/cgroups").decode().splitlines()]
    except OSError:
        return {}
    return {row[0]: row[-1] == "1" for row in rows if not row[0].startswith("#")}


def _containing() -> Group:
    """Have the library itself choose, which without controllers changes nothing."""
    try:
        placing = place(Command(["true"], cgroup=True), 1)
    except ContainmentError as error:
        return Group(0, "", tuple(str(error).split("; ")))
    return Group(placing.version, os.path.dirname(placing.cgroup.path)) if placing else Group(0, "")


def _controllers(layout: Layout) -> dict[str, Group]:
    found = {name: _of_controller(name, where, set()) for name, where in layout.controllers.items()}
    if layout.unified:
        with open(f"{layout.unified.point}/cgroup.controllers", encoding="ascii") as stream:
            names = stream.read().split()
        rest = [name for name in names if name not in found]
        found.update({name: _of_controller(name, layout.unified, {name}) for name in rest})
    return found


def _of_controller(name: str, where: Place, needed: set[str]) -> Group:
    try:
        candidates = bases(where)
    except ContainmentError as error:
        return Group(where.version, "", (str(error),))
    reasons = []
    for base in candidates:
        reason = why_not(where, base, needed, enable=False)
        if not reason:
            try:
                return Group(where.version, base, files=_files(name, where, base))
            except OSError as error:
                reason = f"no group can be made in {base} ({error.strerror})"
        reasons.append(reason)
    return Group(where.version, "", tuple(reasons) or (f"this process is in no group below {where.point}",))


def _files(name: str, where: Place, base: str) -> frozenset[str] | None:
    """Make a group for a moment, and look into it.

    In v2 it has the controller's files if those are enabled by now; else the base may have them.
    """
    if where.version == 1 or _has(f"{base}/cgroup.subtree_control", name):
        made = Directory.make(f"{base}/{PREFIX}0-{os.urandom(5).hex()}", new=True)
        try:
            return frozenset(os.listdir(made.path))
        finally:
            made.remove()
            made.close()
    return frozenset(os.listdir(base)) if base != where.point else None


def _has(file: str, controller: str) -> bool:
    return controller.encode() in read(file).split()


def _capabilities() -> int:
    lines = read("/proc/thread-self/status").split(b"\n")
    return int(next(line.split()[1] for line in lines if line.startswith(b"CapEff:")), 16)


def _namespaces() -> str:
    """Make one, by unshare(1); where that is missing, ask the settings."""
    for name in ("user/max_user_namespaces", "kernel/unprivileged_userns_clone"):
        try:
            is_zero = read(f"/proc/sys/{name}").strip() == b"0"
        except OSError:
            continue
        if is_zero and (os.geteuid() or name.startswith("user/")):
            return f"{name.replace('/', '.')} is 0: sudo sysctl -w {name.replace('/', '.')}=10000"
    try:
        done = subprocess.run(
            ["unshare", "--user", "true"], capture_output=True, stdin=DEVNULL, timeout=_BOUND, check=False
        )
    except FileNotFoundError:
        return "" if os.path.exists("/proc/self/ns/user") else "the kernel has none"
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stderr.decode(errors="replace").strip() if done.returncode else ""
