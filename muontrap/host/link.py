"""The host's side of the wire: a guard started, handed requests, watched, replaced."""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import signal
import sys
import threading
import time
import weakref
from importlib import import_module
from struct import pack

import _cffi_backend

import muontrap
from muontrap.containment.groups import remove_abandoned
from muontrap.containment.tagged import TagReader, kill_guardless
from muontrap.errors import GuardDied, GuardError
from muontrap.host.situation import Situation, environment, sees_its_children
from muontrap.kernel.process import pidfd_open, pidfd_send_signal
from muontrap.kernel.sockets import Truncated, receive
from muontrap.logic.tags import NARROW, WIDE
from muontrap.logic.wire import MARKER, Hello, decode, packets

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# A guard starts in 20 to 40 ms; on a machine that swaps, this is still not the time to give up.
HANDSHAKE_BOUND = 20.0
# Guard dead: the watch needs milliseconds, or as long as something is in uninterruptible sleep.
CLEANUP_BOUND = 5.0
# The guard takes requests at once.  After this long without a word it is asked, and after as long
# again it is stuck: it is killed, and the watch cleans up.
STUCK_AFTER = 5.0
# Seconds; poll(2) and epoll_wait(2) take milliseconds as an int.
LONGEST_WAIT = 1e6
# From the closing of its sockets to its death, a process that exits needs milliseconds.
_EXIT_BOUND = 1.0
# `os.fork` in another thread needs milliseconds.
_FORK_BOUND = 1.0
# Channels kept for the next requests: as many as threads are likely to launch at once.
_MOST_IDLE = 8
# Of something there is not enough now: it says nothing of the interpreter, nor of what is left.
_NO_MORE = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM)
_INTERPRETER = "MUONTRAP_PYTHON"
# Both folders last, behind the standard library: nothing in them can take the place of its modules.
_BOOTSTRAP = "import sys; sys.path += sys.argv[4:]; from muontrap.guard.__main__ import run; run()"


# Held while there is a guard's end of a channel here, and by `os.fork`: a child of another thread would keep
# that end, and hide the guard's death.
_pairing = threading.RLock()


class StaleGuard(PermissionError):
    """The guard was started by a thread with other privileges: a new one is needed."""


class Link:
    """One guard, from its start to its end.

    Attributes:
        is_closed: whether this is a forked child's copy, which is of no use to it.
    """

    is_closed: bool = False

    def __init__(self, situation: Situation, executable: str, *, keep_privileges: bool) -> None:
        self.situation = situation
        self.keep_privileges = keep_privileges
        self.environment: dict[bytes, bytes] = dict(environment())
        self.bases: set[str] = set()  # directories in which its cgroups are
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self._requests = ours
        self._idle: list[_socket.socket] = []
        self._pid = os.getpid()
        self._words, words = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._pidfds: Sequence[int] = ()
        try:
            # Before the guard can read: from now on the kernel says who sends.
            theirs.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
            self._spawn(executable, theirs.fileno(), words)
            theirs.close()
            os.close(words)
            words = -1
            self.hello: Hello = self._shake_hands(executable)
        except BaseException:
            theirs.close()
            if words >= 0:
                os.close(words)
            self.close()
            raise
        form = {WIDE.width: WIDE, NARROW.width: NARROW}.get(self.hello.tag_width)
        self._reader = TagReader(form)
        self._dead = poll_for(self._pidfds)

    def is_whole(self) -> bool:
        """Tell whether guard and watch are both alive."""
        try:
            return not self._dead.poll(0)
        except RuntimeError:  # a finalizer asks, and has interrupted this very call
            return not wait_readable(self._pidfds, 0)

    def survives(self) -> bool:
        """Tell whether the guard closed a channel without dying: an exit closes them first."""
        return not wait_readable(self._pidfds, _EXIT_BOUND)

    def serves(self, situation: Situation) -> bool:
        """Tell whether this guard may launch for a host in that situation."""
        return self.is_whole() and (self.keep_privileges or situation.place == self.situation.place)

    def request(self, payload: bytes, fds: list[int]) -> _socket.socket:
        """Hand over an encoded `Launch`, with descriptors of the directory and the launch's targets.

        Returns:
            The channel: a socket that the guard answers on.
        """
        (data, first, after), *rest = packets(payload, len(fds))
        channel = self._reuse(data, fds[first:after]) or self._open_channel(data, fds[first:after])
        try:
            for data, first, after in rest:
                self._send(channel, data, fds[first:after])
        except (BrokenPipeError, ConnectionResetError):
            pass  # why, is there to be read
        except BaseException:
            channel.close()
            raise
        return channel

    def _reuse(self, data: bytes, fds: list[int]) -> _socket.socket | None:
        """Send a request's first packet over an idle channel, and return that; None when there is none."""
        # A child that was forked without Python's knowing has copies of them.
        if not self._idle or os.getpid() != self._pid:
            return None
        try:
            channel = self._idle.pop()
        except IndexError:
            return None  # another thread has it
        try:
            self._send(channel, data, fds)
        except OSError as error:
            if error.errno in (errno.EBADF, errno.ENOTSOCK):  # a host that closes all, and then opens others
                channel.detach()
                return None
            channel.close()
            if error.errno in (errno.EPIPE, errno.ECONNRESET):
                return None
            raise
        except BaseException:
            channel.close()
            raise
        return channel

    def _open_channel(self, data: bytes, fds: list[int]) -> _socket.socket:
        """Send a request's first packet with the guard's end of a new channel, and return the host's."""
        taken: list[bool] = []
        try:
            try:
                # One step of Python, where a handler may raise between two.  Not for ever: the host may have
                # a lock for its own forks, and have that here.
                taken.extend(map(_pairing.acquire, (True,), (_FORK_BOUND,)))
                return self._send_end(data, fds)
            finally:
                if True in taken:
                    _pairing.release()
        except (BrokenPipeError, ConnectionResetError):
            raise self.lost("a launch") from None

    def _send_end(self, data: bytes, fds: list[int]) -> _socket.socket:
        ours, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            theirs.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
            self._send(self._requests, data, [theirs.fileno(), *fds])
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()  # held here, it would hide that the guard takes no more of the request
        return ours

    def _send(self, sock: _socket.socket, data: bytes, fds: list[int]) -> None:
        """Send a packet; a guard that makes no room for it is stuck."""
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack(f"{len(fds)}i", *fds))] if fds else []
        while True:
            try:
                sock.sendmsg([data], rights, _socket.MSG_DONTWAIT)
                return
            except BlockingIOError:
                room = select.poll()
                room.register(sock, select.POLLOUT)
                if not room.poll(poll_ms(2 * STUCK_AFTER)):
                    self.kill_guard()

    def take_back(self, channel: _socket.socket) -> None:
        """Keep a channel for another request: the guard has said the end on it, and waits for that."""
        if len(self._idle) < _MOST_IDLE:
            self._idle.append(channel)
        else:
            channel.close()

    def stale(self) -> StaleGuard:
        """Let no further launch have this guard; return what says so."""
        with _links.lock:
            if _links.current is self:
                _links.current = None
        return StaleGuard(errno.EPERM, "the host's privileges are not those that its guard was started with")

    def kill_guard(self) -> None:
        """End a guard that does not answer; the watch kills what it had."""
        pidfd_send_signal(self._pidfds[1], signal.SIGKILL)

    def lost(self, what: str) -> GuardDied:
        """Wait until guard and watch have cleaned up, clean up what they could not, and say so."""
        deadline = time.monotonic() + CLEANUP_BOUND
        for pidfd in self._pidfds:
            # A watch that a command has stopped can't clean up.
            try:
                pidfd_send_signal(pidfd, signal.SIGCONT)
            except PermissionError:
                pass  # of a host that has dropped its privileges since
        wait_readable([self._pidfds[0]], deadline - time.monotonic())
        for base in list(self.bases):  # to which another thread may add
            remove_abandoned(base)
        left: tuple[int, ...] = ()
        try:
            left = kill_guardless(self._reader, self.hello.guard_id, max(0.1, deadline - time.monotonic()))
            how = "which has been killed"
        except OSError as error:
            if error.errno not in _NO_MORE:
                raise
            how = f"and whether the watch has killed all of it can't be seen ({error.strerror})"
        said = self._last_words()
        return GuardDied(f"the guard died under {what}, {how}{said and ': ' + said}", left)

    def close(self) -> None:
        """Let go of the guard, which then ends all its commands, and itself."""
        self.is_closed = True
        for channel in (self._requests, *self._idle):
            channel.close()
        self._idle.clear()
        for fd in (self._words, *self._pidfds):
            if fd >= 0:
                os.close(fd)
        self._words, self._pidfds = -1, ()

    def __del__(self) -> None:
        if not self.is_closed and hasattr(self, "_pidfds"):
            self.close()

    def _spawn(self, executable: str, requests: int, words: int) -> None:
        """Execute the guard's program, which leaves no child behind."""
        mode = "keep" if self.keep_privileges else "check"
        folders = [
            os.path.dirname(os.path.abspath(path)) for path in (muontrap.__path__[0], _cffi_backend.__file__)
        ]
        numbers = [str(os.getpid()), str(threading.get_native_id())]
        argv = [executable, "-I", "-S", "-c", _BOOTSTRAP, *numbers, mode, *folders]
        opened: list[int] = []
        try:
            opened.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            opened.append(pidfd_open(os.getpid()))
            null, host = opened
            moved = []
            for fd in (null, null, words, requests, host):
                # Above all targets, so that none is overwritten before it is copied.
                moved.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10))
                opened.append(moved[-1])
            variables = {name: value for name, value in self.environment.items() if name}  # else EINVAL
            _execute(executable, argv, {**variables, MARKER: b"1"}, moved)
        finally:
            for fd in opened:
                os.close(fd)

    def _shake_hands(self, executable: str) -> Hello:
        if not wait_readable([self._requests.fileno()], HANDSHAKE_BOUND):
            raise GuardError(f"{executable!r} did not become a guard within {HANDSHAKE_BOUND:g} s")
        try:
            data, self._pidfds, _ = receive(self._requests, [])
        except Truncated as error:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE)) from error
        hello = decode(data) if data and len(self._pidfds) == 2 else None
        if not isinstance(hello, Hello):
            raise GuardError(
                f"{executable!r} did not become a guard: {self._last_words() or 'it just ended'}. "
                f"If it is no Python interpreter, set {_INTERPRETER} to one"
            )
        return hello

    def _last_words(self) -> str:
        try:
            return os.read(self._words, 65536).decode(errors="replace").strip()
        except BlockingIOError:
            return ""


class _Links:
    """The host's guards: the one for new launches, and those that still have commands."""

    def __init__(self) -> None:
        # A signal's handler, or a finalizer, may launch as well, and come in between.
        self.lock = threading.RLock()
        self.current: Link | None = None
        self.all: weakref.WeakSet[Link] = weakref.WeakSet()


_links = _Links()


def link_for(situation: Situation) -> Link:
    """Return a guard that may launch for a host in that situation; start it if there is none."""
    with _links.lock:
        link = _links.current
        if link is None or not link.serves(situation):
            link = _start(situation, keep_privileges=False)
        return link


def start_guard(*, keep_privileges: bool = False) -> None:
    """Start the guard now, rather than with the first launch.

    For hosts that will drop privileges, or enter a sandbox where a guard can't be started.

    Args:
        keep_privileges: launch through this guard also when the host has other credentials,
            capabilities or namespaces by then.  Whoever controls the host then has, through the
            guard, the privileges of now.

    Raises:
        GuardError: no guard could be started; the message says what to do.
    """
    # With these come all modules of a launch, which later may not be readable.
    for name in ("run", "cgroups", "reader", "delivery"):
        import_module(f"muontrap.host.{name}")

    situation = Situation()
    with _links.lock:
        link = _links.current
        if link is None or not link.serves(situation) or link.keep_privileges != keep_privileges:
            _start(situation, keep_privileges=keep_privileges)


def _start(situation: Situation, *, keep_privileges: bool) -> Link:
    if not sees_its_children():
        raise GuardError(
            "/proc is that of another PID namespace than this thread's children have, and so does not show "
            "the guard: enter theirs with a fork, and mount its /proc, as unshare --pid --fork --mount-proc"
        )
    link = Link(situation, interpreter(), keep_privileges=keep_privileges)
    _links.all.add(link)
    _links.current = link
    return link


def _forget_in_child() -> None:
    """In a forked child: close the parent's sockets, which here would hide an `execv` of the parent."""
    global _links
    for link in list(_links.all):
        link.close()
    _links = _Links()


os.register_at_fork(after_in_child=_forget_in_child)
# Methods of C: a signal's handler that raises comes between two steps of Python.
os.register_at_fork(
    before=_pairing.acquire, after_in_parent=_pairing.release, after_in_child=_pairing.release
)


def wait_readable(fds: Iterable[int], timeout: float | None) -> list[int]:
    """Return those that are readable, after at most `timeout` s (None: no limit), or 11 days."""
    return [fd for fd, _ in poll_for(fds).poll(poll_ms(timeout))]


def poll_for(fds: Iterable[int]) -> select.poll:
    """Return a poll object that waits for one of these to be readable."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return poll


def poll_ms(timeout: float | None) -> float | None:
    """Return a time in seconds as poll(2) takes it, in ms and not rounded to 0."""
    return None if timeout is None else min(max(0.0, timeout), LONGEST_WAIT) * 1000


def interpreter() -> str:
    """Return the Python to run the guard with, or raise `GuardError`."""
    if MARKER in environment():
        raise GuardError(
            f"{sys.executable!r} was started to be muontrap's guard, but is a program of its own: "
            f"set {_INTERPRETER} to a Python interpreter"
        )
    chosen = os.environ.get(_INTERPRETER)
    if chosen:
        return chosen
    if not sys.executable or getattr(sys, "frozen", False):
        raise GuardError(
            f"sys.executable is {sys.executable!r}, which can't run the guard (frozen or embedded "
            f"Python): set {_INTERPRETER} to a Python interpreter"
        )
    return sys.executable


def _execute(executable: str, argv: list[str], variables: dict[bytes, bytes], descriptors: list[int]) -> None:
    try:
        pid = os.posix_spawn(
            executable,
            argv,
            variables,
            file_actions=[(os.POSIX_SPAWN_DUP2, source, target) for target, source in enumerate(descriptors)],
            setsigmask=signal.valid_signals(),
            setsigdef=signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP},
        )
    except OSError as error:
        if error.errno in _NO_MORE:
            raise
        raise GuardError(f"{executable!r} could not be started as the guard: {error}") from error
    _reap(pid)


def _reap(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # the host ignores SIGCHLD, or waits for any child elsewhere: it is reaped all the same
