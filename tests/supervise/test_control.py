"""The socket of a running tree: what is answered, to whom, and what no client can do to the others."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from arena import BOUND, NOBODY
from recorder import STAYS, Recorder, sh, wait_until

from muontrap import Daemon, Supervisor
from muontrap.supervise import control
from muontrap.supervise.control import Control
from muontrap.supervise.directory import SOCKET, ControlError, default_directory, only_directory

pytestmark = pytest.mark.slow
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")

STUBBORN = sh("trap 'echo asked' TERM; echo up; while :; do sleep 0.05; done")


@contextlib.contextmanager
def served(directory: Path, *children: Daemon | Supervisor, **options: Any) -> Iterator[Supervisor]:
    """A tree that runs and answers."""
    here = Control(str(directory))
    try:
        with Supervisor(children, **options) as tree:
            here.serve(tree)
            yield tree
    finally:
        here.close()


class Client:
    """One who asks."""

    def __init__(self, directory: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(2 * BOUND)
        self.socket.connect(str(directory / SOCKET))
        self.answers = self.socket.makefile("rb")

    def send(self, **request: Any) -> Client:
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        return self

    def hear(self) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.answers.readline())
        return answer

    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.answers]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.close()
        self.socket.close()


def ask(directory: Path, **request: Any) -> dict[str, Any]:
    """The one answer there is to a request."""
    with Client(directory) as client:
        [answer] = client.send(**request).all()
        return answer


def states(directory: Path) -> dict[str, str]:
    return {child["name"]: child["state"] for child in ask(directory, do="status")["children"]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


# --- Requests


def test_status_has_the_figures_of_each_daemon(run: Path) -> None:
    group = Supervisor([Daemon(STAYS, name="x")], name="group")
    failed = Daemon(sh("echo four; exit 4"), name="failed", restart="temporary")
    with served(run, Daemon(STAYS, name="d"), group, failed) as tree:
        wait_until(lambda: tree.which_children()[2].last_exit is not None)
        first, second, third = ask(run, do="status")["children"]
    assert [first["name"], second["name"]] == ["d", "group/x"]
    assert first.keys() == {
        *("name", "state", "pid", "uptime", "restarts", "start_failures", "failures", "output_bytes"),
        *("last_exit", "memory", "cpu", "time"),
    }
    assert first["state"] == "ready"
    assert isinstance(first["pid"], int)
    assert 0 <= first["uptime"] < 2 * BOUND
    assert 100_000 < first["memory"] < 100_000_000
    assert 0 <= first["cpu"] < BOUND
    assert abs(first["time"] - time.time()) < 2 * BOUND
    assert (third["state"], third["pid"], third["uptime"], third["memory"]) == ("stopped", None, None, None)
    assert (third["last_exit"], third["output_bytes"]) == ("exit status 4", 5)


def test_a_daemon_is_stopped_started_and_restarted(run: Path) -> None:
    with served(run, Supervisor([Daemon(STAYS, name="d")], name="group")) as tree:
        before = tree.which_children()[0].pid
        assert ask(run, do="stop", name="group/d")["done"] == "stopped"
        assert tree.which_children()[0].pid is None
        assert ask(run, do="start", name="group/d")["done"] == "ready"
        between = tree.which_children()[0].pid
        assert ask(run, do="restart", name="group/d")["done"] == "ready"
        assert len({before, between, tree.which_children()[0].pid}) == 3
        assert ask(run, do="stop", name="group")["done"] == "stopped"
        assert states(run) == {"group/d": "stopped"}
        assert ask(run, do="start", name="group")["done"] == "ready"


def test_start_of_what_ends_at_once_says_so(run: Path) -> None:
    with served(run, Daemon(sh("exit 4"), name="d", restart="temporary", ready="output:x")):
        assert ask(run, do="start", name="d") == {"done": "stopped", "last_exit": "exit status 4"}


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (b"\n", "Expecting value"),
        (b"nonsense\n", "Expecting value"),
        (b'{"do": "status"\n', "Expecting"),
        (b"\xff\xfe\n", "codec"),
        (b"[]\n", "no request of this kind: None"),
        (b"{}\n", "no request of this kind: None"),
        (b'{"do": "explode"}\n', "no request of this kind: 'explode'"),
        (b'{"do": []}\n', "list"),
        (b'{"do": {"do": "stop"}}\n', "dict"),
        (b'{"do": "stop"}\n', "there is no child ''"),
        (b'{"do": "stop", "name": "none"}\n', "there is no child 'none'"),
        (b'{"do": "stop", "name": 7}\n', "there is no child '7'"),
        (b'{"do": "stop", "name": ["d"]}\n', "there is no child"),
        (b'{"do": "restart", "name": "d/d"}\n', "there is no child 'd/d'"),
        (b'{"do": "logs", "name": "none", "follow": true}\n', "there is no child 'none'"),
        (b'{"do": "logs", "name": "group"}\n', "'group' is a supervisor, and has no output"),
        (b"[" * 60_000 + b"\n", "recursion"),
        (b'{"do": ' + b"9" * 60_000 + b"}\n", "integer"),
        (b"x" * 100_000 + b"\n", "limit"),
    ],
    ids=lambda value: None if isinstance(value, str) else repr(value[:20]),
)
def test_a_malformed_request_is_answered_with_what_is_wrong(run: Path, request_: bytes, error: str) -> None:
    """And changes nothing; that the loop has nothing to complain about, the fixture sees."""
    with served(run, Daemon(STAYS, name="d"), Supervisor(name="group")) as tree, Client(run) as client:
        before = tree.which_children()[0].pid
        with contextlib.suppress(ConnectionError):  # it need not read to the end of what is too long
            client.socket.sendall(request_)
        assert error in client.hear()["error"]
        [child] = ask(run, do="status")["children"]
        assert (child["pid"], child["state"]) == (before, "ready")


def test_a_request_may_end_with_the_connection(run: Path) -> None:
    with served(run, Daemon(STAYS, name="d")), Client(run) as client:
        client.socket.sendall(b'{"do": "status"}')
        client.socket.shutdown(socket.SHUT_WR)
        assert client.hear()["children"][0]["name"] == "d"


def test_those_who_say_nothing_or_go_away_keep_nobody_waiting(run: Path) -> None:
    with served(run, Daemon(STAYS, name="d")) as tree, contextlib.ExitStack() as stack:
        before = waits_of(tree)
        for index in range(50):
            client = stack.enter_context(Client(run))
            if index % 3 == 0:
                client.socket.sendall(b'{"do": ')
            elif index % 3 == 1:
                client.send(do="status").__exit__()
        assert states(run) == {"d": "ready"}
        assert waits_of(tree) > before
        stack.close()
        wait_until(lambda: waits_of(tree) == before)


def waits_of(tree: Supervisor) -> tuple[int, int]:
    """How many descriptors and times the loop waits for: the daemon's, the listener, and of conversations."""

    def count() -> tuple[int, int]:
        return len(loop._handlers), len([timer for timer in loop._timers if timer.function])

    assert tree._tree
    loop = tree._tree.loop
    return tree._tree.call(count)


def test_without_a_descriptor_for_one_more_others_are_answered_and_he_is_later(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "_PAUSE_OF_ACCEPT", 0.1)
    with served(run, Daemon(STAYS, name="d")) as tree, Client(run) as early:
        early.send(do="logs", name="d", follow=True)
        wait_until(lambda: waits_of(tree)[1] == 1)
        kept = []
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with Client(run) as late, Client(run):
            wait_until(lambda: waits_of(tree)[0] == 5)
            resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 20, hard))
            try:
                waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
                with contextlib.suppress(OSError):
                    while True:
                        kept.append(os.open("/dev/null", os.O_RDONLY))
                waiting[0].connect(str(run / SOCKET))
                begin = time.process_time()
                time.sleep(0.3)
                assert time.process_time() - begin < 0.15  # it does not ask again and again
                late.socket.sendall(b"{}\n")
                assert "no request of this kind" in late.hear()["error"]
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for fd in kept:
                    os.close(fd)
        waiting[0].settimeout(2 * BOUND)
        waiting[0].sendall(b"{}\n")
        assert b"no request of this kind" in waiting[0].recv(1000)
        for one in waiting:
            one.close()


def test_many_at_once_are_all_answered(run: Path) -> None:
    answers = []
    daemons = [Daemon(STAYS, name=f"d{number}") for number in range(5)]
    with served(run, *daemons):

        def work(number: int) -> None:
            for _ in range(5):
                what = {"do": "restart", "name": f"d{number % 5}"} if number % 2 else {"do": "status"}
                answers.append(ask(run, **what).keys())

        threads = [threading.Thread(target=work, args=[number]) for number in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(states(run).values()) == {"ready"}
    assert (answers.count({"done", "last_exit"}), answers.count({"children"})) == (50, 50)


# --- Logs


def said(answers: list[dict[str, Any]]) -> bytes:
    """The output; all but the last are that."""
    assert answers[-1] == {"done": ""}
    return "".join(answer["output"] for answer in answers[:-1]).encode(errors="surrogateescape")


def test_logs_are_the_last_bytes_whatever_they_are(run: Path) -> None:
    data = bytes(range(256)) + "häßlich".encode() * 3
    script = f"import sys, time; sys.stdout.buffer.write({data!r}); sys.stdout.flush(); time.sleep(1000)"
    daemon = Daemon(["python3", "-S", "-E", "-c", script], name="d", recent_output=len(data) - 3)
    with served(run, daemon), Client(run) as client:
        wait_until(lambda: daemon.statistics().output_bytes == len(data))
        assert said(client.send(do="logs", name="d").all()) == data[3:]


def test_who_follows_gets_what_comes_each_byte_once(run: Path, tmp_path: Path) -> None:
    """Also a character that comes in two parts."""
    for name in "ab":  # each for one word: the shell may open it before its writer has closed the other
        os.mkfifo(tmp_path / name)
    script = "printf 'one h\\303'; read go < a; printf '\\244 two\\n'; read go < b; echo three; sleep 1000"
    with served(run, Daemon(sh(script), name="d", cwd=tmp_path)), Client(run) as client:
        client.send(do="logs", name="d", follow=True)
        heard = ""
        for awaited, name in ("one h\udcc3", "a"), ("\udca4 two\n", "b"), ("three\n", ""):
            part = ""
            while awaited not in part:
                part += client.hear()["output"]
            assert part == awaited
            heard += part
            if name:
                (tmp_path / name).write_text("go\n")
        assert heard.encode(errors="surrogateescape").decode() == "one hä two\nthree\n"


def test_who_follows_hears_of_the_next_runs_too(run: Path) -> None:
    with served(run, Daemon(sh("echo $$; exec sleep 1000"), name="d")) as tree, Client(run) as client:
        client.send(do="logs", name="d", follow=True)
        for _ in range(2):
            assert client.hear()["output"] == f"{tree.which_children()[0].pid}\n"
            tree.restart("d")


def test_following_ends_with_the_daemon_that_is_removed(run: Path) -> None:
    script = "trap 'echo last; exit' TERM; echo first; while :; do sleep 0.02; done"
    daemon = Daemon(sh(script), name="d", delay_to_sigkill=BOUND, ready="output:first")
    with served(run, daemon, Daemon(STAYS, name="other")) as tree, Client(run) as client:
        client.send(do="logs", name="d", follow=True)
        assert client.hear() == {"output": "first\n"}
        tree.remove("d")
        tree.add(Daemon(STAYS, name="d"))
        assert said(client.all()) == b"last\n"


@pytest.mark.parametrize("how", ["close", "half"])
def test_a_follower_that_goes_away_from_a_silent_daemon_is_let_go_of(run: Path, how: str) -> None:
    with served(run, Daemon(sh("echo hi; exec sleep 1000"), name="d", ready="output:hi")) as tree:
        before = waits_of(tree)
        with Client(run) as client:
            client.send(do="logs", name="d", follow=True)
            assert client.hear() == {"output": "hi\n"}
            assert waits_of(tree) == (before[0] + 1, before[1] + 1)
            if how == "half":
                client.socket.shutdown(socket.SHUT_WR)
                assert client.all() == [{"done": ""}]
        wait_until(lambda: waits_of(tree) == before)


def test_a_slow_follower_of_a_flood_costs_bounded_memory_and_delays_nobody(run: Path) -> None:
    size = 2**22
    daemon = Daemon(["yes", "0123456789" * 100], name="d", recent_output=size)
    with served(run, daemon) as tree, Client(run) as slow:
        slow.send(do="logs", name="d", follow=True)
        slow.hear()
        began, seen = time.monotonic(), daemon.statistics().output_bytes
        while time.monotonic() < began + 1 or daemon.statistics().output_bytes < seen + 10 * size:
            assert states(run) == {"d": "ready"}
        tree.remove("d")
        assert sum(len(answer.get("output", "")) for answer in slow.all()) < 3 * size


# --- The end


def test_while_the_tree_ends_it_answers_and_starts_nothing(run: Path) -> None:
    recorder = Recorder()
    stubborn = Daemon(STUBBORN, name="d", delay_to_sigkill=2, kill_mode="process")
    with (
        served(run, stubborn, on_event=recorder) as tree,
        Client(run) as silent,
        Client(run) as follower,
        Client(run) as waiting,
    ):
        follower.send(do="logs", name="d", follow=True)
        assert follower.hear() == {"output": "up\n"}
        ending = threading.Thread(target=tree.stop)
        ending.start()
        assert follower.hear() == {"output": "asked\n"}
        assert states(run) == {"d": "stopping"}
        for what in "start", "restart":
            assert ask(run, do=what, name="d") == {"error": "the supervisor is ending"}
        waiting.send(do="stop", name="d")
        ending.join(2 * BOUND)
        assert follower.all() == [{"done": ""}]
        assert silent.all() == [{"error": "the supervisor has ended"}]
        # Asked for before the end, it came with it: either is true.
        stopped = {"done": "stopped", "last_exit": "stopped"}
        assert waiting.all() in ([stopped], [{"error": "the supervisor has ended"}])


def test_a_slow_client_does_not_hold_up_the_end(run: Path) -> None:
    daemon = Daemon(["yes", "0123456789" * 100], name="d", recent_output=2**22)
    with served(run, daemon) as tree, Client(run) as slow, Client(run) as other:
        for client in slow, other:
            client.send(do="logs", name="d", follow=client is slow)
            client.hear()
        began = time.monotonic()
        tree.stop()
        assert time.monotonic() - began < BOUND


# --- The directory


def test_directory_and_socket_are_for_this_user_alone_whatever_the_umask(run: Path) -> None:
    before = os.umask(0)
    try:
        with served(run / "below", Daemon(STAYS, name="d")):
            modes = [(run / name).stat().st_mode & 0o777 for name in ("", "below", "below/control")]
    finally:
        os.umask(before)
    assert modes == [0o700, 0o700, 0o600]


def test_the_socket_goes_and_the_directory_can_be_had_again(run: Path) -> None:
    for _ in range(2):
        with served(run, Daemon(STAYS, name="d")):
            assert states(run) == {"d": "ready"}
        assert sorted(os.listdir(run)) == ["lock"]


def refused(directory: Path) -> str:
    with pytest.raises(ControlError) as caught:
        Control(str(directory))
    return str(caught.value)


def test_a_directory_is_one_trees_at_a_time(run: Path) -> None:
    with served(run, Daemon(STAYS, name="d")):
        assert refused(run) == f"{str(run)!r} belongs to another supervisor, which runs"
        assert states(run) == {"d": "ready"}


def test_a_socket_that_is_left_over_is_replaced(run: Path) -> None:
    run.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(run / SOCKET))
        old.listen()
    with served(run, Daemon(STAYS, name="d")):
        assert states(run) == {"d": "ready"}


def test_what_is_no_socket_is_left_and_refused(run: Path) -> None:
    run.mkdir(0o700)
    (run / SOCKET).write_text("of somebody")
    assert refused(run) == f"'{run / SOCKET}' is no socket: remove it, or name another directory"
    assert (run / SOCKET).read_text() == "of somebody"


def test_a_directory_that_others_could_have_a_hand_in_is_refused(tmp_path: Path) -> None:
    for mode in 0o701, 0o710, 0o755, 0o770:
        (tmp_path / oct(mode)).mkdir()
        (tmp_path / oct(mode)).chmod(mode)
        assert "others may enter" in refused(tmp_path / oct(mode))
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    assert "others could put another directory in the place of" in refused(tmp_path / "open" / "run")
    (tmp_path / "open").chmod(0o1777)
    Control(str(tmp_path / "open" / "run")).close()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "open" / "run")
    for name in "file", "link":
        assert refused(tmp_path / name) == f"{str(tmp_path / name)!r} is no directory"


@needs_root
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(0o700)
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    assert f"belongs to user {NOBODY}" in refused(tmp_path / "theirs")
    assert "others could put another directory" in refused(tmp_path / "theirs" / "run")


def test_a_path_that_is_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    assert "can't be a socket: AF_UNIX path too long" in refused(tmp_path / ("long" * 30))
    assert "can't be a socket" in refused(tmp_path / ("long" * 30))  # and not: belongs to another


def test_where_the_directory_is_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    assert default_directory("web") == "/run/user/7/muontrap/web"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_directory("web") == "/tmp/muontrap-7/web"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/0")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_directory("web") == "/run/muontrap/web"
    for name in "", ".", "..":
        with pytest.raises(ControlError, match=f"no directory can be named {name!r}: say which"):
            default_directory(name)


def test_the_one_that_is_meant_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 7)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    none = f"no supervisor was named, and there is none in {tmp_path}/muontrap"
    with pytest.raises(ControlError, match=none):
        only_directory()
    for name in "web", "ended", "db":
        (tmp_path / "muontrap" / name).mkdir(parents=True)
    (tmp_path / "muontrap" / "web" / SOCKET).touch()
    assert only_directory() == f"{tmp_path}/muontrap/web"
    (tmp_path / "muontrap" / "db" / SOCKET).touch()
    with pytest.raises(ControlError, match="there are db, web: say which with --name"):
        only_directory()
