"""What muontrap is for, seen from the kernel: ping ends when the program that launched it is SIGKILLed.

Nothing here uses muontrap: the host does.  This program reads the kernel's own lists and waits on pidfds.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

JOIN = 'echo $$ > "$0" && exec "$@"'
REPLIES_SHOWN = 4
PATIENCE = 5.0  # seconds; ping takes milliseconds
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def own_cgroups() -> Iterator[Path]:
    """Where this process is, in each hierarchy that can hold a group without other preparation."""
    mounts = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        if kind == "cgroup2":
            mounts[""] = where
        elif kind == "cgroup":
            mounts |= dict.fromkeys(options.split(","), where)
    memberships = (line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines())
    groups = {name: path for _, names, path in memberships for name in names.split(",")}
    for name in ("", "pids", "freezer", "name=systemd"):
        if name in mounts and name in groups:
            yield Path(mounts[name] + groups[name])


@contextlib.contextmanager
def new_cgroup() -> Iterator[Path | None]:
    """A cgroup of our own to start the host in, where this user may make one; it kills nothing."""
    for parent in own_cgroups():
        group = parent / f"muontrap-demo-{os.getpid()}"
        with contextlib.suppress(OSError):
            group.mkdir()
            join = ["sh", "-c", JOIN, group / "cgroup.procs", "true"]
            if subprocess.run(join, stderr=subprocess.DEVNULL).returncode == 0:
                break
            group.rmdir()
    else:
        yield None
        return
    try:
        yield group
    finally:
        group.rmdir()


def members(group: Path | None, known: list[int]) -> list[int]:
    return [int(pid) for pid in (group / "cgroup.procs").read_text().split()] if group else known


def command_line(pid: int) -> str:
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    name = Path(f"/proc/{pid}/comm").read_text().strip()
    return name if name.startswith("muontrap") else b" ".join([os.path.basename(argv[0]), *argv[1:]]).decode()


def wait_dead(pidfds: dict[int, int], since: float) -> dict[int, float]:
    """Milliseconds to the end of each process, as its pidfd reports it; those that live on are not there."""
    poll = select.poll()
    for pidfd in pidfds:
        poll.register(pidfd, select.POLLIN)
    ended: dict[int, float] = {}
    while len(ended) < len(pidfds):
        ready = poll.poll(max(0.0, PATIENCE - (time.monotonic() - since)) * 1000)
        if not ready:
            break
        for pidfd, _ in ready:
            ended[pidfds[pidfd]] = (time.monotonic() - since) * 1000
            poll.unregister(pidfd)
    return ended


def show_output(host: subprocess.Popen[str]) -> int | None:
    """Shows what host and ping print, until enough replies came; returns ping's pid."""
    assert host.stdout is not None
    ping, replies = None, 0
    for line in host.stdout:
        print("   ", line, end="")
        if line.startswith("ping is process"):
            ping = int(line.split()[-1])
        replies += "icmp_seq" in line
        if ping and replies >= REPLIES_SHOWN:
            return ping
    return None


def demonstrate(group: Path | None) -> bool:
    join = str(group / "cgroup.procs") if group else "/dev/null"
    argv = ["sh", "-c", JOIN, join, sys.executable, str(Path(__file__).with_name("host.py"))]
    host = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    print(f"host.py is process {host.pid}. It launches ping through muontrap:\n", flush=True)
    ping = show_output(host)
    if ping is None:
        print(f"The host ended by itself, with status {host.wait()}: see above.")
        reap_all()
        return False
    print(f"\nProcesses {f'in the cgroup {group}' if group else 'watched (no cgroup can be made here)'}:")
    pidfds = {os.pidfd_open(pid): pid for pid in members(group, [host.pid, ping])}
    names = {pid: command_line(pid) for pid in pidfds.values()}
    for pid, name in names.items():
        print(f"{pid:9}  {name}")

    # Our end of ping's pipe stays open: what ends it is a signal, not SIGPIPE.
    since = time.monotonic()
    os.kill(host.pid, signal.SIGKILL)
    ended = wait_dead(pidfds, since)

    print(f"\nSIGKILL to the host ({host.pid}). Gone, by their pidfds:")
    for pid, ms in sorted(ended.items(), key=lambda item: item[1]):
        print(f"{ms:9.1f} ms after it: {pid} {names[pid]}")
    alive = [pid for pid in members(group, list(pidfds.values())) if pid not in ended]
    kill(alive)
    reap_all()
    if alive:
        print(f"\nStill alive {PATIENCE:.0f} s after its host, killed by the demo: {alive}")
        return False
    if group:
        print(f"\nThe kernel's list {group}/cgroup.procs is now {members(group, []) or 'empty'}.")
    print(f"wait() finds no process below the demo. ping was gone {ended[ping]:.1f} ms after its host.")
    return True


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(os.pidfd_open(pid), signal.SIGKILL)


def reap_all() -> None:
    """Until the kernel says that no process is left below this one (main() made it the subreaper)."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0)[0]:
            pass


def main() -> int:
    if not shutil.which("ping"):
        print("There is no ping here:  apt install iputils-ping")
        return 1
    # Orphans come to us and not to pid 1: wait() can say that none is left, and the cgroup empties at once.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    with new_cgroup() as group:
        return 0 if demonstrate(group) else 1


if __name__ == "__main__":
    sys.exit(main())
