"""`muontrap supervise` as a main process, and `status`, `start`, `stop`, `restart`, `logs` beside it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from arena import BOUND, PROGRAMS, REPOSITORY, Arena, is_alive, read_stat, wait_readable

pytestmark = pytest.mark.slow
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")

CLI = [sys.executable, "-m", "muontrap"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
TWO = """
[daemon.db]
command = ["sh", "-c", "echo up; exec sleep 1000"]
ready = "output:up"
[daemon.web]
command = ["sleep", "1001"]
depends_on = ["db"]
"""
# Ignores SIGTERM, and leaves its session: what only a guard ends.
STUBBORN = """
[daemon.stubborn]
command = ["sh", "-c", "trap '' TERM; setsid sleep 1000 & echo up; while :; do sleep 1000; done"]
ready = "output:up"
delay_to_sigkill = 1
"""
TALKS = r"""
[daemon.talks]
command = ["sh", "-c", "trap 'printf last; exit' TERM; printf '\\377 begun\\n'; while :; do sleep .1; done"]
ready = "output:begun"
delay_to_sigkill = 5
"""


class Supervise:
    """`muontrap supervise` in an arena; the test plays systemd, which is told what becomes of it."""

    def __init__(self, arena: Arena, text: str, *before: str) -> None:
        self.file = arena.folder / "tree.toml"
        self.directory = arena.folder / "run"
        self._errors = arena.folder / "errors"
        self.write(text)
        self._notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(arena.folder / "notify")
        self._notified.bind(str(arena.folder / "notify"))
        self._notified.settimeout(4 * BOUND)
        argv = [*before, *CLI, "supervise", str(self.file), "--directory", str(self.directory)]
        with open(self._errors, "wb") as errors:
            self.process = subprocess.Popen(
                arena.ledger.enter(argv),
                cwd=arena.folder,
                env={**ENVIRONMENT, "NOTIFY_SOCKET": str(arena.folder / "notify")},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        self.pid = self.process.pid

    def write(self, text: str) -> None:
        self.file.write_text(textwrap.dedent(text))

    def told(self) -> str:
        """What systemd is told next."""
        return self._notified.recv(4096).decode()

    def has_told(self) -> bool:
        return wait_readable([self._notified.fileno()], 0)

    def said(self) -> str:
        """What it has written on stderr so far, without the times."""
        return re.sub(r"(?m)^[\d-]+ [\d:,]+ ", "", self._errors.read_text())

    def load(self, text: str) -> str:
        """Let it read another file; what it says then."""
        before = len(self.said())
        self.write(text)
        os.kill(self.pid, signal.SIGHUP)
        assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", self.told())
        assert self.told() == "READY=1"
        return self.said()[before:]

    def ask(self, command: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return cli(command, "--directory", str(self.directory), *arguments, **options)

    def children(self) -> dict[str, dict[str, Any]]:
        found = json.loads(self.ask("status", "--json").stdout)
        return {child["name"]: child for child in found}

    def pids(self) -> dict[str, int | None]:
        return {name: child["pid"] for name, child in self.children().items()}

    def end(self, signum: int = signal.SIGTERM) -> int:
        """Signal it, and return its exit status."""
        os.kill(self.pid, signum)
        return self.process.wait(4 * BOUND)

    def close(self) -> None:
        self._notified.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def supervise(arena: Arena) -> Iterator[Callable[..., Supervise]]:
    """Starts one; all of them are gone after the test, with all that they started."""
    with contextlib.ExitStack() as stack:

        def start(text: str, *before: str, ready: bool = True) -> Supervise:
            made = Supervise(arena, text, *before)
            stack.callback(made.close)
            assert not ready or made.told() == "READY=1", made.said()
            return made

        yield start


def cli(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run([*CLI, *arguments], env=ENVIRONMENT, text=True, timeout=4 * BOUND, **options)


def children_of(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


# --- Its life


def test_sigterm_ends_the_tree_in_reverse_order_with_status_0(
    supervise: Callable[..., Supervise], arena: Arena
) -> None:
    running = supervise(TWO)
    assert running.end() == 0
    arena.wait_left()
    assert running.said().splitlines() == [
        "muontrap.supervisor: db started",
        "muontrap.supervisor: db ready",
        "muontrap.supervisor: web started",
        "muontrap.supervisor: web ready",
        "muontrap: SIGTERM: stopping in order",
        "muontrap.supervisor: web exited: stopped",
        "muontrap.supervisor: db exited: stopped",
    ]
    assert os.listdir(running.directory) == ["lock"]


def test_sigint_while_it_starts_ends_it_too(supervise: Callable[..., Supervise], arena: Arena) -> None:
    running = supervise(TWO + 'wait_for = "file:/never"\n', ready=False)
    while "db ready" not in running.said():
        assert running.process.poll() is None
        time.sleep(0.01)
    assert running.end(signal.SIGINT) == 0
    arena.wait_left()
    assert running.told() == "STOPPING=1"
    assert not running.has_told()  # that it is ready


def test_sigkill_of_it_leaves_nothing(supervise: Callable[..., Supervise], arena: Arena) -> None:
    running = supervise(TWO + STUBBORN)
    while len(arena.named("sleep")) < 4:
        assert running.process.poll() is None
    assert running.end(signal.SIGKILL) == -signal.SIGKILL
    arena.wait_left(bound=1 + BOUND)


@pytest.mark.parametrize(("second", "pause"), [(signal.SIGINT, 0), (signal.SIGTERM, 0.35)])
def test_a_second_signal_leaves_at_once_and_the_guard_ends_the_rest(
    supervise: Callable[..., Supervise], arena: Arena, second: int, pause: float
) -> None:
    running = supervise(STUBBORN)
    stubborn = running.pids()["stubborn"]
    assert stubborn
    os.kill(running.pid, signal.SIGTERM)
    assert running.told() == "STOPPING=1"
    assert running.children()["stubborn"]["state"] == "stopping"
    time.sleep(pause)
    assert running.end(second) == 128 + second
    assert is_alive(stubborn)
    arena.wait_left(bound=1 + BOUND)


def test_the_same_signal_twice_at_once_is_one(supervise: Callable[..., Supervise]) -> None:
    running = supervise(STUBBORN)
    os.kill(running.pid, signal.SIGTERM)
    time.sleep(0.002)
    assert running.end() == 0
    assert running.said().endswith("stopping in order\nmuontrap.supervisor: stubborn exited: stopped\n")


def test_giving_up_ends_it_with_status_1_and_the_story(
    supervise: Callable[..., Supervise], arena: Arena
) -> None:
    running = supervise(
        """
        [supervisor]
        max_restarts = 1
        [daemon.other]
        command = ["sleep", "1000"]
        [daemon.bad]
        command = ["sh", "-c", "exit 3"]
        ready = "output:never"
        backoff = { initial = 0 }
        """,
        ready=False,
    )
    assert running.process.wait(4 * BOUND) == 1
    arena.wait_left()
    assert running.said().endswith(
        """\
muontrap: supervisor: bad: more than 1 restarts in 5 s, last: exit status 3
  bad: exit status 3
  bad: exit status 3
  bad: more than 1 restarts in 5 s: given up
"""
    )
    assert "Traceback" not in running.said()
    assert not running.has_told()  # that it is ready


# --- As pid 1


NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


@needs_root
def test_as_pid_1_it_reaps_what_falls_to_it_and_ends_in_order(
    supervise: Callable[..., Supervise], arena: Arena
) -> None:
    running = supervise(TWO, *NAMESPACE)
    [first] = children_of(running.pid)
    before = children_of(first)
    os.mkfifo(arena.folder / "go")
    entered = ["nsenter", "-t", str(first), "-p", "-m"]
    script = f"for i in 1 2 3 4 5 6 7 8 9 10; do (read x < {arena.folder}/go) & done"
    subprocess.run(arena.ledger.enter([*entered, "sh", "-c", script]), check=True)
    orphans = children_of(first) - before
    assert len(orphans) == 10
    deadline = time.monotonic() + 2 * BOUND
    while left := children_of(first) - before:
        with contextlib.suppress(OSError):  # nobody has opened it at this moment
            os.close(os.open(arena.folder / "go", os.O_WRONLY | os.O_NONBLOCK))
        assert time.monotonic() < deadline, [read_stat(f"/proc/{pid}/stat") for pid in left]
        time.sleep(0.01)
    os.kill(first, signal.SIGTERM)
    assert running.process.wait(4 * BOUND) == 0
    arena.wait_left()
    assert running.said().splitlines()[-3:] == [
        "muontrap: SIGTERM: stopping in order",
        "muontrap.supervisor: web exited: stopped",
        "muontrap.supervisor: db exited: stopped",
    ]


@needs_root
@pytest.mark.parametrize("who", ["unshare", "pid 1"])
def test_sigkill_of_a_container_leaves_nothing(
    supervise: Callable[..., Supervise], arena: Arena, who: str
) -> None:
    running = supervise(TWO + STUBBORN, *NAMESPACE)
    [first] = children_of(running.pid)
    os.kill(first if who == "pid 1" else running.pid, signal.SIGKILL)
    arena.wait_left()


# --- As a service of systemd


def test_as_a_service_it_tells_what_becomes_of_it(supervise: Callable[..., Supervise], arena: Arena) -> None:
    os.mkfifo(arena.folder / "go")
    becomes_ready = [
        sys.executable,
        str(PROGRAMS / "becomes_ready.py"),
        str(arena.folder / "go"),
        "notify",
        "-",
    ]
    text = f"""
        [daemon.first]
        command = ["sh", "-c", "echo socket=$NOTIFY_SOCKET.; exec sleep 1000"]
        ready = "output:socket"
        [daemon.second]
        command = {json.dumps(becomes_ready)}
        ready = "notify"
    """
    running = supervise(text, ready=False)
    while "second started" not in running.said():
        assert running.process.poll() is None
        time.sleep(0.01)
    while not running.ask("logs", "first").stdout:
        time.sleep(0.01)
    states = {name: child["state"] for name, child in running.children().items()}
    assert states == {"first": "ready", "second": "starting"}
    assert not running.has_told()
    (arena.folder / "go").write_text("")
    assert running.told() == "READY=1"
    assert running.ask("logs", "first").stdout == "socket=.\n"
    running.load(text)
    assert running.end() == 0
    assert running.told() == "STOPPING=1"
    assert not running.has_told()


# --- SIGHUP


def test_sighup_changes_only_what_has_changed(supervise: Callable[..., Supervise], arena: Arena) -> None:
    goes = '[daemon.goes]\ncommand = ["sleep", "1002"]\n'
    group = '[group.g.daemon.x]\ncommand = ["sleep", "1003"]\n'
    running = supervise(TWO + goes + group)
    before = running.pids()
    assert running.load(TWO + goes + group).endswith(" was read again: nothing has changed\n")
    assert running.pids() == before
    changed = (
        TWO.replace("1001", "1004")
        + group
        + '[group.g.daemon.y]\ncommand = ["sleep", "1005"]\n[supervisor]\nmax_restarts = 9\n'
    )
    lines = running.load(changed).splitlines()
    assert lines[0] == "muontrap: max_restarts of the supervisor itself: only a restart changes that"
    # "web ready" may come after it.
    assert f"muontrap: {running.file} was read again: 2 removed, 2 added" in lines
    after = running.pids()
    assert after.keys() == {"db", "web", "g/x", "g/y"}
    assert (after["db"], after["g/x"]) == (before["db"], before["g/x"])
    assert after["web"] != before["web"]
    gone = before["goes"]
    assert gone
    assert not is_alive(gone)
    assert running.end() == 0
    arena.wait_left()


def test_sighup_with_a_file_that_is_not_right_changes_nothing(supervise: Callable[..., Supervise]) -> None:
    running = supervise(TWO)
    before = running.pids()
    said = running.load('[daemon.db]\ncommand = ["sleep", "1"]\n[daemon.web]\ncomand = ["sleep"]\n')
    assert said.splitlines() == [
        f'{running.file}:3: daemon \'web\' has no command, such as ["nginx", "-g", "daemon off;"]',
        f"{running.file}:4: unknown key 'comand': is 'command' meant?",
        "muontrap: nothing was changed",
    ]
    running.file.unlink()
    os.kill(running.pid, signal.SIGHUP)
    assert running.told().startswith("RELOADING=1\n")
    assert running.told() == "READY=1"
    assert running.said().endswith(
        f"{running.file}:1: can't be read: No such file or directory\nmuontrap: nothing was changed\n"
    )
    assert running.pids() == before
    assert running.load(TWO).endswith("nothing has changed\n")


def test_many_sighups_at_once_are_one_after_the_other(supervise: Callable[..., Supervise]) -> None:
    running = supervise(TWO)
    running.write(TWO.replace("1001", "1002"))
    for _ in range(5):
        os.kill(running.pid, signal.SIGHUP)
        assert running.told().startswith("RELOADING=1\n")
        os.kill(running.pid, signal.SIGHUP)
        assert running.told() == "READY=1"
        assert running.told().startswith("RELOADING=1\n")
        assert running.told() == "READY=1"
    assert running.said().count("1 removed, 1 added") == 1
    assert running.said().count("nothing has changed") == 9
    assert "Traceback" not in running.said()
    assert running.end() == 0


# --- What makes no sense


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[daemon.x]\ncommand = ["sleep" "1"]\n', "{file}:2: Unclosed array"),
        (TWO + '    start = "now"\n', "{file}:8: unknown key 'start'"),
        (TWO + "    essential = 1\n", "{file}:8: essential must be true or false, not 1"),
        (TWO + '[group.db.daemon.x]\ncommand = ["sleep"]\n', "{file}:8: there are two children named 'db'"),
        (
            TWO.replace("ready =", 'depends_on = ["web"]\n    ready ='),
            "children depend on each other in a circle",
        ),
        (None, "{file}:1: can't be read: Is a directory"),
    ],
    ids=["malformed", "unknown key", "wrong type", "duplicate", "circle", "unreadable"],
)
def test_a_file_that_is_not_right_starts_nothing(
    arena: Arena, supervise: Callable[..., Supervise], text: str | None, message: str
) -> None:
    if text is None:
        (arena.folder / "tree.toml").mkdir()
        done = cli("supervise", str(arena.folder / "tree.toml"), "--directory", str(arena.folder / "run"))
        status, said = done.returncode, done.stderr
    else:
        running = supervise(text, ready=False)
        status, said = running.process.wait(4 * BOUND), running.said()
    arena.wait_left()
    assert status == 2
    assert message.format(file=arena.folder / "tree.toml") in said
    assert "muontrap.supervisor" not in said
    assert not (arena.folder / "run").exists()


def test_a_directory_that_cant_be_had_starts_nothing(
    supervise: Callable[..., Supervise], arena: Arena
) -> None:
    (arena.folder / "tree.toml").write_text(TWO)
    (arena.folder / "open").mkdir()
    (arena.folder / "open").chmod(0o755)
    running = supervise(TWO)
    for directory, message in (
        ("open", "others may enter '{}': name a directory of its own, such as '{}/muontrap'"),
        ("run", "'{}' belongs to another supervisor, which runs"),
        ("tree.toml", "'{}' is no directory"),
        ("tree.toml/run", f"{arena.folder}/tree.toml: File exists"),
        ("long" * 30, "'{}/control' can't be a socket: AF_UNIX path too long"),
    ):
        path = arena.folder / directory
        done = cli("supervise", str(running.file), "--directory", str(path))
        assert done.stderr == f"muontrap: {message.format(path, path)}\n"
        assert done.returncode == 2
    assert running.ask("status").returncode == 0


def test_what_a_dead_run_has_left_is_said_and_replaced(
    supervise: Callable[..., Supervise], arena: Arena
) -> None:
    running = supervise(TWO)
    running.end(signal.SIGKILL)
    arena.wait_left()
    assert (running.directory / "control").exists()
    done = running.ask("status")
    path = running.directory / "control"
    assert done.stderr == f"muontrap: '{path}' is left over from a supervisor that is dead: nothing runs\n"
    assert done.returncode == 2
    again = supervise(TWO)
    assert again.ask("status").returncode == 0
    assert again.end() == 0


@pytest.mark.parametrize(
    "command", [["status"], ["start", "web"], ["stop", "web"], ["restart", "web"], ["logs", "web"]]
)
def test_without_a_supervisor_there_is_nobody_to_ask(tmp_path: Path, command: list[str]) -> None:
    done = cli(*command, "--directory", str(tmp_path))
    assert done.stderr == f"muontrap: no supervisor runs here: there is no '{tmp_path}/control'\n"
    assert done.returncode == 2


def test_a_name_is_looked_for_in_the_usual_place() -> None:
    done = cli("status", "--name", "no-such-supervisor")
    assert re.search(r"no supervisor runs here: there is no '.*muontrap.*/no-such-supervisor'", done.stderr)
    assert done.returncode == 2


@pytest.mark.parametrize("arguments", [("supervise", "--directory", "", "x"), ("status", "--name", "")])
def test_an_empty_name_is_not_the_usual_one(arguments: tuple[str, ...]) -> None:
    done = cli(*arguments)
    assert f"argument {arguments[1]}: '' names none; for the usual one, leave it out" in done.stderr
    assert done.returncode == 125


# --- What can be asked


def test_every_option_is_documented() -> None:
    text = (REPOSITORY / "docs" / "reference" / "command-line.md").read_text()
    for command in "supervise", "status", "start", "stop", "restart", "logs":
        assert f"muontrap {command}" in text
        for option in re.findall(r"--[a-z]+", cli(command, "--help").stdout):
            assert option == "--help" or f"`{option}" in text


def test_status_start_stop_and_restart(supervise: Callable[..., Supervise]) -> None:
    running = supervise(
        TWO
        + '[daemon.job]\ncommand = ["false"]\nrestart = "temporary"\nready = "output:x"\n'
        + '[group.g]\nmax_restarts = 0\nrestart = "temporary"\n'
        + '[group.g.daemon.bad]\ncommand = ["no-such-program"]\n'
    )
    header, *rows = running.ask("status").stdout.splitlines()
    assert header.split() == ["name", "state", "pid", "uptime", "restarts", "memory", "cpu"]
    before = running.pids()
    assert re.fullmatch(rf"db +ready +{before['db']} +0:00:\d\d +0 +[\d.]+ MiB +[\d.]+ s", rows[0])
    assert re.fullmatch(r"job +stopped +- +- +0 +- +-", rows[2])

    assert (running.ask("stop", "web").returncode, running.pids()["web"]) == (0, None)
    assert (running.ask("start", "web").returncode, running.ask("restart", "db").returncode) == (0, 0)
    after = running.pids()
    assert None not in (after["web"], after["db"])
    assert not set(after.values()) & {before["web"], before["db"]}

    done = running.ask("start", "job")
    assert (done.returncode, done.stderr) == (1, "muontrap: job has ended: exit status 1\n")
    done = running.ask("restart", "g")
    why = "could not be started: [Errno 2] No such file or directory: 'no-such-program'"
    assert done.returncode == 1
    assert done.stderr == f"muontrap: g has ended: bad: more than 0 restarts in 5 s, last: {why}\n"
    for command in "start", "stop", "restart", "logs":
        done = running.ask(command, "nobody")
        assert (done.returncode, done.stderr) == (2, "muontrap: there is no child 'nobody'\n")
    assert running.pids() == after


def test_status_watches_until_it_is_interrupted(supervise: Callable[..., Supervise]) -> None:
    running = supervise(TWO)
    argv = [*CLI, "status", "--directory", str(running.directory), "--watch", "--json"]
    with subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.PIPE) as watching:
        assert watching.stdout
        pages = [json.loads(watching.stdout.readline()) for _ in range(2)]
        watching.send_signal(signal.SIGINT)
        assert watching.wait(BOUND) == 128 + signal.SIGINT
    assert pages[1][0]["time"] - pages[0][0]["time"] >= 1


def test_logs_follow_to_the_end(supervise: Callable[..., Supervise]) -> None:
    running = supervise(TALKS)
    assert running.ask("logs", "talks", errors="surrogateescape").stdout == "\udcff begun\n"
    argv = [*CLI, "logs", "talks", "-f", "--directory", str(running.directory)]
    with subprocess.Popen(argv, env=ENVIRONMENT, stdout=subprocess.PIPE) as following:
        assert following.stdout
        assert following.stdout.readline() == b"\xff begun\n"
        assert running.end() == 0
        assert following.stdout.read() == b"last"
        assert following.wait(BOUND) == 0


def test_logs_of_one_that_is_killed_say_so(supervise: Callable[..., Supervise]) -> None:
    running = supervise(TALKS)
    argv = [*CLI, "logs", "talks", "--follow", "--directory", str(running.directory)]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=ENVIRONMENT, stdout=pipe, stderr=pipe) as following:
        assert following.stdout
        assert following.stdout.readline() == b"\xff begun\n"
        running.end(signal.SIGKILL)
        assert following.communicate(timeout=BOUND)[1] == (
            b"muontrap: the supervisor has ended, without an answer\n"
        )
        assert following.returncode == 2


def test_who_reads_the_answers_may_go_away(supervise: Callable[..., Supervise]) -> None:
    running = supervise(TALKS)
    for command in ["status", "--watch"], ["logs", "talks"]:
        reading, writing = os.pipe()
        os.close(reading)
        with open(writing, "wb") as pipe:
            done = running.ask(*command, stdout=pipe)
        assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
        with open("/dev/full", "wb") as full:
            done = running.ask(*command, stdout=full)
        message = f"muontrap: stdout: {os.strerror(errno.ENOSPC)}\n"
        assert (done.returncode, done.stderr) == (125, message)


# --- The program that it goes on as


def test_it_goes_on_without_what_it_took_to_read_the_file(supervise: Callable[..., Supervise]) -> None:
    tree = supervise(TWO)
    mapped = Path(f"/proc/{tree.pid}/maps").read_text()
    assert "_datetime" not in mapped  # which tomllib has
    arguments = Path(f"/proc/{tree.pid}/cmdline").read_bytes().split(b"\0")
    assert arguments[-3:-1] == [b"supervise", str(tree.file).encode()]
    assert Path(f"/proc/{tree.pid}/comm").read_text() == Path("/proc/self/comm").read_text()
    assert b"MUONTRAP_GOES_ON" not in Path(f"/proc/{tree.pids()['web']}/environ").read_bytes()
    assert tree.end() == 0


def test_where_it_can_not_it_stays_as_it_is(supervise: Callable[..., Supervise]) -> None:
    """As if an executable that is no Python had come back here."""
    tree = supervise(TWO, "env", "MUONTRAP_GOES_ON=1")
    assert Path(f"/proc/{tree.pid}/cmdline").read_bytes().split(b"\0")[2] == b"muontrap"
    assert b"MUONTRAP_GOES_ON" not in Path(f"/proc/{tree.pids()['web']}/environ").read_bytes()
    assert "1 added" in tree.load(TWO + "[daemon.new]\ncommand = ['sleep', '1002']\n")
    assert tree.end() == 0


def test_output_can_be_logged_from_a_changed_file_on(supervise: Callable[..., Supervise]) -> None:
    tree = supervise(TWO)
    assert "muontrap.supervisor: web ready\n" in tree.said()
    options = 'log_output = "INFO"\nready = "output:hi"\n'
    tree.load(f'{TWO}[daemon.says]\ncommand = ["sh", "-c", "echo hi; exec sleep 1000"]\n{options}')
    while "says ready" not in tree.said():
        time.sleep(0.02)
    assert "muontrap.daemon.says: hi\n" in tree.said()
    assert tree.said().count("says ready") == 1
    assert tree.end() == 0
    assert "web exited: stopped\n" in tree.said()
