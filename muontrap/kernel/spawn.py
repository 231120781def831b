"""posix_spawn(3), with what is the same from one child to the next prepared once.

`os.posix_spawn` makes C strings of all variables and sets of all signals anew for each child.
"""

from __future__ import annotations

import os

from muontrap.kernel import signals
from muontrap.kernel._generated_ffi import ffi
from muontrap.kernel.abi import libc
from muontrap.kernel.process import c_strings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

# Both types are opaque.
_OPAQUE = ffi.typeof("unsigned long[128]")


class Spawner:
    """Starts children in which no signal is blocked, ignored or handled; not for two threads at once."""

    def __init__(self) -> None:
        self._of_group = _attributes(libc.POSIX_SPAWN_SETPGROUP)
        self._of_session = _attributes(libc.POSIX_SPAWN_SETSID)
        self._actions: Any = ffi.new(_OPAQUE)
        _check(libc.posix_spawn_file_actions_init(self._actions))
        self._places: Sequence[tuple[int, int]] = ()
        self._pid: Any = ffi.new("int *")

    def __call__(
        self,
        path: bytes,
        argv: Sequence[bytes],
        env: Any,
        places: Sequence[tuple[int, int]],
        *,
        session: bool,
    ) -> int:
        """Return the pid of a child whose `execve` is done, or raise its `OSError`.

        Args:
            env: of `Environments`.
            places: (descriptor, the number that it has in the child) for each.
            session: whether it leads a session, or just a process group.
        """
        if places != self._places:
            self._place(places)
        attributes = self._of_session if session else self._of_group
        arguments = c_strings(argv)
        _check(libc.posix_spawn(self._pid, path, self._actions, attributes, arguments[0], env[0]))
        pid: int = self._pid[0]
        return pid

    def _place(self, places: Sequence[tuple[int, int]]) -> None:
        self._places = ()
        _check(libc.posix_spawn_file_actions_destroy(self._actions))
        _check(libc.posix_spawn_file_actions_init(self._actions))
        for source, target in places:
            _check(libc.posix_spawn_file_actions_adddup2(self._actions, source, target))
        self._places = places


def _attributes(leads: int) -> Any:
    attributes = ffi.new(_OPAQUE)
    _check(libc.posix_spawnattr_init(attributes))
    _check(libc.posix_spawnattr_setsigmask(attributes, signals.set_of(())))
    # They have it; but glibc's child would ask for each, and then set it all the same.
    _check(libc.posix_spawnattr_setsigdefault(attributes, signals.set_of(signals.DEFAULTABLE)))
    flags = leads | libc.POSIX_SPAWN_SETSIGMASK | libc.POSIX_SPAWN_SETSIGDEF
    _check(libc.posix_spawnattr_setflags(attributes, flags))
    return attributes


def _check(code: int) -> None:
    """Raise what these functions return, where others set errno."""
    if code:
        raise OSError(code, os.strerror(code))
