"""Starting a command by `fork`: the steps that have to be done in the child itself.

Between `fork` and `execve` nothing is imported, and as little as can be is written to: each page
that the child touches first is copied, which takes longer than what is done there.
"""

from __future__ import annotations

import errno
import os
import select

from muontrap.guard.spawn import StepFailed, first_that_runs
from muontrap.kernel import identity, process, signals, sockets
from muontrap.logic.steps import in_order
from muontrap.logic.wire import Failed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, NoReturn

    from muontrap.containment.groups import Group
    from muontrap.guard.spawn import Assumed
    from muontrap.logic.wire import Launch

    Entrances = Sequence[tuple[str, int]]  # paths of cgroup.procs, opened
    Action = tuple[str, Callable[..., object], Sequence[object]]


# One whose program is on a file system that does not answer must not hold up the others' ends.
_EXECUTE_MS = 3


def fork(launch: Launch, assumed: Assumed, group: Group | None) -> tuple[int, int]:
    """Fork the command's first process; return (pid, pipe).

    The pipe, not blocking, gives a `Failed` record, or end of file when `execve` is done.  `group` is
    the command's cgroup, which the child joins.  Raises `StepFailed` when there is no process to be had.
    """
    try:
        entrances = group.entrances() if group else []
    except OSError as error:
        raise StepFailed(error.errno or 0, "cgroup", str(error.filename)) from error
    opened = [fd for _, fd in entrances]
    step = "descriptors"
    try:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        opened += reading, writing
        # Above all targets: none of them may overwrite it.
        errors = assumed.reserve.dup_above(writing, launch.targets)
        opened.append(errors)
        process.close_on_exec_from(0)  # all are by now, or a line of ours is wrong
        with assumed as sources:
            plan = _plan(launch, assumed.env, sources, entrances, group)
            step = "fork"
            # Not clone3(2), which could give it birth in its cgroup: F42.
            pid = os.fork()
            if pid == 0:
                _become(plan, errors)
        opened.remove(reading)
    except OSError as error:
        raise StepFailed(error.errno or 0, step) from error
    finally:
        sockets.close(opened)
    # Most children are there in less: until then, each page that the guard writes to is copied.
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    poll.poll(_EXECUTE_MS)
    return pid, reading


def _plan(
    launch: Launch, env: Any, sources: Sequence[int], entrances: Entrances, group: Group | None
) -> list[Action]:
    """Return what the child does, in order: all that can be is worked out before there is a child."""
    special: dict[str, Callable[..., object]] = {
        "join": lambda: _join(entrances),
        "descriptors": lambda: _place(places),
        "pdeathsig": lambda signum: _arm(signum, guard),
    }
    guard = os.getpid()
    places = list(zip(sources, launch.targets, strict=True))
    steps = in_order([*launch.steps, ("descriptors", ())])
    argv = process.c_strings(launch.argv)
    # Its locks are the guard's.
    locks: list[Action] = [("join", group.close, ())] if group else []
    todo = [(name, special.get(name) or _PERFORM[name], numbers) for name, numbers in steps]
    leads: Action = ("setsid", os.setsid, ()) if launch.session else ("setpgid", os.setpgid, (0, 0))
    last: list[Action] = [
        ("signals", signals.unblock, ()),
        ("execve", first_that_runs, (launch, lambda path: process.execve(path, argv, env))),
    ]
    return [*locks, leads, *todo, *last]


def _become(plan: list[Action], errors: int) -> NoReturn:
    """Perform the plan in the child."""
    step = ""
    try:
        for name, action, arguments in plan:
            step = name
            action(*arguments)
    except BaseException as error:
        # All of them, for the pipe's end without a record would mean that `execve` has succeeded.
        code = getattr(error, "errno", None) or errno.EPROTO
        path = getattr(error, "filename", None) or b""
        os.write(errors, Failed(errno=code, step=step.encode(), path=os.fsencode(path)).encode())
    finally:
        os._exit(127)


def _join(entrances: Entrances) -> None:
    for path, fd in entrances:
        try:
            os.write(fd, b"0")
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None


def _place(places: Sequence[tuple[int, int]]) -> None:
    for source, target in places:
        os.dup2(source, target)


def _set_oom_score_adj(value: int) -> None:
    # A child of the guard is not dumpable either, and then may not write to /proc/self.
    process.set_dumpable(True)
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, b"%d" % value)
    os.close(fd)


def _set_uid(uid: int) -> None:
    """Become `uid`; and see that the way back is closed, which securebits(7) could have left open."""
    identity.set_uid(uid)
    if os.getresuid() != (uid,) * 3 or (uid != 0 and identity.can_become_root()):
        raise PermissionError(errno.EPERM, "the old user id can still be had")


def _set_gid(gid: int) -> None:
    identity.set_gid(gid)
    if os.getresgid() != (gid,) * 3:
        raise PermissionError(errno.EPERM, "the old group id is still there")


def _set_groups(*groups: int) -> None:
    identity.set_groups(groups)
    if sorted(set(os.getgroups())) != sorted(set(groups)):
        raise PermissionError(errno.EPERM, "old groups are still there")


def _arm(signum: int, guard: int) -> None:
    """Ask for the parent-death signal; one asked for after the death would never come."""
    process.set_pdeathsig(signum)
    if os.getppid() != guard:
        os._exit(127)


_ALL_BITS = process.RLIM_INFINITY
_PERFORM: dict[str, Callable[..., object]] = {
    # All signals are blocked: a background process that takes the terminal would get SIGTTOU.
    "foreground": lambda terminal: os.tcsetpgrp(terminal, os.getpgrp()),
    "nice": lambda value: os.setpriority(os.PRIO_PROCESS, 0, value),
    "cpu_affinity": lambda *cpus: os.sched_setaffinity(0, cpus),
    "oom_score_adj": _set_oom_score_adj,
    # Not resource.setrlimit, whose ValueError keeps no errno; -1 is infinity there, all bits are here.
    "rlimit": lambda which, soft, hard: process.set_limit(which, soft & _ALL_BITS, hard & _ALL_BITS),
    "setgroups": _set_groups,
    "setresgid": _set_gid,
    "setresuid": _set_uid,
    "no_new_privs": process.set_no_new_privs,
}
