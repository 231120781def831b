"""The guard's program: the host executes it once, and it becomes watch and guard.

Descriptors: 2 a pipe to the host for a last word, 3 the request socket, 4 a pidfd of the host.
Arguments: the host's pid, and its thread that starts the guard; "check" or "keep", for a host that
keeps privileges on purpose.
"""

from __future__ import annotations

import _socket
import gc
import mmap
import os
import resource
import struct
import sys

from muontrap.containment.processes import Held, read
from muontrap.containment.tagged import TagReader, usable_format
from muontrap.guard.asker import Asker
from muontrap.guard.loop import Guard
from muontrap.guard.placement import Placer
from muontrap.guard.watch import Watch
from muontrap.kernel import process, signals
from muontrap.logic.wire import MARKER

_REQUESTS, _HOST = 3, 4
_GRACE = struct.Struct("d")


class Shared:
    """The longest grace of any command, which the watch has to wait for; in shared memory."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _GRACE.size)

    def get(self) -> float:
        """Return the longest grace so far, in seconds."""
        grace: float = _GRACE.unpack_from(self._memory)[0]
        return grace

    def note(self, grace: float) -> None:
        """Take in the grace of one more command."""
        if grace > self.get():
            _GRACE.pack_into(self._memory, 0, grace)


def main(host_pid: int, thread: int, check_privileges: bool) -> None:
    """Leave the host's process tree, and be the watch and the guard."""
    shed()
    if os.fork():
        os._exit(0)  # the host reaps this one at once, and has no child that lasts
    process.set_child_subreaper()
    # /proc/self is root's while it is not dumpable, as after an `execve` with another effective uid.
    process.set_dumpable(True)
    variables = environment()
    process.set_dumpable(False)
    reader = TagReader(usable_format())
    guard_id = choose_id(reader)
    shared = Shared()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files[1], files[1]))
    lift(resource.RLIMIT_CPU)
    lift(resource.RLIMIT_RTTIME)
    # Read when the guard has died; when it is full, the next guard removes what the watch does not.
    places, tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    watch_pid = os.getpid()
    process.set_name(b"muontrap-watch")
    # Each collection writes to all that it looks at: watch, guard and forked children share those pages.
    gc.collect()
    gc.freeze()
    guard_pid = os.fork()
    if guard_pid:
        os.close(_REQUESTS)  # held here too, it would hide the guard's death from the host
        os.close(tell)
        os.setsid()
        Watch(guard_pid, _HOST, shared.get, guard_id, reader, places).run()
        return
    process.set_child_subreaper()
    os.setpgid(0, 0)
    process.set_name(b"muontrap-guard")
    watch = Held.open(watch_pid)
    # Where a filter of seccomp forbids that, nothing could be ended: it is better known now.
    if watch is None or not process.pidfd_send_signal(watch.fd, 0) or os.getppid() != watch_pid:
        return
    guard = Guard(
        requests=_socket.socket(fileno=_REQUESTS),
        host=Held(host_pid, _HOST),
        watch=watch,
        guard_id=guard_id,
        reader=reader,
        note_grace=shared.note,
        asker=Asker(host_pid, thread, check_privileges=check_privileges),
        environment=variables,
        files=files,
        placer=Placer(lambda directory: note(tell, directory)),
    )
    guard.greet()
    guard.run()


def shed() -> None:
    """Keep nothing of the host's but the three descriptors, and nothing that commands may not inherit."""
    os.chdir("/")
    for name in os.listdir("/proc/self/fd"):
        if int(name) > _HOST:
            try:
                os.close(int(name))
            except OSError:
                pass  # the listing's own descriptor
    process.close_on_exec_from(0)
    # What CPython ignores or handles would be so in commands too; here all are blocked.
    signals.set_default(signals.not_default())
    os.set_blocking(2, False)


def lift(limit: int) -> None:
    """Have no limit of that kind, or one as high as may be."""
    try:
        resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError:  # EPERM
        hard = resource.getrlimit(limit)[1]
        resource.setrlimit(limit, (hard, hard))


def environment() -> dict[bytes, bytes]:
    """Return what the host's was, less the marker: CPython may have put LC_CTYPE into `os.environ`."""
    pairs = [text.partition(b"=") for text in read("/proc/self/environ").split(b"\0") if b"=" in text]
    return {name: value for name, _, value in pairs if name not in (b"", MARKER)}


def note(pipe: int, directory: bytes) -> None:
    """Tell the watch where the guard makes cgroups."""
    try:
        os.write(pipe, directory + b"\0")
    except BlockingIOError:
        pass


def choose_id(reader: TagReader) -> int:
    """Return a guard id that no process on the machine carries in its tag."""
    bits = reader.format.guard_bits if reader.format else 28
    while True:
        guard_id = int.from_bytes(os.urandom(4), "little") >> 32 - bits
        if not reader.numbers(guard_id):
            return guard_id


def run() -> None:
    """Run `main`, whose failure is the last word to the host."""
    status = 1
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "check")
        status = 0
    except BaseException:
        # The border of the process: the host reads this from the pipe, and says it.
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


if __name__ == "__main__":
    run()
