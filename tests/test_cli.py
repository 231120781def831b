"""`muontrap run`: streams, exit statuses, limits, signals, and a terminal's job control."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import re
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import muontrap
from muontrap.cli.arguments import LIMITS, options, parser
from muontrap.cli.report import text
from muontrap.host import cgroups
from muontrap.logic.command import Command
from muontrap.logic.limits import Limits

BOUND = 20.0  # s, for things that take milliseconds
CLI = [sys.executable, "-m", "muontrap"]
JOB_SHELL = Path(__file__).parent / "programs" / "job_shell.py"
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `muontrap` with these arguments, streams captured."""
    options = {"stdin": subprocess.DEVNULL} | options
    if "input" in options:
        del options["stdin"]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([*CLI, *arguments], timeout=BOUND, **streams)


def sh(script: str, *options: str, **streams: Any) -> subprocess.CompletedProcess[bytes]:
    """Run a shell script under `muontrap run`."""
    return run("run", *options, "--", "sh", "-c", script, **streams)


def is_gone(pid: int) -> bool:
    """Wait until there is no such process; tell whether that came to be."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], BOUND)[0])
    finally:
        os.close(pidfd)


def children(pid: int) -> list[int]:
    """The pids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


# Streams and what else is inherited


def test_bytes_pass_through_untouched() -> None:
    data = bytes(range(256)) * 4096
    done = sh("cat; printf '\\377\\000' >&2", input=data)
    assert (done.stdout, done.stderr, done.returncode) == (data, b"\xff\0", 0)


def test_the_command_has_the_very_same_files(tmp_path: Path) -> None:
    with open(tmp_path / "in", "w+b") as stdin, open(tmp_path / "out", "w+b") as stdout:
        script = "import os; print(*(os.fstat(fd).st_ino for fd in (0, 1)), file=__import__('sys').stderr)"
        done = run("run", "--", sys.executable, "-c", script, stdin=stdin, stdout=stdout)
        inodes = [os.fstat(file.fileno()).st_ino for file in (stdin, stdout)]
    assert done.stderr.split() == [b"%d" % inode for inode in inodes]


def test_input_that_the_command_does_not_read_is_left(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(b"one\ntwo\n")
    with open(tmp_path / "in", "rb") as stdin:
        assert run("run", "--", "true", stdin=stdin).returncode == 0
        assert os.lseek(stdin.fileno(), 0, os.SEEK_CUR) == 0


def test_closed_streams_are_not_confused_with_ours() -> None:
    line = '"$@" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", line, "sh", *CLI, "run", "--", "sh", "-c", "cat; echo out; echo err >&2; exit 5"],
        timeout=BOUND,
    )
    assert done.returncode == 5


@pytest.mark.parametrize("arguments", [("doctor",), ("check", "/dev/null"), ("status",), ("logs", "web")])
def test_without_stdout_nothing_is_told(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$@" >&-', "sh", *CLI, *arguments], timeout=BOUND, stderr=subprocess.PIPE
    )
    assert (done.returncode, done.stderr) == (125, b"muontrap: stdout is closed\n")


def test_other_inherited_descriptors_are_passed_on() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"through")
    os.close(writing)
    done = sh(f"cat /dev/fd/{reading}", pass_fds=[reading])
    os.close(reading)
    assert done.stdout == b"through"


def test_a_writer_sees_that_its_reader_has_gone() -> None:
    """Neither we nor the guard keep open what the command got."""
    done = subprocess.run(
        ["sh", "-c", 'yes | "$@"', "sh", *CLI, "run", "head", "-n1"], timeout=BOUND, stdout=subprocess.PIPE
    )
    assert (done.returncode, done.stdout) == (0, b"y\n")


# Arguments


@pytest.mark.parametrize(
    "arguments",
    [
        ("--", "sh", "-c", 'echo "$@"', "x", "--timeout", "1", "--help"),
        ("sh", "-c", 'echo "$@"', "x", "--timeout", "1", "--help"),
        ("--stats", "sh", "-c", 'echo "$@"', "x", "--timeout", "1", "--help"),
    ],
)
def test_options_are_not_parsed_after_the_command(arguments: tuple[str, ...]) -> None:
    assert run("run", *arguments).stdout == b"--timeout 1 --help\n"


def test_the_commands_own_dashes_are_its_own() -> None:
    script = 'echo "$@"'
    assert run("run", "sh", "-c", script, "x", "--", "-y").stdout == b"-- -y\n"
    assert run("run", "--", "sh", "-c", script, "x", "--", "-y", "--").stdout == b"-- -y --\n"


def test_arguments_that_are_not_text() -> None:
    done = subprocess.run([*CLI, "run", "printf", "%s", b"\xff\xfe"], timeout=BOUND, stdout=subprocess.PIPE)
    assert done.stdout == b"\xff\xfe"


@pytest.mark.parametrize("arguments", [("--version",), ("--help",), ("run", "--help")])
def test_information_is_on_stdout(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, b"")
    assert muontrap.__version__ in done.stdout.decode() or b"usage: muontrap" in done.stdout


def test_every_option_is_documented() -> None:
    reference = Path(__file__).parent.parent / "docs" / "reference"
    pages = [(reference / name).read_text() for name in ("command-line.md", "limits.md", "doctor.md")]
    documented = set(re.findall(r"^\|(?: `\w+` \|)? `(--[a-z-]+)", "\n".join(pages), re.MULTILINE))
    helps = [run(command, "--help").stdout.decode() for command in ("run", "doctor")]
    found = set(re.findall(r"--[a-z][a-z-]+", "\n".join(helps)))
    assert found - {"--help"} == documented


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "COMMAND"),
        (("frobnicate",), "frobnicate"),
        (("run",), "no command"),
        (("run", "--"), "no command"),
        (("run", "--frobnicate", "true"), "--frobnicate"),
        (("run", "--time", "1", "true"), "--time"),
        (("run", "--timeout", "soon", "true"), "'soon'"),
        (("run", "--timeout", "1w", "true"), "'1w'"),
        (("run", "--timeout", "nan", "true"), "'nan'"),
        (("run", "--timeout", "inf", "true"), "'inf'"),
        (("run", "--timeout", "1e308d", "true"), "'1e308d'"),
        (("run", "--timeout", "", "true"), "''"),
        (("run", "--timeout", "0", "true"), "'0'"),
        (("run", "--timeout=-1", "true"), "'-1'"),
        (("run", "--delay-to-sigkill", "s", "true"), "'s'"),
        (("run", "--kill-mode", "gently", "true"), "'gently'"),
        (("run", "--stop-signal", "SIGNOT", "true"), "'SIGNOT'"),
        (("run", "--stop-signal", "0", "true"), "'0'"),
        (("run", "--stop-signal", "99", "true"), "'99'"),
        (("run", "--env", "=x", "true"), "'=x'"),
        (("run", "--user", "no-such-user", "true"), "there is no user 'no-such-user'"),
        (("run", "--group", "no-such-group", "true"), "there is no group 'no-such-group'"),
        (("run", "--user", "root", "true"), "--allow-root"),
        (("run", "--group", "0", "true"), "--allow-root"),
        (("run", "--user", "4000000000", "true"), "--group"),
        (("run", "--cwd", "/no/such/folder", "true"), "/no/such/folder"),
        (("run", "--cwd", "/etc/passwd", "true"), "/etc/passwd"),
        (("run", "--memory-max", "64X", "true"), "--memory-max must be a number of bytes"),
        (("run", "--memory-max", "64", "true"), "--memory-max must be 4096 or more"),
        (("run", "--timeout", "-.5", "true"), "'-.5'"),
        (("run", "--memory-min", "max", "true"), "--memory-min"),
        (("run", "--pids-max", "few", "true"), "--pids-max must be an integer"),
        (("run", "--pids-max", "0", "true"), "--pids-max must be from 1"),
        (("run", "--cpu-max", "0", "true"), "--cpu-max must be from 0.01"),
        (("run", "--cpu-weight", "9" * 5000, "true"), "--cpu-weight"),
        (("run", "--cpu-idle", "yes", "--cpu-weight", "3", "true"), "--cpu-weight=3 has no meaning"),
        (("run", "--cpu-idle", "maybe", "true"), "'maybe'"),
        (("run", "--cpuset-cpus", "1-0", "true"), "--cpuset-cpus"),
        (("run", "--io-max", "", "true"), "--io-max"),
        (("run", "--io-max", "sda rbps=1M", "true"), "--io-max must be of devices"),
        (("run", "--io-max", "8:0 bps=1M", "true"), "--io-max['8:0'] must be of rbps"),
        (("run", "--io-max", "8:0 rbps", "true"), "--io-max"),
        (("run", "--cgroup", "true", "true"), "'true'"),
        (("run", "--cgroup-base", "/app", "true"), "--cgroup-base must be a path below"),
        (("run", "--cgroup-path", "../app", "true"), "--cgroup-path must be a path below"),
        (("run", "--cgroup-base", "a", "--cgroup-path", "b", "true"), "--cgroup-base and --cgroup-path"),
        (("run", "--cgroup-controller", "../x", "true"), "--cgroup-controller must be a name"),
        (("run", "--cgroup-set", "memory.max=1", "true"), "CONTROLLER:FILE=VALUE"),
        (("run", "--cgroup-set", "memory:memory.max", "true"), "CONTROLLER:FILE=VALUE"),
        (("run", "--cgroup-set", "memory:a/b=1", "true"), "the file of --cgroup-set must be a name"),
        (("run", "--require", "walls", "true"), "'walls'"),
        (("run", "--cgroup-base", "no/such/group", "true"), "no/such/group"),
        (("doctor", "--xml"), "--xml"),
    ],
)
def test_what_makes_no_sense_is_named(arguments: tuple[str, ...], named: str) -> None:
    done = run(*arguments)
    lines = done.stderr.decode().splitlines()
    assert done.returncode == 125
    assert done.stdout == b""
    assert lines
    assert all(line.startswith("muontrap: ") for line in lines)
    assert named in lines[0]


@pytest.mark.parametrize("command", [("run", "true"), ("doctor",), ("logs", "web")])
def test_the_hint_is_at_the_help_of_the_subcommand(command: tuple[str, ...]) -> None:
    done = run(command[0], "--bogus", *command[1:])
    hint = f"muontrap: try 'muontrap {command[0]} --help'"
    assert done.stderr.decode().splitlines() == ["muontrap: unrecognized arguments: --bogus", hint]


@pytest.mark.parametrize("duration", ["0.2", ".2s", "200e-3s", "0.0033m"])
@pytest.mark.slow
def test_durations(duration: str) -> None:
    assert sh("sleep 60", "--timeout", duration).returncode == 124


@pytest.mark.parametrize("duration", ["90m", "2h", "400d"])
def test_long_durations(duration: str) -> None:
    assert sh("exit 3", "--timeout", duration, "--delay-to-sigkill", duration).returncode == 3


# Exit statuses


@pytest.mark.parametrize("status", [0, 1, 2, 123, 124, 125, 126, 127, 128, 255])
def test_the_commands_status(status: int) -> None:
    done = sh(f"exit {status}")
    assert (done.returncode, done.stderr) == (status, b"")


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGKILL, signal.SIGTERM, signal.SIGRTMIN + 1])
def test_killed_by_a_signal(signum: int) -> None:
    assert sh(f"kill -{int(signum)} $$").returncode == 128 + signum


@pytest.mark.parametrize("program", ["no-such-program", "./no-such-program"])
def test_not_found(program: str) -> None:
    done = run("run", "--", program)
    assert done.returncode == 127
    assert done.stderr.decode() == f"muontrap: {program!r}: No such file or directory\n"


@pytest.mark.parametrize(
    ("program", "text"), [("/etc/passwd", "Permission"), ("/etc", "Permission"), ("/etc/passwd/x", "Not a")]
)
def test_not_executable(program: str, text: str) -> None:
    done = run("run", "--", program)
    assert done.returncode == 126
    assert done.stderr.decode().startswith(f"muontrap: {program!r}: {text}")


def test_no_format_to_execute(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\0\1\2\3")
    program.chmod(0o755)
    assert run("run", str(program)).returncode == 126


def test_relative_program_starts_from_its_directory(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\npwd\n")
    program.chmod(0o755)
    done = run("run", "--cwd", str(tmp_path), "./program")
    assert done.stdout.decode() == f"{tmp_path.resolve()}\n"


@pytest.mark.slow
def test_timeout_ends_everything() -> None:
    started = time.monotonic()
    done = sh(
        "trap '' TERM; setsid sleep 60 & echo $!; sleep 60", "--timeout", "0.2", "--delay-to-sigkill", "0.1"
    )
    assert done.returncode == 124
    assert time.monotonic() - started < 10
    assert is_gone(int(done.stdout))


def test_a_daemon_does_not_keep_us() -> None:
    done = sh("setsid sleep 60 & echo $!")
    assert done.returncode == 0
    assert is_gone(int(done.stdout))


def test_muontrap_itself_fails() -> None:
    done = run("run", "true", env={**os.environ, "MUONTRAP_PYTHON": "/no/such/python"})
    assert done.returncode == 125
    assert done.stderr.startswith(b"muontrap: ")


def test_the_guard_dies() -> None:
    kill_guard = """
import os, signal
for entry in os.listdir("/proc"):
    try:
        if entry.isdecimal() and open(f"/proc/{entry}/comm").read() == "muontrap-guard\\n":
            if int(entry) == os.getppid():
                os.kill(int(entry), signal.SIGKILL)
    except OSError:
        pass
signal.pause()
"""
    done = run("run", sys.executable, "-c", kill_guard)
    assert done.returncode == 125
    assert done.stderr.startswith(b"muontrap: the guard died")


# Options


def test_env() -> None:
    done = sh(
        'echo "$ONE,${TWO-unset},$THREE,${KEPT-unset}"',
        *("--env", "ONE=a=b", "--env", "TWO", "--env", "THREE=3", "--env", "THREE="),
        env={**os.environ, "TWO": "2", "KEPT": "kept"},
    )
    assert done.stdout == b"a=b,unset,,kept\n"


@pytest.mark.slow
def test_stats() -> None:
    options = ("--timeout", "0.2", "--delay-to-sigkill", "0.1", "--stats")
    text = sh("trap '' TERM; sleep 60; sleep 60", *options).stderr.decode()
    assert text.startswith("muontrap: reason: timeout\nmuontrap: killed by: SIGKILL\n")
    for pattern in (
        r"wall: \d+\.\d{3} s",
        r"cpu: \d+\.\d{3} s user, \d+\.\d{3} s system",
        r"peak memory: (\d+\.\d MiB|too small to tell)",
        r"sent: SIGTERM to 1 process after \d+\.\d{3} s",
        r"sent: SIGKILL to \d process(es)? after \d+\.\d{3} s",
    ):
        assert re.search(f"^muontrap: {pattern}$", text, re.MULTILINE), text


@pytest.mark.slow
def test_stats_of_peak_memory() -> None:
    done = run("run", "--stats", sys.executable, "-c", "len(bytearray(b'x') * 200_000_000)")
    peak = re.search(r"peak memory: ([\d.]+) MiB", done.stderr.decode())
    assert peak
    assert 190 < float(peak[1]) < 400


def test_stats_of_a_plain_end() -> None:
    done = sh("exit 3", "--stats")
    assert done.returncode == 3
    assert done.stderr.startswith(b"muontrap: reason: exited\nmuontrap: exit status: 3\n")
    assert b"sent:" not in done.stderr


@pytest.mark.parametrize("name", ["INT", "sigint", "2"])
@pytest.mark.slow
def test_stop_signal(name: str) -> None:
    done = sh("exec sleep 60", "--stop-signal", name, "--timeout", "0.2", "--stats")
    assert b"sent: SIGINT to 1 process" in done.stderr


@pytest.mark.slow
def test_kill_mode() -> None:
    script = (
        "trap 'exit 3' TERM; sh -c 'trap \"echo inner; exit\" TERM; while :; do sleep 60 & wait; done' & wait"
    )
    options = ("--timeout", "0.5", "--delay-to-sigkill", "5")
    assert b"inner" in sh(script, *options, "--kill-mode", "control-group").stdout
    assert b"inner" not in sh(script, *options, "--kill-mode", "mixed").stdout


@needs_root
def test_user() -> None:
    account = pwd.getpwnam("nobody")
    done = sh('id -u; id -g; id -G; echo "$HOME"', "--user", "nobody")
    uid, gid, groups, home = done.stdout.decode().splitlines()
    assert (int(uid), int(gid), home) == (account.pw_uid, account.pw_gid, account.pw_dir)
    assert "0" not in groups.split()


@needs_root
def test_user_and_group_by_number() -> None:
    done = sh("id -u; id -g", "--user", "4321", "--group", "5432")
    assert done.stdout.split() == [b"4321", b"5432"]


@needs_root
def test_root_on_purpose() -> None:
    done = sh("id -u", "--user", "root", "--allow-root")
    assert done.stdout == b"0\n"


# Limits and cgroups


def chosen(*arguments: str) -> dict[str, Any]:
    """The library's options for these arguments."""
    return dict(options(parser().parse_args(["run", *arguments, "true"])))


def need(**options: Any) -> None:
    """Skip where there can't be such a cgroup."""
    try:
        cgroups.place(Command(["true"], cgroup=True, **options), 1)
    except muontrap.ContainmentError as error:
        pytest.skip(str(error))


HOG = [sys.executable, "-c", "bytearray(b'x') * 300_000_000"]


def test_limits_are_those_of_the_library() -> None:
    assert list(LIMITS) == list(Limits.__annotations__)
    given = {
        "memory_max": ("256M", "256M"),
        "memory_high": ("1.5G", "1.5G"),
        "memory_low": ("4096", "4096"),
        "memory_min": ("1K", "1K"),
        "memory_swap_max": ("max", "max"),
        "memory_oom_group": ("no", False),
        "cpu_max": ("0.5", "0.5"),
        "cpu_weight": ("50", 50),
        "cpu_idle": ("no", False),
        "pids_max": ("64", 64),
        "io_weight": ("20", 20),
        "io_max": ("8:0 rbps=1M wiops=100", {"8:0": {"rbps": "1M", "wiops": 100}}),
        "cpuset_cpus": ("0-3,5", "0-3,5"),
        "cpuset_mems": ("0", "0"),
    }
    arguments = [part for name, (said, _) in given.items() for part in (f"--{name.replace('_', '-')}", said)]
    found = chosen(*arguments)["limits"]
    assert found == {name: value for name, (_, value) in given.items()}
    assert Limits(**found)


@pytest.mark.parametrize(
    ("arguments", "option", "value"),
    [
        ((), "limits", None),
        ((), "cgroup", False),
        (("--cgroup", "yes"), "cgroup", True),
        (("--cgroup", "auto"), "cgroup", "auto"),
        (("--cpu-max", "50000 100000"), "limits", {"cpu_max": "50000 100000"}),
        (("--pids-max", "max"), "limits", {"pids_max": "max"}),
        (
            ("--io-max", "8:0 rbps=1M", "--io-max", "8:16,riops=5,wiops=max", "--io-max", "8:0 wbps=2M"),
            *(
                "limits",
                {"io_max": {"8:0": {"rbps": "1M", "wbps": "2M"}, "8:16": {"riops": 5, "wiops": "max"}}},
            ),
        ),
        (("--cgroup-base", "app"), "cgroup_base", "app"),
        (("--cgroup-path", "app/web"), "cgroup_path", "app/web"),
        (
            ("--cgroup-controller", "cpu", "--cgroup-controller", "memory"),
            *("cgroup_controllers", ["cpu", "memory"]),
        ),
        (
            ("--cgroup-set", "memory:memory.max=268435456", "--cgroup-set", "cpu:cpu.max=5 10=x:y"),
            *("cgroup_sets", [("memory", "memory.max", "268435456"), ("cpu", "cpu.max", "5 10=x:y")]),
        ),
        (("--require", "tag", "--require", "cgroup"), "require", ["tag", "cgroup"]),
    ],
)
def test_options_of_the_library(arguments: tuple[str, ...], option: str, value: Any) -> None:
    assert chosen(*arguments)[option] == value


@pytest.mark.parametrize(
    ("message", "here"),
    [
        ("memory_max must be 3", "--memory-max must be 3"),
        ("the period of cpu_max", "the period of --cpu-max"),
        ("/sys/memory_max/x and 'cpu_max'", "/sys/memory_max/x and 'cpu_max'"),
        ("a_b and cgroup_bases", "a_b and cgroup_bases"),
        ("cgroup_sets[2] is wrong", "--cgroup-set is wrong"),
        ("pass allow_root=True if", "pass --allow-root if"),
        ("needs group=, says", "needs --group, says"),
    ],
)
def test_names_of_options_in_messages(message: str, here: str) -> None:
    assert text(ValueError(message)) == here
    assert text(KeyError(message)) == here


@pytest.mark.slow
def test_out_of_memory_is_said() -> None:
    need(limits={"memory_max": "64M"})
    done = run("run", "--memory-max", "64M", "--", *HOG)
    assert done.returncode == 128 + signal.SIGKILL
    said = done.stderr.decode()
    assert re.fullmatch(r"muontrap: out of memory \(limit 64 MiB, peak (64|63\.\d) MiB\)\n", said), said


@pytest.mark.slow
def test_killed_is_not_out_of_memory() -> None:
    need(limits={"memory_max": "64M"})
    done = sh("kill -KILL $$", "--memory-max", "64M")
    assert (done.returncode, done.stderr) == (128 + signal.SIGKILL, b"")


@pytest.mark.slow
def test_stats_of_an_end_of_memory() -> None:
    need(limits={"memory_max": "64M"})
    said = run("run", "--stats", "--memory-max", "64M", "--", *HOG).stderr.decode()
    assert said.startswith("muontrap: reason: out-of-memory\nmuontrap: killed by: SIGKILL\n")
    for pattern in (
        r"containment: cgroup-v[12], (tag, )?subreaper",
        r"cgroup memory: peak \d+\.\d MiB, limit 64\.0 MiB",
        r"cgroup oom: \d+ process(es)? killed",
        r"out of memory \(limit 64 MiB, peak .*\)",
    ):
        assert re.search(f"^muontrap: {pattern}$", said, re.MULTILINE), said


@pytest.mark.slow
def test_stats_of_a_throttled_command() -> None:
    need(limits={"cpu_max": 0.2})
    loop = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done"
    said = sh(loop, "--stats", "--cpu-max", "0.2").stderr.decode()
    # v1's cpu controller alone does not count the time.
    pattern = (
        r"cgroup cpu: (\d+\.\d{3} s, .* user, .* system, )?throttled in \d+ of \d+ periods for \d+\.\d{3} s$"
    )
    assert re.search(f"^muontrap: {pattern}", said, re.MULTILINE), said


def test_stats_of_refused_forks() -> None:
    need(limits={"pids_max": 3})
    said = sh("sleep 5 & sleep 5 & sleep 5 & sleep 5", "--stats", "--pids-max", "3").stderr.decode()
    assert re.search(r"^muontrap: cgroup processes: (peak 3, )?refused \d+$", said, re.MULTILINE), said


def test_cgroup_set() -> None:
    need(limits={"pids_max": 3})
    done = sh("sleep 5 & sleep 5 & sleep 5 & sleep 5", "--cgroup-set", "pids:pids.max=3")
    assert b"fork" in done.stderr
    refused = sh("true", "--cgroup-set", "pids:pids.max=few")
    assert refused.returncode == 125
    assert re.match(r"muontrap: '/.*/pids\.max': Invalid argument .*'few'", refused.stderr.decode())


def test_require() -> None:
    assert sh("exit 3", "--require", "subreaper").returncode == 3
    done = sh("exit 3", "--require", "cgroup")
    assert done.returncode == 125
    assert re.match(rb"muontrap: --require 'cgroup': .*`muontrap doctor`", done.stderr)
    need()
    assert sh("exit 3", "--require", "cgroup", "--cgroup", "auto").returncode == 3


# Signals


@contextlib.contextmanager
def started(*arguments: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """`muontrap` with a pipe from its stdout."""
    process = subprocess.Popen(
        [*CLI, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[bytes]) -> str:
    """The next line that the command says."""
    assert process.stdout
    ready, _, _ = select.select([process.stdout], [], [], BOUND)
    assert ready, "nothing was said"
    text = b""
    while not text.endswith(b"\n"):
        byte = os.read(process.stdout.fileno(), 1)
        assert byte, text
        text += byte
    return text.decode().strip()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_is_forwarded_as_a_stop(signum: int) -> None:
    script = "trap 'echo stopping; exit 7' TERM; echo $$; while :; do sleep 60 & wait; done"
    with started("run", "--delay-to-sigkill", "10", "--stats", "sh", "-c", script) as process:
        pid = int(line(process))
        process.send_signal(signum)
        assert line(process) == "stopping"
        _, errors = process.communicate(timeout=BOUND)
        assert process.returncode == 7
        assert errors.startswith(b"muontrap: reason: stopped\n")
        assert is_gone(pid)


@pytest.mark.slow
def test_the_grace_ends() -> None:
    with started(
        "run", "--delay-to-sigkill", "0.2", "sh", "-c", "trap '' TERM; echo $$; sleep 60; sleep 60"
    ) as process:
        pid = int(line(process))
        process.terminate()
        assert process.wait(BOUND) == 128 + signal.SIGKILL
        assert is_gone(pid)


@pytest.mark.parametrize(("second", "pause"), [(signal.SIGINT, 0), (signal.SIGTERM, 0.35)])
def test_a_second_signal_kills_at_once(second: int, pause: float) -> None:
    script = "trap 'echo stopping' TERM; echo $$; while :; do sleep 60 & wait; done"
    with started("run", "--delay-to-sigkill", "1h", "sh", "-c", script) as process:
        pid = int(line(process))
        process.terminate()
        assert line(process) == "stopping"
        time.sleep(pause)
        process.send_signal(second)
        assert process.wait(BOUND) == 128 + signal.SIGKILL
        assert is_gone(pid)


def test_the_same_signal_twice_at_once_is_one() -> None:
    """As timeout(1) sends it."""
    script = "trap 'sleep 0.1; exit 7' TERM; echo; while :; do sleep 60 & wait; done"
    with started("run", "--delay-to-sigkill", "10", "sh", "-c", script) as process:
        line(process)
        process.terminate()
        time.sleep(0.002)
        process.terminate()
        assert process.wait(BOUND) == 7


@pytest.mark.slow
def test_a_signal_before_the_command_is_not_lost() -> None:
    """Whenever it comes, it ends us, and nothing is left."""
    for delay in (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.1):
        with started("run", "--", "sh", "-c", "echo $$; exec sleep 60") as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(delay)
            process.terminate()
            output, _ = process.communicate(timeout=BOUND)
            assert process.returncode in (-signal.SIGTERM, 128 + signal.SIGTERM)
            assert not output or is_gone(int(output))


@pytest.mark.slow
def test_what_is_ignored_stays_ignored() -> None:
    """As nohup(1) means it."""
    script = "echo ready; sleep 60 & wait"
    with started(
        "run", "sh", "-c", script, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ) as process:
        assert line(process) == "ready"
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.terminate()
        assert process.wait(BOUND) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_killed_it_leaves_nothing() -> None:
    with started(
        "run", "sh", "-c", "trap '' TERM; echo $$; setsid sleep 60 & echo $!; sleep 60; sleep 60"
    ) as process:
        pids = [int(line(process)), int(line(process))]
        process.kill()
        assert all(map(is_gone, pids))


# A terminal


class Session:
    """A terminal, a session on it, and a shell for one job (see tests/programs/job_shell.py)."""

    def __init__(self, *command: str, mode: str = "foreground") -> None:
        self._master, terminal = os.openpty()
        orders, self._orders = os.pipe()
        self._events, events = os.pipe()
        shell = [sys.executable, str(JOB_SHELL), os.ttyname(terminal), str(orders), str(events), mode]
        self.process = subprocess.Popen([*shell, *command], pass_fds=[orders, events])
        for fd in (orders, events):
            os.close(fd)
        self._terminal = terminal  # open, so that the end of all others is no hang-up
        self.text = ""

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for fd in (self._master, self._terminal, self._orders, self._events):
            os.close(fd)

    def type(self, text: str) -> None:
        """Have the user type that."""
        os.write(self._master, text.encode())

    def resize(self) -> None:
        """Have the user resize the window."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", 50, 100, 0, 0))

    def order(self, order: str) -> None:
        """Tell the shell what to do with the stopped job."""
        os.write(self._orders, f"{order}\n".encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait until that is on the screen; forget the screen up to it."""
        deadline = time.monotonic() + BOUND
        while not (found := re.search(pattern, self.text)):
            ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not appear: {self.text!r}"
            self.text += os.read(self._master, 65536).decode(errors="replace")
        self.text = self.text[found.end() :]
        return found

    def event(self) -> dict[str, Any]:
        """Wait until the shell sees something of its job."""
        ready, _, _ = select.select([self._events], [], [], BOUND)
        assert ready, f"the job neither stopped nor ended: {self.rest()!r}"
        event: dict[str, Any] = json.loads(os.read(self._events, 65536))
        return event

    def hang_up(self) -> None:
        """Close the terminal's window."""
        os.close(self._master)
        self._master = os.open(os.devnull, os.O_RDWR)

    def front(self) -> int:
        """The process group in the foreground."""
        return os.tcgetpgrp(self._master)

    def wait_front(self, group: int) -> None:
        """Wait until that group is in the foreground, which the kernel has no event for."""
        deadline = time.monotonic() + BOUND
        while self.front() != group:
            assert time.monotonic() < deadline, f"{self.front()} is in the foreground, not {group}"
            time.sleep(0.001)

    def rest(self) -> str:
        """All that is on the screen by now."""
        while select.select([self._master], [], [], 0)[0]:
            self.text += os.read(self._master, 65536).decode(errors="replace")
        return self.text


def ended(status: int) -> dict[str, Any]:
    """The event of a job that has left the terminal as it was."""
    return {"stopped": None, "status": status, "front": "job", "modes_as_before": True}


def stopped(signum: int = signal.SIGTSTP) -> dict[str, Any]:
    """The event of a job that has stopped, and left the terminal as it was."""
    return {"stopped": signum, "status": None, "front": "job", "modes_as_before": True}


# Says its pid, and what comes to it: signals, and lines that are typed.
LISTENER = """
import os, signal, sys
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"<INT>\\n"))  # print() may be what it interrupts
signal.signal(signal.SIGCONT, lambda *_: os.write(1, b"<CONT>\\n"))
print(f"<{os.getpid()} {os.getpgrp()} {os.getsid(0)} {os.tcgetpgrp(0)}>", flush=True)
for line in sys.stdin:
    if line == "end\\n":
        sys.exit(5)
    print(f"<line {line.strip()}>", flush=True)
"""
RUN_LISTENER = [*CLI, "run", "--", sys.executable, "-c", LISTENER]


def test_the_command_has_the_terminal() -> None:
    with Session(*RUN_LISTENER) as session:
        pid, group, sid, front = map(int, session.expect(r"<(\d+) (\d+) (\d+) (\d+)>").groups())
        assert pid == group == front == session.front()
        assert sid == session.process.pid
        session.type("end\n")
        assert session.event() == ended(5)


def test_ctrl_c_is_the_commands_alone() -> None:
    with Session(*RUN_LISTENER) as session:
        session.expect(r"<\d+ ")
        session.type("\x03")
        session.expect("<INT>")
        session.type("hello\nend\n")
        session.expect("<line hello>")
        assert session.event() == ended(5)
        assert "<INT>" not in session.rest()


def test_ctrl_c_ends_what_does_not_mind_it() -> None:
    with Session(*CLI, "run", "--", "sh", "-c", "echo ready; exec sleep 60") as session:
        session.expect("ready")
        session.type("\x03")
        assert session.event() == ended(128 + signal.SIGINT)


def test_ctrl_z_and_fg() -> None:
    with Session(*RUN_LISTENER) as session:
        pid = int(session.expect(r"<(\d+) ")[1])
        for _ in range(3):
            session.type("\x1a")
            assert session.event() == stopped()
            session.order("fg")
            session.expect("<CONT>")
            session.type("hello\n")
            session.expect("<line hello>")
            assert session.front() == pid
        session.type("end\n")
        assert session.event() == ended(5)


def test_ctrl_z_and_bg() -> None:
    """In the background it goes on until it wants to read; then it stops, as any job would."""
    with Session(*RUN_LISTENER) as session:
        session.expect(r"<\d+ ")
        session.type("\x1a")
        assert session.event() == stopped()
        session.order("bg")
        session.expect("<CONT>")
        assert session.event() == stopped() | {"front": "shell"}
        session.order("fg")
        session.type("end\n")
        assert session.event() == ended(5)


def test_ctrl_z_and_the_end_in_the_background() -> None:
    script = "trap 'exit 6' CONT; echo ready; while :; do sleep 60 & wait; done"
    with Session(*CLI, "run", "--", "sh", "-c", script) as session:
        session.expect("ready")
        session.type("\x1a")
        assert session.event() == stopped()
        session.order("bg")
        assert session.event() == ended(6) | {"front": "shell"}


def test_started_in_the_background() -> None:
    """It does not read what is typed to the shell; brought to the foreground, it does."""
    with Session(*RUN_LISTENER, mode="background") as session:
        pid, *_, front = map(int, session.expect(r"<(\d+) (\d+) (\d+) (\d+)>").groups())
        assert front == session.process.pid
        assert session.event() == stopped() | {"front": "shell"}
        session.order("fg")
        session.type("hello\n")
        session.expect("<line hello>")
        assert session.front() == pid
        session.type("\x1a")
        assert session.event() == stopped()
        session.order("fg")
        session.type("end\n")
        assert session.event() == ended(5)


def test_brought_to_the_foreground_while_it_runs() -> None:
    """A shell says nothing then: what is typed tells."""
    traps = "".join(f"trap 'echo \"<{name}>\"' {name}; " for name in ("INT", "CONT", "WINCH"))
    script = f'{traps}echo "<$$>"; while :; do sleep 60 & wait; done'
    with Session(*CLI, "run", "--", "sh", "-c", script, mode="raised") as session:
        pid = int(session.expect(r"<(\d+)>")[1])
        session.order("fg")
        (host,) = children(session.process.pid)
        session.wait_front(host)
        session.type("\x1a")
        assert session.event() == stopped()
        session.order("bg")
        session.expect("<CONT>")
        os.kill(host, signal.SIGTSTP)  # nothing that the terminal has sent
        assert session.event() == stopped() | {"front": "shell"}
        session.order("fg")
        session.expect("<CONT>")
        session.wait_front(pid)
        session.type("\x1c")
        assert session.event() == ended(128 + signal.SIGQUIT)


@pytest.mark.parametrize("signum", ["INT", "WINCH"])
def test_what_the_terminal_sends_before_the_command_has_it(signum: str) -> None:
    script = f'trap \'echo "<{signum}>"\' {signum}; echo "<$$>"; while :; do sleep 60 & wait; done'
    with Session(*CLI, "run", "--", "sh", "-c", script, mode="raised") as session:
        pid = int(session.expect(r"<(\d+)>")[1])
        session.order("fg")
        (host,) = children(session.process.pid)
        session.wait_front(host)
        if signum == "INT":
            session.type("\x03")
        else:
            session.resize()
        session.expect(f"<{signum}>")
        session.wait_front(pid)
        session.type("\x1c")
        assert session.event() == ended(128 + signal.SIGQUIT)


EARLY = """
import signal, sys
from muontrap.cli import main, running
ready = sys.argv.pop(1)
launch = running._Signals.launch
def then_a_signal(*args):
    process = launch(*args)
    open(ready).read()
    signal.raise_signal(signal.SIGTSTP)
    return process
running._Signals.launch = then_a_signal
sys.exit(main())
"""


def test_what_is_typed_as_soon_as_there_is_a_command_stops_it(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    script = f"trap 'echo \"<CONT>\"' CONT; echo >{ready}; while :; do sleep 60 & wait; done"
    with Session(sys.executable, "-c", EARLY, str(ready), "run", "--", "sh", "-c", script) as session:
        assert session.event() == stopped()
        session.order("fg")
        session.expect("<CONT>")
        session.type("\x1c")
        assert session.event() == ended(128 + signal.SIGQUIT)


@pytest.mark.slow
def test_a_timeout_while_suspended() -> None:
    script = "trap 'exit 7' TERM; echo $PPID; while :; do sleep 60 & wait; done"
    with Session(
        *CLI, "run", "--delay-to-sigkill", "10", "--timeout", "0.5", "--", "sh", "-c", script
    ) as session:
        session.expect(r"\d+")
        session.type("\x1a")
        assert session.event() == stopped()
        session.order("fg")
        assert session.event() == ended(124)


def test_without_a_shell_ctrl_z_changes_nothing() -> None:
    """As the leader of its session, as in a container, nobody could continue it."""
    with Session(*RUN_LISTENER, mode="leader") as session:
        pid = int(session.expect(r"<(\d+) ")[1])
        session.type("\x1a")
        session.expect("<CONT>")
        session.type("hello\n")
        session.expect("<line hello>")
        assert session.front() == pid
        session.type("end\n")
        assert session.process.wait(BOUND) == 5


def test_stopped_and_continued_from_outside() -> None:
    """Whoever stops just us, the shell brings all of it back."""
    with Session(*RUN_LISTENER) as session:
        pid = int(session.expect(r"<(\d+) ")[1])
        (host,) = children(session.process.pid)
        os.kill(host, signal.SIGSTOP)
        assert session.event()["stopped"] == signal.SIGSTOP
        session.order("fg")
        session.wait_front(pid)
        session.type("end\n")
        assert session.event() == ended(5)


MESS = "stty raw -echo; echo ready; "


def test_modes_are_restored() -> None:
    with Session(*CLI, "run", "--", "sh", "-c", MESS + "exit 4") as session:
        assert session.event() == ended(4)


@pytest.mark.slow
def test_modes_are_restored_after_a_kill() -> None:
    with Session(*CLI, "run", "--timeout", "0.5", "--", "sh", "-c", MESS + "exec sleep 60") as session:
        assert session.event() == ended(124)


def test_modes_are_the_commands_while_it_has_the_terminal() -> None:
    script = "stty -echo; echo ready; kill -STOP $$; stty -a; exit 4"
    with Session(*CLI, "run", "--", "sh", "-c", script) as session:
        assert session.event() == stopped()
        session.order("fg")
        session.expect(r" -echo ")
        assert session.event() == ended(4)


def test_the_terminal_is_taken_back_from_a_group_that_is_gone() -> None:
    """The command has put a child in the foreground, and both are killed."""
    script = """
import os, signal, time
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = os.fork()
if child == 0:
    signal.pause()
os.setpgid(child, child)
os.tcsetpgrp(0, child)
print("ready", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    with Session(*CLI, "run", "--", sys.executable, "-c", script) as session:
        assert session.event() == ended(128 + signal.SIGKILL)


@pytest.mark.parametrize(("program", "status"), [("no-such-program", 127), ("/etc/passwd", 126)])
def test_the_terminal_is_taken_back_when_there_is_no_command(program: str, status: int) -> None:
    with Session(*CLI, "run", "--", program) as session:
        assert session.event() == ended(status)


@pytest.mark.slow
def test_the_guard_gives_the_terminal_back_when_we_are_killed() -> None:
    command = ["sh", "-c", "trap '' TERM; echo guard $PPID; sleep 60; sleep 60"]
    script = """
import signal, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
process = subprocess.Popen(sys.argv[1:])
print(f"<{process.pid}>", flush=True)
print(f"status {process.wait()}", flush=True)
signal.sigwait([signal.SIGUSR1])
print(f"[{input()}]", flush=True)
sys.exit(9)
"""
    with Session(sys.executable, "-c", script, *CLI, "run", "--", *command) as session:
        host = int(session.expect(r"<(\d+)>")[1])
        guard = int(session.expect(r"guard (\d+)")[1])
        parent = os.getpgid(host)
        assert session.front() != parent
        os.kill(host, signal.SIGKILL)
        session.expect("status -9")
        assert is_gone(guard)
        assert session.front() == parent
        os.kill(parent, signal.SIGUSR1)
        session.type("hello\n")
        session.expect(r"\[hello\]")
        assert session.event() == ended(9)


def test_a_hang_up_ends_it() -> None:
    with Session(
        *CLI, "run", "--", "sh", "-c", "trap '' HUP; echo $$; exec sleep 60", mode="leader"
    ) as session:
        pid = int(session.expect(r"\d+")[0])
        session.hang_up()
        assert is_gone(pid)


@pytest.mark.skipif(not shutil.which("less"), reason="needs less")
def test_less(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("".join(f"line {number}\n" for number in range(1000)))
    with Session("env", "TERM=xterm", "LESS=", *CLI, "run", "--", "less", str(file)) as session:
        session.expect("line 1\r")
        session.type("G")
        session.expect("line 999")
        # A key after Ctrl-Z: less misses a signal that comes just before it reads, until it has read.
        session.type("\x1aG")
        assert session.event() == stopped()
        session.order("fg")
        session.type("g")
        session.expect("line 1\r")
        session.type("q")
        assert session.event() == ended(0)


@pytest.mark.skipif(not shutil.which("bash"), reason="needs bash")
def test_a_job_of_bash() -> None:
    """With job control, but not interactive: bash then loses what is typed just after a job stops."""
    command = shlex.join([*CLI, "run", "--", "sh", "-c", "echo ready; cat; exit 6"])
    script = f"set -m; {command}; echo status $?; jobs; fg; echo status $?"
    with Session("bash", "--norc", "--noprofile", "-c", script, mode="leader") as session:
        session.expect("ready\r")
        session.type("one\n")
        session.expect("one\r\none\r")
        session.type("\x1a")
        session.expect(f"status {128 + signal.SIGTSTP}\r")
        session.expect("Stopped")
        session.type("two\n")
        session.expect(r"two\r(?s:.*)two\r")
        session.type("\x04")
        session.expect("status 6\r")
