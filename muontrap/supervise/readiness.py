"""When a daemon is of use, and what it waits for before it starts; the tree is not kept waiting."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading

from muontrap.supervise.loop import WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from muontrap.supervise.loop import Loop, Timer

    # Family, and what `socket.connect` takes.
    Address: TypeAlias = tuple[int, Any]

_PAUSE = 0.05
_CONNECT_BOUND = 2.0
_LONGEST_PATH = 107  # of a socket, see unix(7); an abstract name has a NUL before it
_FORMS = "'notify', 'output:REGEX', 'tcp:HOST:PORT', 'unix:PATH' or 'file:PATH'"


class Probe:
    """What is waited for, checked.

    Attributes:
        kind: "notify", "output", "tcp", "unix" or "file".
        what: a path, or a host, or the regular expression.
        port: of "tcp".
        pattern: of "output": what a line has to match somewhere.
    """

    __slots__ = ("_text", "kind", "pattern", "port", "what")

    def __init__(self, name: str, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"{name} must be {_FORMS}, not {text!r}")
        kind, _, what = text.partition(":")
        self.kind: str = kind
        self.what: str = what
        self.port: int = 0
        self.pattern: re.Pattern[str] | None = None
        self._text = text
        if kind not in ("notify", "output", "tcp", "unix", "file") or (kind != "notify") != bool(what):
            raise ValueError(f"{name} must be {_FORMS}, not {text!r}")
        if kind == "output":
            self.pattern = _pattern(name, text, what)
        elif kind == "tcp":
            self.what, self.port = _address(name, text, what)
        elif kind == "unix" and len(os.fsencode(what)) > _LONGEST_PATH + what.startswith("\0"):
            raise ValueError(f"{name} must have a path of at most {_LONGEST_PATH} bytes, not {text!r}")
        elif kind == "file" and "\0" in what:
            raise ValueError(f"{name} must have a path, and so no NUL, not {text!r}")

    def __str__(self) -> str:
        return self._text


def _pattern(name: str, text: str, what: str) -> re.Pattern[str]:
    import re  # for those that need it

    try:
        return re.compile(what)
    except re.error as error:
        raise ValueError(f"{name} has no regular expression: {text!r}: {error}") from None


def _address(name: str, text: str, what: str) -> tuple[str, int]:
    host, _, port = what.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or set(host) & set("[]\0") or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{name} must have a host and a port, as 'tcp:[::1]:80', not {text!r}")
    return host, int(port)


class Search:
    """Looks for what a "tcp", "unix" or "file" probe says, until it is there.

    Args:
        loop: of the tree.
        probe: what to look for.
        then: called once, when it is there.
    """

    __slots__ = ("_addresses", "_bound", "_loop", "_probe", "_socket", "_then", "_timer")

    def __init__(self, loop: Loop, probe: Probe, then: Callable[[], object]) -> None:
        self._loop = loop
        self._probe = probe
        self._then: Callable[[], object] | None = then  # None when it is over
        self._addresses: list[Address] = []  # to be tried yet
        self._socket: socket.socket | None = None  # on its way
        self._bound: Timer | None = None
        self._timer: Timer | None = loop.later(0, self._look)

    def end(self) -> None:
        """Look no more."""
        self._then = None
        self._loop.cancel(self._timer)
        self._leave()

    def _look(self) -> None:
        probe = self._probe
        if probe.kind == "tcp":
            addresses = _literal(probe.what, probe.port)
            if addresses:
                self._begin(addresses)
            elif not _start(f"resolve-{probe.what}", _resolve, self._loop, probe, self._begin):
                self._miss()
        elif os.path.exists(probe.what) if probe.kind == "file" else _accepts(probe.what):
            self._find()
        else:
            self._miss()

    def _begin(self, addresses: list[Address]) -> None:
        if self._then:  # it is not over meanwhile
            self._bound = self._loop.later(_CONNECT_BOUND, self._miss)
            self._try(addresses)

    def _try(self, addresses: list[Address]) -> None:
        """Connect to the first of some that takes it."""
        while addresses:
            (family, address), *addresses = addresses
            try:
                self._socket = one = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                self._addresses = addresses
                code = one.connect_ex(address)
                if code in (0, errno.EINPROGRESS):
                    self._loop.listen(one.fileno(), self._is_connected, WRITE)
                    return
            except OSError:
                pass
            self._close()
        self._miss()

    def _is_connected(self) -> None:
        one = self._socket
        assert one is not None
        # A port of those that are given out may connect to itself, when nobody listens.
        if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) and not _is_its_own_peer(one):
            self._find()
            return
        self._close()
        self._try(self._addresses)

    def _find(self) -> None:
        then, self._then = self._then, None
        self._leave()
        if then:
            then()

    def _miss(self) -> None:
        """It is not there: look again, in a while."""
        self._leave()
        self._loop.cancel(self._timer)
        self._timer = self._loop.later(_PAUSE, self._look)

    def _leave(self) -> None:
        self._loop.cancel(self._bound)
        self._bound = None
        self._close()

    def _close(self) -> None:
        one, self._socket = self._socket, None
        if one:
            self._loop.ignore(one.fileno())
            one.close()


class Errand:
    """A function of the user's that blocks until something is there, in a thread of its own.

    Args:
        loop: of the tree.
        name: of the daemon.
        function: see `Daemon`.
        then: called when it has returned, with "" or what it has raised.
    """

    __slots__ = ("_cancelled",)

    def __init__(
        self, loop: Loop, name: str, function: Callable[..., object], then: Callable[[str], object]
    ) -> None:
        self._cancelled = threading.Event()
        given = (self._cancelled,) if _needs_argument(function) else ()

        def wait() -> None:
            problem = ""
            try:
                function(*given)
            except BaseException as error:
                problem = f"wait_for raised {type(error).__name__}: {error}"
            loop.from_thread(then, problem)

        if not _start(f"wait-{name}", wait):
            raise RuntimeError("there can be no more threads, and none for wait_for")

    def end(self) -> None:
        """Tell the function that nobody waits any more."""
        self._cancelled.set()


class NotifySocket:
    """The socket on which a daemon says READY=1 and WATCHDOG=1. See sd_notify(3)."""

    __slots__ = ("_socket", "address")

    def __init__(self) -> None:
        # Of the abstract kind: it has no path to be left over, and any user may send.
        self.address: str = f"@muontrap-notify-{os.urandom(8).hex()}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.bind("\0" + self.address[1:])

    def fileno(self) -> int:
        """Return the descriptor that is readable when `receive` has something."""
        return self._socket.fileno()

    def receive(self, uids: set[int | None]) -> dict[str, str]:
        """Return what was said by a process of these users; nothing of what others say."""
        try:
            data, ancillary, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(12))
        except BlockingIOError:
            return {}
        users = [
            struct.unpack("3I", content)[1]
            for level, kind, content in ancillary
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS)
        ]
        if not uids.issuperset(users):
            return {}
        lines = data.decode(errors="replace").splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def close(self) -> None:
        """Nobody is heard any more."""
        self._socket.close()


def _start(name: str, function: Callable[..., object], *arguments: object) -> bool:
    """Call it in a thread that nobody waits for; False if there can be none."""
    thread = threading.Thread(target=function, args=arguments, name=f"muontrap-{name}", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        return False
    return True


def _literal(host: str, port: int) -> list[Address]:
    """Return where an address leads, nowhere for a name."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return [(family, (host, port))]
    return []


def _resolve(loop: Loop, probe: Probe, then: Callable[[list[Address]], object]) -> None:
    """Ask for the addresses of a name, which may take long."""
    try:
        found = socket.getaddrinfo(probe.what, probe.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError):  # ValueError: no name can be like that
        found = []
    loop.from_thread(then, [(int(family), address) for family, _, _, _, address in found])


def _accepts(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as one:
        one.setblocking(False)
        try:
            one.connect(path)  # a listener's queue takes it at once, or it is full: EAGAIN
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True


def _is_its_own_peer(one: socket.socket) -> bool:
    try:
        return bool(one.getsockname() == one.getpeername())
    except OSError:
        return True  # it is gone already


def _needs_argument(function: Callable[..., object]) -> bool:
    import inspect  # a megabyte, for those who have a function

    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:
        return False  # one of C that does not say
    return any(each.default is each.empty and each.kind in positional for each in parameters)
