"""User and group names as the ids, groups and variables that a command gets."""

from __future__ import annotations

import grp
import os
import pwd

from muontrap.kernel.identity import groups_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from muontrap.logic.command import Command
    from muontrap.logic.steps import Step


_OPTIONS = frozenset(("user", "group", "extra_groups"))


class Identity:
    """What `user`, `group` and `extra_groups` come to; None leaves what the host has."""

    uid: int | None = None
    gid: int | None = None
    groups: list[int] | None = None
    variables: Mapping[bytes, bytes | None] = {}

    def __init__(self, command: Command) -> None:
        if not _OPTIONS.isdisjoint(vars(command)):
            self._look_up(command)

    def _look_up(self, command: Command) -> None:
        account = _account(command.user)
        self.uid = account.pw_uid if account else command.user
        self.gid = _gid(command.group)
        if self.gid is None and command.user is not None:
            if account is None:
                raise ValueError(f"user {command.user!r} has no account: give group= as well")
            self.gid = account.pw_gid
        self.groups = _groups(command.extra_groups, account, self.gid)
        if account:
            self.variables = {
                b"HOME": os.fsencode(account.pw_dir),
                b"USER": os.fsencode(account.pw_name),
                b"LOGNAME": os.fsencode(account.pw_name),
                b"SHELL": os.fsencode(account.pw_shell or "/bin/sh"),
            }
        elif command.user not in (None, os.geteuid()):
            self.variables = dict.fromkeys((b"HOME", b"USER", b"LOGNAME", b"SHELL"))  # not the host's
        if not command.allow_root:
            _refuse_root(command, self)

    def steps(self) -> list[Step]:
        """Return the steps that set it."""
        steps: list[Step] = []
        if self.groups is not None:
            steps.append(("setgroups", tuple(self.groups)))
        if self.gid is not None:
            steps.append(("setresgid", (self.gid,)))
        if self.uid is not None:
            steps.append(("setresuid", (self.uid,)))
        return steps


def _account(user: str | int | None) -> pwd.struct_passwd | None:
    try:
        if isinstance(user, str):
            return pwd.getpwnam(user)
        return None if user is None else pwd.getpwuid(user)
    except KeyError:
        if isinstance(user, str):
            raise KeyError(f"there is no user {user!r}") from None
        return None


def _gid(group: str | int | None) -> int | None:
    try:
        return grp.getgrnam(group).gr_gid if isinstance(group, str) else group
    except KeyError:
        raise KeyError(f"there is no group {group!r}") from None


def _groups(
    extra: Sequence[str | int] | None, account: pwd.struct_passwd | None, gid: int | None
) -> list[int] | None:
    """Return the supplementary groups: those asked for, those of the account, or none.

    None, as the host has them, only when neither user nor group is changed.
    """
    if extra is not None:
        return sorted({number for group in extra if (number := _gid(group)) is not None})
    if gid is None:
        return None
    return sorted(set(groups_of(os.fsencode(account.pw_name), gid))) if account else []


def _refuse_root(command: Command, identity: Identity) -> None:
    for option, number in (("user", identity.uid), ("group", identity.gid)):
        if number == 0:
            given = getattr(command, option)
            named = f"the primary group of user {command.user!r}" if given is None else f"{option} {given!r}"
            raise ValueError(f"{named} is {option[0]}id 0: pass allow_root=True if that is meant")
    if command.extra_groups and 0 in (identity.groups or ()):
        raise ValueError(
            f"extra_groups {command.extra_groups!r} has gid 0: pass allow_root=True if that is meant"
        )
