"""The UNIX socket of a running tree: who may enter its directory may look, stop and start.

A request is a line of JSON, as {"do": "logs", "name": "web", "follow": true}; "do" is "status", "start",
"stop", "restart" or "logs".  Answers are lines of JSON; the last has "error", "children" or "done", and
those of logs before it have "output", bytes as `surrogateescape` has them.  Who follows and closes his
end, or the sending half of it, gets no more.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from functools import partial
from importlib import import_module

from muontrap.supervise.branch import Branch
from muontrap.supervise.daemon import Daemon
from muontrap.supervise.directory import SOCKET, ControlError, check_directory
from muontrap.supervise.loop import READ, WRITE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from muontrap.logic.children import Child
    from muontrap.supervise.daemon import DaemonStatistics
    from muontrap.supervise.loop import Loop, Timer
    from muontrap.supervise.supervisor import Supervisor
    from muontrap.supervise.tree import Tree

_LOCK = "lock"
_LONGEST_REQUEST = 64 * 1024
_PAUSE = 0.1
# Without a descriptor for one more, others have to go first.
_PAUSE_OF_ACCEPT = 1.0
_CHANGES = {
    "start": Branch.start_child,
    "stop": Branch.stop_child,
    "restart": Branch.restart_child,
}


class Control:
    """Serves one tree, in its thread.

    Args:
        directory: for the socket; made if it is missing, and refused if others may enter it.

    Raises:
        ControlError: it can't be had, or another tree has it.
    """

    def __init__(self, directory: str) -> None:
        self._path = os.path.join(directory, SOCKET)
        os.makedirs(os.path.dirname(directory) or ".", mode=0o700, exist_ok=True)
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            pass
        check_directory(directory)
        self._conversations: set[_Conversation] = set()
        self._lock = os.open(os.path.join(directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Let go of by the kernel with the process, however that dies: what is left then is old.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._listener: socket.socket = _listen(self._path)
        except OSError as error:
            os.close(self._lock)
            if isinstance(error, BlockingIOError):
                raise ControlError(f"{directory!r} belongs to another supervisor, which runs") from None
            raise

    def serve(self, root: Supervisor) -> None:
        """Answer requests from now on, until the tree has ended.

        Raises:
            NotRunning: it has.
        """
        tree = root._running()
        tree.call(self._begin, root, tree)

    def _begin(self, root: Supervisor, tree: Tree) -> None:
        tree.at_end.append(self._end)
        self._listen(root, tree.loop)

    def _listen(self, root: Supervisor, loop: Loop) -> None:
        loop.listen(self._listener.fileno(), partial(self._accept, root, loop))

    def _accept(self, root: Supervisor, loop: Loop) -> None:
        try:
            json = import_module("json")  # for those who have something to say
            one, _ = self._listener.accept()
        except BlockingIOError:
            return  # he has gone away already
        except (ImportError, OSError):
            loop.ignore(self._listener.fileno())
            loop.later(_PAUSE_OF_ACCEPT, self._listen, root, loop)
            return
        _Conversation(root, loop, json, one, self._conversations)

    def _end(self) -> None:
        """The tree has ended: nobody is answered any more."""
        for each in list(self._conversations):
            each.end()

    def close(self) -> None:
        """Remove the socket."""
        if os.path.lexists(self._path):
            os.unlink(self._path)
        self._listener.close()
        os.close(self._lock)


class _Conversation:
    """One who asks: a request is read, answered, and then the socket closed.

    It waits for nobody: what can't be sent at once is sent when it can be, and until then a follower
    gets nothing more.
    """

    def __init__(
        self, root: Supervisor, loop: Loop, json: Any, one: socket.socket, all_: set[_Conversation]
    ) -> None:
        self._root = root
        self._loop = loop
        self._json = json
        self._socket = one
        self._all = all_
        self._received = bytearray()
        self._to_send = bytearray()
        self._is_asked = False
        self._is_last = False  # what is to be sent is the last of it
        self._followed: Daemon | None = None
        self._sent = 0  # bytes of its output
        self._timer: Timer | None = None
        one.setblocking(False)
        all_.add(self)
        loop.listen(one.fileno(), self._read)

    def end(self) -> None:
        """The tree has ended: say so, to one who takes it at once."""
        if not self._is_last:
            if self._followed:
                self._send_new(self._followed)
                self._say(done="")
            else:
                self._say(error="the supervisor has ended")
        self._flush()
        self._close()

    def _read(self) -> None:
        """Take what comes: of a request; or the end of a follower, who has nothing more to say."""
        try:
            data = self._socket.recv(_LONGEST_REQUEST)
        except BlockingIOError:
            return
        except OSError:
            self._close()
            return
        if self._is_asked:
            if not data:
                self._finish(done="")
            return
        self._received += data
        line, newline, _ = self._received.partition(b"\n")
        if len(line) > _LONGEST_REQUEST:
            self._finish(error=f"a request is no longer than the limit of {_LONGEST_REQUEST} bytes")
        elif newline or not data:
            self._take(bytes(line))

    def _take(self, line: bytes) -> None:
        self._is_asked, self._received = True, bytearray()
        self._loop.ignore(self._socket.fileno())  # he waits, unless he follows
        try:
            request = self._json.loads(line.decode())
            self._answer(request if isinstance(request, dict) else {})
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            self._finish(error=str(error.args[0] if isinstance(error, KeyError) else error))

    def _answer(self, request: dict[str, Any]) -> None:
        what, name = request.get("do"), str(request.get("name", ""))
        if what == "status":
            self._finish(children=[_figures(each) for each in self._root.which_children()])
        elif what == "logs":
            self._begin_logs(name, follow=bool(request.get("follow")))
        elif what in _CHANGES:
            owner, last = self._root._owner_of(name)
            child, member = owner._branch.machine.children[last], owner._branch.members[last]
            _CHANGES[what](owner._branch, last, partial(self._finish_change, child, member))
        else:
            raise ValueError(f"no request of this kind: {what!r}")

    def _finish_change(self, child: Child, member: Daemon | Supervisor) -> None:
        why = member._last_exit if isinstance(member, Daemon) else member._branch.machine.outcome
        self._finish(done=child.state, last_exit=why)

    def _begin_logs(self, name: str, *, follow: bool) -> None:
        daemon = self._root.child(name)
        if not isinstance(daemon, Daemon):
            raise ValueError(f"{name!r} is a supervisor, and has no output")
        self._send_new(daemon)
        if follow:
            self._followed = daemon
            self._flush()
            self._look()
        else:
            self._finish(done="")

    def _look(self) -> None:
        """See what a follower is to have, now and then."""
        daemon = self._followed
        if daemon is None or self._is_last:
            return
        if not self._to_send:
            self._send_new(daemon)
            self._flush()
        if daemon.supervisor:
            self._timer = self._loop.later(_PAUSE, self._look)
        else:
            self._finish(done="")

    def _send_new(self, daemon: Daemon) -> None:
        """Send what came since the last time, as far as it is kept."""
        if daemon._recent.count == self._sent:
            return
        recent, count = daemon._recent.read()
        new = recent[max(0, len(recent) - (count - self._sent)) :]
        self._sent = count
        if new:
            self._say(output=new.decode(errors="surrogateescape"))

    def _say(self, **answer: Any) -> None:
        self._to_send += self._json.dumps(answer).encode() + b"\n"

    def _finish(self, **answer: Any) -> None:
        """Give the last answer."""
        if not self._is_last:
            self._is_last = True
            self._say(**answer)
            self._flush()

    def _flush(self) -> None:
        """Send what can be sent; see to the rest when it can be."""
        try:
            while self._to_send:
                del self._to_send[: self._socket.send(self._to_send)]
        except BlockingIOError:
            pass
        except OSError:  # who asked is gone
            self._close()
            return
        if self._is_last and not self._to_send:
            self._close()
        elif self._socket.fileno() >= 0:
            self._await()

    def _await(self) -> None:
        """Wait for what is next: room to send, and of a follower that he goes away."""
        reads = self._followed and not self._is_last
        if self._to_send or reads:
            events = (WRITE if self._to_send else 0) | (READ if reads else 0)
            self._loop.listen(self._socket.fileno(), self._go_on, events)

    def _go_on(self) -> None:
        if self._followed and not self._is_last:
            self._read()
        if self._to_send:
            self._flush()

    def _close(self) -> None:
        if self._socket.fileno() >= 0:
            self._is_last = True
            self._loop.cancel(self._timer)
            self._loop.ignore(self._socket.fileno())
            self._socket.close()
            self._all.discard(self)


def _listen(path: str) -> socket.socket:
    """Return a listener in the place of what a dead run has left."""
    if os.path.lexists(path):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ControlError(f"{path!r} is no socket: remove it, or name another directory")
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen()
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ControlError(f"{path!r} can't be a socket: {error.strerror or error}") from None
    return listener


def _figures(statistics: DaemonStatistics) -> dict[str, Any]:
    """Return what `muontrap status` shows; of the main process alone, where there is no cgroup."""
    cgroup = statistics.cgroup
    memory = cgroup.memory_current if cgroup else None
    cpu = cgroup.cpu_usage if cgroup else None
    if statistics.pid is not None and (memory is None or cpu is None):
        own_memory, own_cpu = _of_process(statistics.pid)
        memory = own_memory if memory is None else memory
        cpu = own_cpu if cpu is None else cpu
    shown = (
        "name",
        "state",
        "pid",
        "uptime",
        "restarts",
        "start_failures",
        "failures",
        "output_bytes",
        "last_exit",
    )
    figures = {name: getattr(statistics, name) for name in shown}
    return {**figures, "memory": memory, "cpu": cpu, "time": time.time()}


def _of_process(pid: int) -> tuple[int | None, float | None]:
    """Return bytes of memory and seconds of CPU of a process, as far as it is there."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None, None
    ticks = int(fields[11]) + int(fields[12])
    return int(fields[21]) * os.sysconf("SC_PAGE_SIZE"), ticks / os.sysconf("SC_CLK_TCK")
