"""Run tests of this checkout in a machine of another kind: `boot.py KIND [--user] -- PYTEST-ARGUMENTS`.

The machine is user-mode-linux (Debian: apt install user-mode-linux), a Linux kernel that runs as an ordinary
program. Its root is this machine's file system, read-only, so the same interpreter, the same checkout and the
same programs are there; what is different is what `inside.py`, its process 1, mounts on /sys/fs/cgroup:

    v2       cgroup2, with all controllers given to the root's children
    v1       a hierarchy for each v1 controller, and systemd's own
    hybrid   the same, and a cgroup2 without controllers at /sys/fs/cgroup/unified
    none     nothing

The tests run as root, in the root groups; with `--user` as uid 1000, in the group /delegated/tests of each
hierarchy. /delegated belongs to that user as far as systemd's `Delegate=yes` gives a group away (the folder,
cgroup.procs, cgroup.subtree_control, cgroup.threads; in v1 the folder, cgroup.procs, tasks), and gives no
controllers to its own children yet: that is for its user to do.

    boot.py (this machine)                                 linux.uml
    ├── init, plan.json  ─────────────────────────────>  inside.py mounts, then starts pytest
    ├── standard output  <─────────────────────────────  the console
    └── outcome.json, junit.xml  <─────────────────────  written through a folder mounted read-write

It ends as pytest did; with 124 when the deadline passed, 125 when the machine came to nothing. In there a
launch of a program takes some 20 ms, a fork of Python 80 ms: choose what to run.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

KINDS = ("v2", "v1", "hybrid", "none")
CHECKOUT = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).resolve().with_name("inside.py")

PAST_DEADLINE = 124
NO_OUTCOME = 125
GRACE = 10.0  # seconds: `inside.py` has the deadline too, and can say what was running

# A block device for io limits: 98:0 in there. Sparse.
DISK_SIZE = 64 << 20


def command_line(kernel: str, folder: Path, megabytes: int) -> list[str]:
    """What boots the machine whose files are in `folder`."""
    return [
        kernel, f"mem={megabytes}M", f"uml_dir={folder}/", f"ubd0={folder}/disk",
        "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={folder}/init",
        "con=null", "con0=null,fd:1", "quiet", "loglevel=3",
    ]  # fmt: skip


def memory_folder(folder: Path, megabytes: int) -> Path:
    """Where the machine's memory is a (deleted) file: a tmpfs, if there is one that has room for it."""
    with contextlib.suppress(FileNotFoundError):
        room = os.statvfs("/dev/shm")
        if room.f_bavail * room.f_frsize > megabytes << 20 and not room.f_flag & os.ST_NOEXEC:
            return Path("/dev/shm")
    return folder


def write_init(folder: Path) -> None:
    """The program that the kernel starts. A script, since a kernel's command line has no quoting."""
    argv = shlex.join([sys.executable, "-ISB", str(INSIDE), str(folder)])
    init = folder / "init"
    init.write_text(f"#!/bin/sh\nexec {argv}\n", encoding="utf-8")
    init.chmod(0o755)


def tests_argv(arguments: Sequence[str], junit: str) -> list[str]:
    """pytest, made to write nothing into the checkout and to be patient."""
    options = ["-p", "no:cacheprovider", "--color=no", "--timeout=300", f"--junit-xml={junit}"]
    return [sys.executable, "-B", "-m", "pytest", *options, *arguments]


def preload(folder: Path) -> dict[str, str]:
    """What the kernel's environment needs more: Linux 6.1 ends at once on a CPU with AMX.

    Its buffer for the extended state of a CPU is too small for that, and the host's kernel takes
    back no state that is truncated.
    """
    if "amx_tile" not in Path("/proc/cpuinfo").read_text("utf-8"):
        return {}
    compiler = shutil.which("cc") or shutil.which("gcc")
    if not compiler:
        raise SystemExit("no C compiler here: try  apt install gcc libc6-dev")
    library = folder / "xstate.so"
    source = Path(__file__).with_name("xstate.c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return {"LD_PRELOAD": str(library)}


# Sees the end of this program, whatever it is, as the end of its standard input.
WATCH = 'read -r _; kill -KILL "-$1"; rm -rf -- "$2"'


class Machine:
    """One boot. A context manager: leaving it leaves no process of the machine; nor does SIGKILL."""

    def __init__(self, argv: Sequence[str], folder: Path, memory: Path) -> None:
        variables = {**os.environ, "TMPDIR": str(memory), **preload(folder)}
        # What a dead machine leaves is adopted and found, not handed to this machine's process 1.
        pr_set_child_subreaper = 36
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_child_subreaper, 1, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        self.process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, env=variables,
        )  # fmt: skip
        self.pidfd = os.pidfd_open(self.process.pid)
        self.watch = subprocess.Popen(
            ["/bin/sh", "-c", WATCH, "sh", str(self.process.pid), str(folder)],
            stdin=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def copy_console(self, deadline: float) -> bool:
        """Copy the console to standard output until the machine has ended; False at the deadline."""
        assert self.process.stdout is not None
        console = self.process.stdout.fileno()
        poll = select.poll()
        poll.register(console, select.POLLIN)
        poll.register(self.pidfd, select.POLLIN)
        while ready := dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000)):
            data = os.read(console, 65536) if console in ready else b""
            sys.stdout.buffer.write(data.replace(b"\r", b""))
            sys.stdout.buffer.flush()
            if not data:
                return True
        return False

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the machine, if it is still there, and the processes that it ran its own in."""
        self.watch.kill()
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        for pid in self.left():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        os.close(self.pidfd)
        for pipe in (self.process.stdout, self.watch.stdin):
            if pipe:
                pipe.close()

    @staticmethod
    def left() -> list[int]:
        """The children of this program: they can't be reused before they are reaped."""
        me = os.getpid()
        return [int(pid) for pid in Path(f"/proc/self/task/{me}/children").read_text("ascii").split()]


def find_kernel() -> str:
    if kernel := shutil.which("linux.uml"):
        return kernel
    raise SystemExit("no linux.uml here: try  apt install user-mode-linux")


def run(arguments: argparse.Namespace, folder: Path) -> int:
    """Boot, run, and say how it ended."""
    write_init(folder)
    with open(folder / "disk", "wb") as disk:
        disk.truncate(DISK_SIZE)
    argv = arguments.arguments
    plan: dict[str, Any] = {
        "kind": arguments.kind,
        "user": arguments.user,
        "argv": argv if arguments.command else tests_argv(argv, "/run/machine/junit.xml"),
        "cwd": str(CHECKOUT),
        "deadline": arguments.deadline,
        # All that Python needs: a virtual environment, what it was made of, and this checkout.
        "visible": [str(CHECKOUT), sys.prefix, sys.base_prefix, *arguments.visible],
        "path": os.environ.get("PATH", os.defpath),
    }
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    begin, began = time.monotonic(), time.time()
    boots = command_line(find_kernel(), folder, arguments.memory)
    with Machine(boots, folder, memory_folder(folder, arguments.memory)) as machine:
        in_time = machine.copy_console(begin + arguments.deadline + GRACE)
    seconds = time.monotonic() - begin
    if not in_time:
        print(f"machine {arguments.kind}: killed after {seconds:.0f} s", flush=True)
        return PAST_DEADLINE
    try:
        outcome = json.loads((folder / "outcome.json").read_text("utf-8"))
    except FileNotFoundError:
        print(f"machine {arguments.kind}: ended after {seconds:.1f} s without an outcome", flush=True)
        return NO_OUTCOME
    if arguments.junit and (folder / "junit.xml").exists():
        shutil.copy(folder / "junit.xml", arguments.junit)
    print(
        f"machine {arguments.kind}{' --user' if arguments.user else ''}: {seconds:.1f} s, "
        f"{outcome['began'] - began:.1f} s of them to boot, exit status {outcome['status']}",
        flush=True,
    )
    return int(outcome["status"])


def parse(words: list[str]) -> argparse.Namespace:
    """The arguments; what comes after the first -- is `arguments`."""
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description="Run tests in a machine whose cgroups are of another kind.")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--user", action="store_true", help="run them as uid 1000, in a delegated group")
    parser.add_argument("--command", action="store_true", help="run this command, not pytest")
    parser.add_argument("--deadline", type=float, default=600, metavar="SECONDS", help="default: %(default)s")
    parser.add_argument("--memory", type=int, default=1024, metavar="MEGABYTES", help="default: %(default)s")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="where to put pytest's report")
    parser.add_argument(
        "--visible", action="append", default=[], metavar="FOLDER",
        help="a folder below /tmp or /run, which are otherwise empty in there",
    )  # fmt: skip
    parser.usage = "%(prog)s KIND [OPTIONS] -- ARGUMENTS OF PYTEST"
    parser.set_defaults(arguments=words[end + 1 :])
    return parser.parse_args(words[:end])


def main() -> int:
    arguments = parse(sys.argv[1:])
    # `finally` and `with` also at SIGTERM and SIGHUP.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix=f"machine-{arguments.kind}-") as folder:
        # Whose name the kernel's command line can carry.
        assert not set(folder) & set(" \t\n'\"="), f"choose another TMPDIR: {folder}"
        return run(arguments, Path(folder))


if __name__ == "__main__":
    sys.exit(main())
