"""Where a running tree has its socket: a directory that its user alone may enter.

For those who ask, without what it takes to be asked.
"""

from __future__ import annotations

import os
import stat

SOCKET = "control"


class ControlError(OSError):
    """The directory or its socket can't be used; the message says why."""


def default_directory(name: str) -> str:
    """Return where a tree of that name has its socket, unless told otherwise.

    Raises:
        ControlError: no directory can have that name, as that of ".toml" without its end.
    """
    if name in ("", ".", ".."):
        raise ControlError(f"no directory can be named {name!r}: say which with --directory")
    user = os.geteuid()
    if user == 0:  # who has logged in has the variable, and a service has not: both are to mean the same
        return os.path.join("/run/muontrap", name)
    base = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(base, "muontrap", name) if base else os.path.join(f"/tmp/muontrap-{user}", name)


def only_directory() -> str:
    """Return the one directory at the default place that has a socket.

    Raises:
        ControlError: there is none, or more than one.
    """
    base = os.path.dirname(default_directory("any"))
    names = sorted(os.listdir(base)) if os.path.isdir(base) else []
    found = [name for name in names if os.path.lexists(os.path.join(base, name, SOCKET))]
    if len(found) != 1:
        which = (
            f"there are {', '.join(found)}: say which with --name" if found else f"there is none in {base}"
        )
        raise ControlError(f"no supervisor was named, and {which}")
    return os.path.join(base, found[0])


def check_directory(directory: str) -> None:
    """Raise if others than this user may enter a directory, or could have made it."""
    found = os.stat(directory, follow_symlinks=False)
    if not stat.S_ISDIR(found.st_mode):
        raise ControlError(f"{directory!r} is no directory")
    if found.st_uid not in (0, os.geteuid()):
        raise ControlError(f"{directory!r} belongs to user {found.st_uid}, who could read what is said there")
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise ControlError(
            f"others may enter {directory!r}: name a directory of its own, "
            f"such as {os.path.join(directory, 'muontrap')!r}"
        )
    above = os.stat(os.path.dirname(os.path.abspath(directory)))
    is_others = above.st_uid not in (0, os.geteuid()) or above.st_mode & stat.S_IWOTH
    if is_others and not above.st_mode & stat.S_ISVTX:
        raise ControlError(f"others could put another directory in the place of {directory!r}")
