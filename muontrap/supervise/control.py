"""The UNIX socket of a running tree: who may enter its directory may look, stop and start.

A request is a line of JSON, as {"do": "logs", "name": "web", "follow": true}; "do" is "status", "start",
"stop", "restart" or "logs".  Answers are lines of JSON; the last has "error", "children" or "done", and
those of logs before it have "output", bytes as `surrogateescape` has them.  Who follows and closes his
end, or the sending half of it, gets no more.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import socket
import time

from muontrap.logic.supervision import Supervision
from muontrap.supervise.daemon import Daemon
from muontrap.supervise.directory import SOCKET, ControlError, check_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from muontrap.supervise.daemon import DaemonStatistics
    from muontrap.supervise.supervisor import Supervisor

_LOCK = "lock"
_LONGEST_REQUEST = 64 * 1024
_PAUSE = 0.1
_CHANGES = {
    "start": Supervision.start_child,
    "stop": Supervision.stop_child,
    "restart": Supervision.restart_child,
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
        self._lock = os.open(os.path.join(directory, _LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # Let go of by the kernel with the process, however that dies: what is left then is old.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._listener = _listen(self._path)
        except OSError as error:
            os.close(self._lock)
            if isinstance(error, BlockingIOError):
                raise ControlError(f"{directory!r} belongs to another supervisor, which runs") from None
            raise

    async def serve(self, root: Supervisor) -> None:
        """Answer requests from now on."""
        await asyncio.start_unix_server(
            lambda reader, writer: _Conversation(root, reader, writer).hold(),
            sock=self._listener,
            limit=_LONGEST_REQUEST,
        )

    def close(self) -> None:
        """Remove the socket."""
        if os.path.lexists(self._path):
            os.unlink(self._path)
        self._listener.close()
        os.close(self._lock)


class _Conversation:
    """One who asks."""

    def __init__(self, root: Supervisor, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._root = root
        self._reader = reader
        self._writer = writer
        self._followed: Daemon | None = None
        self._sent = 0  # bytes of its output

    async def hold(self) -> None:
        try:
            request = json.loads(await self._reader.readline())
            await self._answer(request if isinstance(request, dict) else {})
            await self._finish()
        except ConnectionError:
            pass  # who asked is gone
        except asyncio.CancelledError:
            if self._followed:
                self._send_new(self._followed)
                self._say(done="")
            else:
                self._say(error="the supervisor has ended")
            self._writer.transport.abort()
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            self._say(error=str(error.args[0] if isinstance(error, KeyError) else error))
            await self._finish()

    async def _finish(self) -> None:
        """Wait until all has been sent, as long as there is a tree."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            pass
        except asyncio.CancelledError:
            self._writer.transport.abort()

    def _say(self, **answer: Any) -> None:
        self._writer.write(json.dumps(answer).encode() + b"\n")

    async def _answer(self, request: dict[str, Any]) -> None:
        what, name = request.get("do"), str(request.get("name", ""))
        if what == "status":
            self._say(children=[_figures(each) for each in self._root.which_children()])
        elif what == "logs":
            await self._logs(name, follow=bool(request.get("follow")))
        elif what in _CHANGES:
            owner, last = self._root._owner_of(name)
            child = owner._machine.children[last]
            await asyncio.wrap_future(owner._ask(_CHANGES[what], last))
            self._say(done=child.state)
        else:
            raise ValueError(f"no request of this kind: {what!r}")

    async def _logs(self, name: str, *, follow: bool) -> None:
        daemon = self._root.child(name)
        if not isinstance(daemon, Daemon):
            raise ValueError(f"{name!r} is a supervisor, and has no output")
        self._followed = daemon
        self._send_new(daemon)
        while follow and daemon.supervisor and not self._reader.at_eof():
            await self._writer.drain()
            try:
                await asyncio.wait_for(self._reader.read(_LONGEST_REQUEST), _PAUSE)
            except asyncio.TimeoutError:
                pass
            self._send_new(daemon)
        self._say(done="")

    def _send_new(self, daemon: Daemon) -> None:
        """Send what came since the last time, as far as it is kept."""
        recent, count = daemon._recent_and_count()
        new = recent[max(0, len(recent) - (count - self._sent)) :] if count > self._sent else b""
        self._sent = count
        if new:
            self._say(output=new.decode(errors="surrogateescape"))


def _listen(path: str) -> socket.socket:
    """Return a listener in the place of what a dead run has left."""
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        listener.listen()
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
