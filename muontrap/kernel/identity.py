"""User and group ids: set in full, and read back."""

from __future__ import annotations

import os

from muontrap.kernel._generated_ffi import ffi
from muontrap.kernel.abi import check, libc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# Looked up here and not by a forked child, in which that takes longer than all the rest.
_GROUPS = ffi.typeof("unsigned int[]")
_setgroups, _setresgid, _setresuid = libc.setgroups, libc.setresgid, libc.setresuid


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


def can_become_root() -> bool:
    """Try to take uid 0 back; on success the process has it. See setresuid(2)."""
    return _setresuid(2**32 - 1, 0, 2**32 - 1) == 0
