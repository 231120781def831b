"""An arena: a cgroup made for one test, and the kernel's own list of who is left in it.

What muontrap says about itself proves nothing here. Each host program of a test is put into a
cgroup of its own before its first instruction; every process that descends from it is born in that
cgroup, whatever it does to its session, its limits, its namespaces or its parents. `cgroup.procs`
is the truth that the guarantees are measured against.

The cgroup counts, it does not kill: only after the verdict, at teardown, is what a failed test left
killed through it.

An ordinary user who may not make a cgroup gets the next best list: the test process becomes a
subreaper, so that everything that its hosts ever started stays below it, and is found by parent
pids in /proc.
"""

from __future__ import annotations

import contextlib
import ctypes
import inspect
import itertools
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cffi

REPOSITORY = Path(__file__).resolve().parents[2]
PROGRAMS = REPOSITORY / "tests" / "programs"
NOBODY = 65534
BOUND = 5.0  # seconds that a loaded test machine may add to what is promised

_numbers = itertools.count(1)


# --- What the kernel says of one process


def read_stat(path: str) -> tuple[str, int]:
    """State letter and parent pid from a `stat` file of /proc; ("X", 0) when the process is gone."""
    try:
        with open(path, "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "X", 0
    return fields[0].decode(), int(fields[1])


def is_alive(pid: int) -> bool:
    """Whether a thread of `pid` still runs. A zombie whose main thread alone has ended is alive."""
    if read_stat(f"/proc/{pid}/stat")[0] not in "ZX":
        return True
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return any(
            read_stat(f"/proc/{pid}/task/{tid}/stat")[0] not in "ZX"
            for tid in os.listdir(f"/proc/{pid}/task")
        )
    return False


def read_text(path: str) -> str:
    """A small file of /proc, or "" when its process is gone."""
    try:
        return Path(path).read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (OSError, ProcessLookupError):
        return ""


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status as a mapping."""
    lines = (line.partition(":") for line in read_text(f"/proc/{pid}/status").splitlines())
    return {name: value.strip() for name, _, value in lines}


def describe(pid: int) -> str:
    """One line that says who `pid` is, for a failed test."""
    state, parent = read_stat(f"/proc/{pid}/stat")
    uid = status_of(pid).get("Uid", "?").split()[0]
    words = read_text(f"/proc/{pid}/cmdline")[:100]
    return f"{pid} {state} parent {parent} uid {uid} {read_text(f'/proc/{pid}/comm')}: {words}"


def wait_readable(fds: Collection[int], deadline: float) -> bool:
    """Wait until one of `fds` is readable; False when the deadline (monotonic seconds) passes first."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


# --- Two ways to know who belongs to a test


class CgroupLedger:
    """A cgroup of v1 or v2, below the one that the tests run in."""

    graveyard: ClassVar[list[Path]] = []  # groups whose last zombies pid 1 has not reaped yet

    def __init__(self, base: Path, name: str) -> None:
        self.path = base / name
        self.path.mkdir()

    def enter(self, argv: Sequence[str]) -> list[str]:
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.path / "cgroup.procs"), *argv]

    def pids(self) -> set[int]:
        found: set[int] = set()
        for folder, _, _ in os.walk(self.path):
            with contextlib.suppress(OSError), open(f"{folder}/cgroup.procs", encoding="ascii") as file:
                found.update(int(line) for line in file)
        return found

    def freeze(self, *, frozen: bool) -> None:
        for folder, _, _ in os.walk(self.path):
            for name, values in ("freezer.state", ("THAWED", "FROZEN")), ("cgroup.freeze", ("0", "1")):
                if Path(folder, name).exists():
                    Path(folder, name).write_text(values[frozen], encoding="ascii")

    def remove(self) -> None:
        self.graveyard.append(self.path)
        self.bury()

    @classmethod
    def bury(cls) -> None:
        """Remove the groups whose zombies are reaped by now."""
        for path in list(cls.graveyard):
            with contextlib.suppress(OSError):
                for folder, _, _ in os.walk(path, topdown=False):
                    os.rmdir(folder)
                cls.graveyard.remove(path)


class DescentLedger:
    """Everything below the test process, which adopts what its hosts leave behind."""

    def __init__(self) -> None:
        pr_set_child_subreaper = 36
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0)
        self.before = self.below()

    def enter(self, argv: Sequence[str]) -> list[str]:
        return list(argv)

    def below(self) -> set[int]:
        children: dict[int, list[int]] = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            children.setdefault(read_stat(f"/proc/{name}/stat")[1], []).append(int(name))
        found: set[int] = set()
        todo = [os.getpid()]
        while todo:
            new = children.get(todo.pop(), ())
            found.update(new)
            todo.extend(new)
        return found

    def pids(self) -> set[int]:
        return self.below() - self.before

    def freeze(self, *, frozen: bool) -> None:
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def remove(self) -> None:
        pass


def cgroup_bases() -> Iterator[Path]:
    """Where this process may be able to make a cgroup: v1 freezer, v1 pids, v2, other v1; its own
    group in each.
    """
    own: dict[str, str] = {}
    for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    found: list[tuple[int, Path]] = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        mount, _, source = line.partition(" - ")
        kind, _, options = source.split(" ", 2)
        root, point = mount.split()[3:5]
        names = {"cgroup": set(options.split(",")) & own.keys(), "cgroup2": {""}}.get(kind, set())
        for name in names & own.keys():
            rank = {"freezer": 0, "pids": 1, "": 2}.get(name, 3)
            found.append((rank, Path(point, os.path.relpath(own[name], root))))
    return (path.resolve() for _, path in sorted(found))


def make_ledger(name: str) -> CgroupLedger | DescentLedger:
    """The best list that this user can have on this machine."""
    for base in cgroup_bases():
        with contextlib.suppress(OSError):
            return CgroupLedger(base, name)
    return DescentLedger()


# --- A host program, and the arena it lives in


class Host:
    """A host program under test. It and the test exchange JSON lines over two pipes, and wait for
    nothing else.
    """

    def __init__(
        self, arena: Arena, argv: Sequence[str], *, env: dict[str, str], before: Sequence[str]
    ) -> None:
        events, child_events = os.pipe()
        child_orders, orders = os.pipe()
        self.errors = arena.folder / f"stderr-{next(_numbers)}"
        self.arena = arena
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                arena.ledger.enter([*before, *argv, str(child_events), str(child_orders)]),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors,
                pass_fds=(child_events, child_orders), env=env, cwd=arena.folder,
            )  # fmt: skip
        os.close(child_events)
        os.close(child_orders)
        self.pid = self.process.pid
        self.pidfd = os.pidfd_open(self.pid)
        self._events, self._orders, self._buffer = events, orders, b""

    def hear(self, bound: float = 15.0) -> dict[str, Any]:
        """The next thing that the host says."""
        deadline = time.monotonic() + bound
        while b"\n" not in self._buffer:
            assert wait_readable([self._events], deadline), f"host says nothing in {bound} s\n{self.stderr()}"
            data = os.read(self._events, 65536)
            assert data, f"host ended before it spoke\n{self.stderr()}"
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer

    def order(self, order: str) -> float:
        """Tell the host to do something; the moment it was told (monotonic seconds)."""
        os.write(self._orders, order.encode() + b"\n")
        return time.monotonic()

    def ask(self, order: str) -> dict[str, Any]:
        self.order(order)
        return self.hear()

    def signal(self, number: int) -> float:
        """Signal the host; the moment just before that."""
        moment = time.monotonic()
        signal.pidfd_send_signal(self.pidfd, number)
        return moment

    def wait_end(self, bound: float = 15.0) -> float:
        """Wait until the host program has ended; the moment when that was seen."""
        assert wait_readable([self.pidfd], time.monotonic() + bound), f"host lives on\n{self.stderr()}"
        moment = time.monotonic()
        self.process.wait()
        return moment

    def stderr(self) -> str:
        return self.errors.read_text(errors="replace")[-4000:]

    def close(self) -> None:
        self.process.wait(10)
        for fd in (self.pidfd, self._events, self._orders):
            os.close(fd)


class Arena:
    """One test's processes. A context manager: leaving it kills what a failed test left, in its own
    group only.
    """

    def __init__(self) -> None:
        number = f"{os.getpid()}-{next(_numbers)}"
        self.folder = Path(tempfile.mkdtemp(prefix=f"muontrap-test-{number}-"))
        self.folder.chmod(0o755)  # commands of other users come here
        self.ready = self.folder / "ready"
        os.mkfifo(self.ready)
        self.ready.chmod(0o622)
        self._ready_fd = os.open(self.ready, os.O_RDWR | os.O_NONBLOCK)
        self.words = ""
        self.ledger = make_ledger(f"muontrap-test-{number}")
        self.hosts: list[Host] = []

    def host(
        self, code: Callable[..., None], *, before: Sequence[str] = (), env: dict[str, str] | None = None,
        python: str = sys.executable, **arguments: Any,
    ) -> Host:  # fmt: skip
        """Start a host program: the source of the function `code`, called with `arguments`, and
        `hostlib` around it.

        `before` is put before its command line (setpriv ...).
        """
        call = f"{code.__name__}(**{arguments!r})"
        source = f"from hostlib import *\n{textwrap.dedent(inspect.getsource(code))}\nmain(lambda: {call})\n"
        paths = [str(REPOSITORY), str(Path(__file__).parent)]
        if python != sys.executable:  # of the same version, but without cffi
            paths.append(str(Path(cffi.__file__).parents[1]))
        whole = {
            **os.environ,
            "PYTHONPATH": ":".join(paths),
            "MUONTRAP_READY": str(self.ready),
            **(env or {}),
        }
        host = Host(self, [python, "-c", source], env=whole, before=before)
        self.hosts.append(host)
        return host

    def wait_ready(self, count: int = 1, *words: str, bound: float = 15.0) -> None:
        """Wait until programs have said "ready" (or `words`) `count` times in all since the arena
        was made.
        """
        deadline = time.monotonic() + bound
        while sum(word in (words or ("ready",)) for word in self.words.split()) < count:
            seen = wait_readable([self._ready_fd], deadline)
            assert seen, (
                f"heard {self.words.split()}, not {words} x {count}; left: {self.explain(self.left())}"
            )
            self.read_words()

    def read_words(self) -> None:
        """Take in what programs have said by now."""
        with contextlib.suppress(BlockingIOError):
            self.words += os.read(self._ready_fd, 65536).decode()

    def left(self, besides: Collection[int] = ()) -> set[int]:
        """Pids of the processes that live in the arena."""
        return {pid for pid in self.ledger.pids() - set(besides) if is_alive(pid)}

    def named(self, name: str) -> list[int]:
        """Pids of the live processes whose name (/proc/PID/comm) this is."""
        return [pid for pid in sorted(self.left()) if read_text(f"/proc/{pid}/comm") == name]

    def the(self, name: str) -> int:
        """The one process of this name."""
        found = self.named(name)
        assert len(found) == 1, f"{name}: {found}; {self.explain(self.left())}"
        return found[0]

    def explain(self, pids: Collection[int]) -> str:
        return f"{len(pids)} left\n" + "\n".join(describe(pid) for pid in sorted(pids)[:20])

    def wait_left(self, expected: Collection[int] = (), *, bound: float = BOUND) -> float:
        """Wait until nothing but `expected` lives in the arena; the moment when that was seen
        (monotonic seconds).

        Sleeps on pidfds of those that are left, and reads the kernel's list again whenever they
        have ended.
        """
        deadline = time.monotonic() + bound
        while pids := self.left(expected):
            assert time.monotonic() < deadline, f"after {bound} s: {self.explain(pids)}"
            with contextlib.ExitStack() as stack:
                for pid in pids:
                    with contextlib.suppress(ProcessLookupError):
                        pidfd = os.pidfd_open(pid)
                        stack.callback(os.close, pidfd)
                        wait_readable([pidfd], deadline)
        return time.monotonic()

    def wait_one_dead(self, pids: Collection[int], *, bound: float = BOUND) -> None:
        """Wait until one of some processes has ended."""
        with contextlib.suppress(ProcessLookupError), contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(os.pidfd_open(pid), "rb")) for pid in pids]
            assert wait_readable([file.fileno() for file in files], time.monotonic() + bound), self.explain(
                pids
            )

    def wait_dead(self, pid: int, *, bound: float = BOUND) -> None:
        """Wait until this process has ended."""
        self.wait_one_dead([pid], bound=bound)

    def wait_count(self, counts: dict[str, int], *, bound: float = BOUND) -> None:
        """Wait until no more processes of these names live than these numbers."""
        deadline = time.monotonic() + bound
        for name, count in counts.items():
            while len(pids := self.named(name)) > count:
                self.wait_one_dead(pids, bound=deadline - time.monotonic())

    def assert_left(self, expected: Collection[int]) -> None:
        """Nothing but `expected` lives, now: for what is promised the moment a call has returned."""
        pids = self.left(expected)
        assert not pids, self.explain(pids)

    def kill_all(self) -> None:
        """Clean up after the verdict."""
        deadline = time.monotonic() + 20
        while self.left() and time.monotonic() < deadline:
            self.ledger.freeze(frozen=True)
            for pid in self.left():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)  # frozen, or checked again by the next pass: not reused
            self.ledger.freeze(frozen=False)
            with contextlib.suppress(AssertionError):
                self.wait_left(bound=1)
        assert not self.left(), self.explain(self.left())

    def __enter__(self) -> Arena:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_all()
        for host in self.hosts:
            sys.stderr.write(host.stderr())
            host.close()
        self.ledger.remove()
        os.close(self._ready_fd)
        shutil.rmtree(self.folder, ignore_errors=True)

    def copy_program(self, source: str, *, mode: int, owner: int) -> str:
        """A copy of a program in the arena's folder, with that mode (after the owner is set: chown
        clears set-uid).
        """
        target = self.folder / f"copy-{next(_numbers)}"
        shutil.copy(source, target)
        os.chown(target, owner, owner)
        target.chmod(mode)
        assert stat.S_IMODE(target.stat().st_mode) == mode
        return str(target)
