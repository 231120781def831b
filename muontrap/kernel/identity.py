"""User and group ids: set in full, and read back."""

from __future__ import annotations

import errno
import os

from muontrap.kernel._generated_ffi import ffi
from muontrap.kernel.abi import check, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Looked up here and not by a forked child, in which that takes longer than all the rest.
_GROUPS = ffi.typeof("unsigned int[]")
_setgroups, _setresgid, _setresuid = libc.setgroups, libc.setresgid, libc.setresuid
# What nearly all have fewer of, and NGROUPS_MAX (<linux/limits.h>).
_FEW, _MOST = 64, 65536


def groups_of(user: bytes, gid: int) -> list[int]:
    """Return the groups that the databases say of a user, and `gid`. See getgrouplist(3).

    `os.getgrouplist` asks for room for 65,536 of them, each time: twice the time.
    """
    for room in (_FEW, _MOST):
        groups, count = ffi.new(_GROUPS, room), ffi.new("int *", room)
        if libc.getgrouplist(user, gid, groups, count) >= 0:
            return list(groups[0 : count[0]])
    raise OSError(errno.EINVAL, f"{os.strerror(errno.EINVAL)} (getgrouplist)", user)


def set_groups(groups: Sequence[int]) -> None:
    """Replace the supplementary groups. See setgroups(2)."""
    if sorted(os.getgroups()) != sorted(groups):
        check(_setgroups(len(groups), ffi.new(_GROUPS, list(groups))), "setgroups")


def set_gid(gid: int) -> None:
    """Set real, effective, saved (and with them filesystem) group id. See setresgid(2)."""
    check(_setresgid(gid, gid, gid), "setresgid")


def set_uid(uid: int) -> None:
    """Set real, effective, saved (and with them filesystem) user id. See setresuid(2)."""
    check(_setresuid(uid, uid, uid), "setresuid")


def drops_for_good() -> bool:
    """Tell whether an `execve` under another uid leaves no privilege: with root's, as by default.

    Saved id and capabilities go with the ids then, ambient ones too. See "Effect of user ID changes on
    capabilities" in capabilities(7), and its securebits.
    """
    return os.getresuid() == (0, 0, 0) and securebits() == 0


def securebits() -> int:
    """Return what root's ids are worth in this thread. See PR_GET_SECUREBITS(2const)."""
    return libc.prctl(libc.PR_GET_SECUREBITS)


def can_become_root() -> bool:
    """Try to take uid 0 back; on success the process has it. See setresuid(2)."""
    return _setresuid(2**32 - 1, 0, 2**32 - 1) == 0
