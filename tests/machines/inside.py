"""Process 1 of a machine that `boot.py` boots: mounts what its kind has, runs the tests, reaps, powers off.

One argument: the folder of `boot.py`, with plan.json in it. No program is started but the tests: that is slow
in here.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import pwd
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

USER = 1000
SHARED = Path("/run/machine")  # where the folder of `boot.py` is mounted
CGROUP = Path("/sys/fs/cgroup")
DELEGATED = "delegated"
TIMED_OUT = 124

# linux/mount.h
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND = 1, 2, 4, 8, 4096

libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, point: str | Path, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)"""
    words = (os.fsencode(word) for word in (source, point, kind))
    if libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(data)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(point))


# --- The file system


def mount_basics() -> None:
    system = MS_NOSUID | MS_NODEV | MS_NOEXEC
    mount("proc", "/proc", "proc", system)
    mount("sysfs", "/sys", "sysfs", system)
    if not os.path.ismount("/dev"):  # the kernel does it by itself if it is built so
        mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=755")
    for name, target in {"fd": "fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2"}.items():
        os.symlink(f"/proc/self/{target}", f"/dev/{name}")
    for name in ("pts", "shm"):
        os.mkdir(f"/dev/{name}")
    mount("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "mode=620,ptmxmode=666")
    mount("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")


def closed_to_others(path: str) -> Iterable[str]:
    """The folder nearest to the root, on the way to `path`, that an ordinary user may not enter."""
    for folder in reversed(Path(path).parents):
        if not folder.stat().st_mode & 0o001:
            yield str(folder)
            return


def mount_writable(shared: str, visible: list[str], *, user: bool) -> None:
    """Empty folders where programs write, with what must be visible put back, read-only.

    A folder that only root may enter (/root, say, with an interpreter of pyenv in it) is treated in the same
    way when the tests run as somebody else: it is there, but has nothing except what must be visible.
    """
    modes = dict.fromkeys(("/tmp", "/var/tmp"), "1777") | {"/run": "755"}
    if user:
        for path in visible:
            modes.update(dict.fromkeys(closed_to_others(path), "755"))
    for point, mode in modes.items():  # set-uid programs work there: there are tests of them
        mount("tmpfs", point, "tmpfs", MS_NODEV, f"mode={mode}")
    for path in sorted(visible):  # a folder comes before those in it
        if any(Path(point) in Path(path).parents for point in modes) and not os.path.exists(path):
            os.makedirs(path)
            mount("none", path, "hostfs", MS_RDONLY, path)
    SHARED.mkdir()
    mount("none", SHARED, "hostfs", 0, shared)
    Path("/run/lock").mkdir()
    os.chmod("/run/lock", 0o1777)


def raise_loopback() -> None:
    """`ip link set lo up`"""
    siocgifflags, siocsifflags, iff_up = 0x8913, 0x8914, 1
    with socket.socket() as some:
        request = bytearray(struct.pack("16sh22x", b"lo", 0))
        fcntl.ioctl(some, siocgifflags, request)
        flags = struct.unpack_from("16xh", request)[0]
        fcntl.ioctl(some, siocsifflags, struct.pack("16sh22x", b"lo", flags | iff_up))


# --- The cgroups


def enabled_controllers() -> list[str]:
    """What /proc/cgroups has, and no `cgroup_disable=` took away."""
    rows = [line.split() for line in Path("/proc/cgroups").read_text("ascii").splitlines()[1:]]
    return [name for name, _hierarchy, _groups, enabled in rows if enabled == "1"]


def mount_v2(point: Path) -> Path:
    mount("cgroup2", point, "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "nsdelegate")
    for name in (point / "cgroup.controllers").read_text("ascii").split():
        (point / "cgroup.subtree_control").write_text(f"+{name}", "ascii")
    return point


def mount_v1() -> list[Path]:
    """As systemd does: cpu and cpuacct together, a name for each, and its own hierarchy."""
    mount("tmpfs", CGROUP, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=755")
    found = enabled_controllers()
    options = {name: name for name in found if name not in {"cpu", "cpuacct"}}
    if {"cpu", "cpuacct"} <= set(found):
        options["cpu,cpuacct"] = "cpu,cpuacct"
        for name in ("cpu", "cpuacct"):
            (CGROUP / name).symlink_to("cpu,cpuacct")
    options["systemd"] = "none,name=systemd"
    for name, option in options.items():
        (CGROUP / name).mkdir()
        mount("cgroup", CGROUP / name, "cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, option)
    return [CGROUP / name for name in options]


def mount_cgroups(kind: str) -> list[Path]:
    """Where the hierarchies are that this kind of machine has."""
    if kind == "v2":
        return [mount_v2(CGROUP)]
    if kind == "none":
        return []
    hierarchies = mount_v1()
    if kind == "hybrid":
        (CGROUP / "unified").mkdir()
        hierarchies.append(mount_v2(CGROUP / "unified"))
    return hierarchies


def delegate(hierarchies: list[Path]) -> list[Path]:
    """Give the user a group in each; the groups in them, made by the user, that the tests are to live in."""
    leaves = []
    for hierarchy in hierarchies:
        given = hierarchy / DELEGATED
        given.mkdir()
        os.chown(given, USER, USER)
        for name in ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads", "tasks"):
            with contextlib.suppress(FileNotFoundError):
                os.chown(given / name, USER, USER)
        leaves.append(given / "tests")
    os.setegid(USER)
    os.seteuid(USER)
    for leaf in leaves:
        leaf.mkdir()
    os.seteuid(0)
    os.setegid(0)
    return leaves


def let_user_be_known() -> None:
    """An entry in /etc/passwd, if there is none."""
    try:
        pwd.getpwuid(USER)
    except KeyError:
        entry = f"tester:x:{USER}:{USER}::/tmp/home:/bin/sh\n"
        Path("/run/passwd").write_text(Path("/etc/passwd").read_text("utf-8") + entry, "utf-8")
        mount("/run/passwd", "/etc/passwd", "", MS_BIND)


# --- The tests


def environment(plan: dict[str, Any]) -> dict[str, str]:
    return {
        "PATH": plan["path"],
        "HOME": "/tmp/home",
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PYTHONPATH": plan["cwd"],
        "PYTHONDONTWRITEBYTECODE": "1",
        "HYPOTHESIS_STORAGE_DIRECTORY": "/tmp/hypothesis",
        # For the tests: the kind of this machine, and a block device that nobody uses.
        "MUONTRAP_MACHINE": plan["kind"],
        "MUONTRAP_MACHINE_DISK": "/dev/ubda",
    }


def start(plan: dict[str, Any], leaves: list[Path]) -> int:
    """Start the tests, in a session and in groups of their own; their pid."""
    if pid := os.fork():
        return pid
    try:
        os.setsid()
        for leaf in leaves:
            (leaf / "cgroup.procs").write_text("0", "ascii")
        if plan["user"]:
            os.setgroups([])
            os.setresgid(USER, USER, USER)
            os.setresuid(USER, USER, USER)
        os.mkdir("/tmp/home")
        os.chdir(plan["cwd"])
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.execvpe(plan["argv"][0], plan["argv"], environment(plan))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(126)


def wait(pid: int) -> int:
    """Reap whatever ends until these tests have; their exit status as a shell gives it."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def describe_processes() -> None:
    """What was running, for a deadline that passed."""
    for name in sorted(filter(str.isdigit, os.listdir("/proc")), key=int):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state, parent = Path(f"/proc/{name}/stat").read_text("utf-8").rpartition(")")[2].split()[:2]
            if words:
                print(f"{name:>6} {state} parent {parent} {words[:150]}")


def run(plan: dict[str, Any]) -> int:
    hierarchies = mount_cgroups(plan["kind"])
    leaves = []
    if plan["user"]:
        leaves = delegate(hierarchies)
        let_user_be_known()
    # The report is written where this user may, and carried out afterwards.
    report = Path("/run/machine-report")
    report.mkdir()
    os.chown(report, *[USER if plan["user"] else 0] * 2)
    plan["argv"] = [word.replace(f"{SHARED}/", f"{report}/") for word in plan["argv"]]

    def at_deadline(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, at_deadline)
    signal.setitimer(signal.ITIMER_REAL, plan["deadline"])
    try:
        status = wait(start(plan, leaves))
    except TimeoutError:
        print(f"{plan['deadline']:g} s have passed; running are")
        describe_processes()
        status = TIMED_OUT
    signal.setitimer(signal.ITIMER_REAL, 0)
    for file in report.iterdir():
        (SHARED / file.name).write_bytes(file.read_bytes())
    return status


def main() -> None:
    began = time.time()
    mount_basics()
    shared = sys.argv[1]
    plan = json.loads(Path(shared, "plan.json").read_text("utf-8"))
    mount_writable(shared, plan["visible"], user=plan["user"])
    raise_loopback()
    socket.sethostname("localhost")  # which sudo looks up
    outcome = {"began": began, "status": run(plan)}
    (SHARED / "outcome.json").write_text(json.dumps(outcome), "utf-8")


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
    finally:  # a process 1 that ends is a kernel panic
        sys.stdout.flush()
        os.sync()
        power_off = 0x4321FEDC  # linux/reboot.h
        libc.reboot(power_off)
