"""G6: dropped privileges are dropped in full, and verified; when a step fails, the command does not run."""

from __future__ import annotations

import grp
import os
import pwd
import resource
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from arena import BOUND, Arena
from commands import ORDINARY, ordinary_user, python_for_anybody
from hostlib import (
    GRACE,
    NOBODY,
    Any,
    add_filter,
    ctypes,
    hear,
    kind,
    muontrap,
    say,
    subprocess,
    threading,
    time,
)  # fmt: skip

from muontrap.host import situation

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


def host(*, runs: list[tuple[list[str], dict[str, Any]]]) -> None:
    """Run commands, and tell what came of each."""
    for args, options in runs:
        try:
            result = muontrap.run(args, capture_output=True, text=True, timeout=15, **options)
        except Exception as error:
            bases = [base.__name__ for base in type(error).__mro__]
            say(raised=bases, errno=getattr(error, "errno", None), text=str(error))
        else:
            say(stdout=result.stdout, stderr=result.stderr, returncode=result.returncode)
    hear()


def run_as(
    arena: Arena,
    args: list[str],
    *,
    user_of_host: dict[str, Any] | None = None,
    before: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    start = user_of_host or {"before": before}
    return arena.host(host, runs=[(args, options)], **start).hear()


def status_as(arena: Arena, *, before: Sequence[str] = (), **options: Any) -> dict[str, list[str]]:
    """/proc/self/status of a command."""
    answer = run_as(arena, ["/bin/cat", "/proc/self/status"], before=before, **options)
    assert "stdout" in answer, answer
    return {
        name: value.split()
        for name, _, value in (line.partition(":") for line in answer["stdout"].splitlines())
    }


def setpriv(*arguments: str) -> list[str]:
    path = shutil.which("setpriv")
    if not path:
        pytest.skip("needs setpriv (util-linux)")
    return [path, *arguments]


def expected_groups(name: str) -> set[str]:
    account = pwd.getpwnam(name)
    return {str(gid) for gid in os.getgrouplist(name, account.pw_gid)}


def account_with_groups() -> str:
    """An account that the group database gives supplementary groups."""
    names = {entry.pw_name for entry in pwd.getpwall() if entry.pw_uid}
    for group in grp.getgrall():
        for member in group.gr_mem:
            if member in names:
                return member
    pytest.skip("no account here has supplementary groups")


def test_all_four_ids_and_the_groups(arena: Arena) -> None:
    account = pwd.getpwnam("nobody")
    status = status_as(arena, user="nobody", before=setpriv("--groups=4,27"))
    assert status["Uid"] == 4 * [str(account.pw_uid)]
    assert status["Gid"] == 4 * [str(account.pw_gid)]
    assert set(status["Groups"]) == expected_groups("nobody")
    assert [int(status[name][0], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0, 0, 0, 0]


def test_supplementary_groups_come_from_the_database(arena: Arena) -> None:
    name = account_with_groups()
    status = status_as(arena, user=name, before=setpriv("--groups=4,27"))
    assert set(status["Groups"]) == expected_groups(name)


def test_numeric_uid_of_an_account_is_that_account(arena: Arena) -> None:
    account = pwd.getpwnam("nobody")
    status = status_as(arena, user=account.pw_uid, before=setpriv("--groups=4,27"))
    assert status["Gid"] == 4 * [str(account.pw_gid)]
    assert set(status["Groups"]) == expected_groups("nobody")


def test_numeric_uid_without_an_account_has_no_groups(arena: Arena) -> None:
    status = status_as(arena, user=ORDINARY, group=ORDINARY, before=setpriv("--groups=4,27"))
    assert status["Uid"] == 4 * [str(ORDINARY)]
    assert status["Gid"] == 4 * [str(ORDINARY)]
    assert status["Groups"] == []


def test_numeric_uid_without_an_account_never_keeps_roots_group(arena: Arena) -> None:
    answer = run_as(arena, ["/bin/cat", "/proc/self/status"], user=ORDINARY, before=setpriv("--groups=4,27"))
    if "raised" in answer:
        assert "ValueError" in answer["raised"]
        return
    lines = dict(line.split(":", 1) for line in answer["stdout"].splitlines())
    assert "0" not in lines["Gid"].split()
    assert lines["Groups"].split() == []


def test_group_and_extra_groups_override(arena: Arena) -> None:
    status = status_as(arena, user="nobody", group="daemon", extra_groups=["mail", 12345])
    assert status["Gid"] == 4 * [str(grp.getgrnam("daemon").gr_gid)]
    assert set(status["Groups"]) == {str(grp.getgrnam("mail").gr_gid), "12345"}


def test_a_hundred_groups(arena: Arena) -> None:
    groups = list(range(10_000, 10_100))
    status = status_as(arena, user="nobody", extra_groups=groups)
    assert status["Groups"] == list(map(str, groups))


def test_group_alone_does_not_keep_roots_groups(arena: Arena) -> None:
    status = status_as(arena, group="daemon", before=setpriv("--groups=4,27"))
    assert status["Uid"] == 4 * ["0"]
    assert status["Gid"] == 4 * [str(grp.getgrnam("daemon").gr_gid)]
    assert set(status["Groups"]) <= {str(grp.getgrnam("daemon").gr_gid)}


def environment_as(arena: Arena, **options: Any) -> dict[str, str]:
    answer = run_as(arena, ["/usr/bin/env"], **options)
    return dict(line.partition("=")[::2] for line in answer["stdout"].splitlines())


def test_environment_is_that_users(arena: Arena) -> None:
    account = pwd.getpwnam("nobody")
    found = environment_as(arena, user="nobody")
    wanted = {"HOME": account.pw_dir, "USER": "nobody", "LOGNAME": "nobody", "SHELL": account.pw_shell}
    assert {name: found.get(name) for name in wanted} == wanted
    assert found["PATH"] == os.environ["PATH"]


def test_a_uid_without_an_account_is_told_of_nobodys_home(arena: Arena) -> None:
    """The host's would be root's."""
    found = environment_as(arena, user=54321, group=54321, env_update={"USER": "it"})
    assert {name: found.get(name) for name in ("HOME", "USER", "LOGNAME", "SHELL")} == {
        "HOME": None,
        "USER": "it",
        "LOGNAME": None,
        "SHELL": None,
    }
    assert found["PATH"] == os.environ["PATH"]


def test_the_hosts_own_uid_keeps_its_home(arena: Arena) -> None:
    """Also without an account: as in a container with a uid of its own."""
    options = {"user": ORDINARY, "group": ORDINARY}
    script = "echo $HOME"
    answer = run_as(arena, ["/bin/sh", "-c", script], user_of_host=ordinary_user(), **options)
    assert answer["stdout"] == f"{os.environ['HOME']}\n", answer


def test_environment_of_the_caller_is_taken_as_it_is(arena: Arena) -> None:
    assert environment_as(arena, user="nobody", env={"ONLY": "this"}) == {"ONLY": "this"}


def test_environment_update_wins(arena: Arena) -> None:
    found = environment_as(arena, user="nobody", env_update={"HOME": "/tmp", "SHELL": None})
    assert found["HOME"] == "/tmp"
    assert found["USER"] == "nobody"
    assert "SHELL" not in found


@pytest.mark.parametrize("ids", [["--reuid=0"], ["--regid=0"], ["--clear-groups"], ["--groups=0"]])
def test_the_command_cannot_get_root_back(arena: Arena, ids: list[str]) -> None:
    answer = run_as(arena, setpriv(*ids, "/usr/bin/id"), user="nobody")
    assert answer["returncode"] != 0
    assert "uid=" not in answer["stdout"]


def test_no_new_privileges(arena: Arena) -> None:
    status = status_as(arena, user="nobody", no_new_privs=True)
    assert status["NoNewPrivs"] == ["1"]
    assert status["Uid"] == 4 * [str(pwd.getpwnam("nobody").pw_uid)]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"user": 0}, "user 0 is uid 0"),
        ({"user": "root"}, "user 'root' is uid 0"),
        ({"group": 0}, "group 0 is gid 0"),
        ({"group": "root"}, "group 'root' is gid 0"),
        ({"user": "root", "group": 65534}, "user 'root' is uid 0"),
        ({"user": "nobody", "group": 0}, "group 0 is gid 0"),
    ],
)
def test_root_is_refused_unless_the_caller_says_so(arena: Arena, options: dict[str, Any], named: str) -> None:
    answer = run_as(arena, ["/usr/bin/id", "-u"], **options)
    assert "ValueError" in answer["raised"]
    assert answer["text"] == f"{named}: pass allow_root=True if that is meant"


def test_a_group_that_nobody_named_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pwd, "getpwnam", lambda name: pwd.struct_passwd((name, "", 11, 0, "", "/", "")))
    with pytest.raises(ValueError, match=r"^the primary group of user .operator. is gid 0:"):
        muontrap.run(["true"], user="operator")


@pytest.mark.parametrize("options", [{"user": 0}, {"user": "root"}, {"group": 0}])
def test_root_is_allowed_when_the_caller_says_so(arena: Arena, options: dict[str, Any]) -> None:
    assert run_as(arena, ["/usr/bin/id", "-u"], allow_root=True, **options)["stdout"] == "0\n"


FAILING_STEPS: dict[str, dict[str, Any]] = {
    "user": {"user": "nobody"},
    "uid": {"user": NOBODY, "group": NOBODY},
    "group": {"group": "daemon"},
    "extra-groups": {"extra_groups": [4]},
    "hard-limit": {"rlimits": {resource.RLIMIT_NOFILE: (64, 2**40)}},
    "nice": {"nice": -10},
    "oom-score": {"oom_score_adj": -900},
    "cwd": {"cwd": "/root"},
}


@pytest.mark.parametrize("step", FAILING_STEPS)
def test_a_failing_step_means_the_command_did_not_run(arena: Arena, step: str) -> None:
    """The host is an ordinary user, and asks for what only root may."""
    arena.folder.chmod(0o777)
    marker = arena.folder / "marker"
    line = ["/usr/bin/touch", str(marker)]
    answer = run_as(arena, line, user_of_host=ordinary_user(), **FAILING_STEPS[step])
    if "returncode" in answer and step == "cwd":
        pytest.skip("/root is open to everybody here")
    assert {"PermissionError", "ValueError"} & set(answer["raised"]), answer
    assert not marker.exists()


CAPABILITIES = "+setuid,+setgid"
# Privileges that a change of ids leaves, at least until `execve`, where the host is started so.
LASTING = {
    "securebits": ["--securebits=+no_setuid_fixup"],
    "ambient": [
        f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups",
        f"--inh-caps={CAPABILITIES}", f"--ambient-caps={CAPABILITIES}",
    ],
}  # fmt: skip


@pytest.mark.parametrize("how", LASTING)
def test_where_privileges_would_last_the_command_did_not_run(arena: Arena, how: str) -> None:
    arena.folder.chmod(0o777)
    marker = arena.folder / "marker"
    start = {"before": setpriv(*LASTING[how]), "python": python_for_anybody()}
    answer = run_as(arena, ["/usr/bin/touch", str(marker)], user_of_host=start, user="nobody")
    assert "PermissionError" in answer["raised"], answer
    assert "setresuid" in answer["text"]
    assert not marker.exists()


@pytest.mark.parametrize("options", [{}, {"user": ORDINARY, "group": ORDINARY}], ids=["none", "itself"])
def test_a_host_without_privileges_runs_commands_as_itself(arena: Arena, options: dict[str, Any]) -> None:
    answer = run_as(arena, ["/usr/bin/id", "-u"], user_of_host=ordinary_user(), **options)
    assert answer.get("stdout") == f"{ORDINARY}\n", answer


# --- The host changes its own credentials


def changing_host(*, how: str) -> None:
    """The guard was started as root; then the host drops something. A command gets what a child of
    the host gets.
    """
    libc = ctypes.CDLL(None)
    show = ["/bin/grep", "-E", "^(Uid|Gid|Groups|NoNewPrivs|CapEff|Seccomp.*):", "/proc/self/status"]
    if how.endswith("-many"):  # /proc/PID/status is more than is read at once
        os.setgroups(range(10**9, 10**9 + 1600))
    if how == "another-filter":
        add_filter()
    muontrap.run(["/bin/true"])
    if how == "seteuid":
        os.seteuid(NOBODY)
    elif how == "setresuid":
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    elif how == "setegid":
        os.setegid(NOBODY)
    elif how.startswith("setgroups"):
        os.setgroups([4])
    elif how.startswith("no-new-privs"):
        libc.prctl(38, 1, 0, 0, 0)
    elif how == "another-filter":
        add_filter()
    elif how == "securebits":
        assert libc.prctl(28, 3, 0, 0, 0) == 0  # SECBIT_NOROOT, locked: uid 0 is as any other
    theirs = subprocess.run(show, capture_output=True, text=True, check=False).stdout
    ours = muontrap.run(show, capture_output=True, text=True).stdout
    root = kind(lambda: muontrap.run(["/bin/true"], user="root", allow_root=True))
    say(theirs=theirs, ours=ours, root=root[0])
    hear()


@pytest.mark.parametrize(
    "how",
    [
        *("seteuid", "setresuid", "setegid", "setgroups", "no-new-privs"),
        *("setgroups-after-many", "no-new-privs-with-many", "another-filter", "securebits"),
    ],
)
def test_a_host_that_dropped_privileges_cannot_use_those_of_its_old_guard(arena: Arena, how: str) -> None:
    answer = arena.host(changing_host, how=how, python=python_for_anybody()).hear()
    assert answer["ours"] == answer["theirs"]
    if how == "setresuid":
        assert answer["root"] == "PermissionError"


def mixed_host(*, threads: int, seconds: float) -> None:
    """Half of its threads may get no privileges; so each kind is told that the guard is the other's."""
    errors: list[str] = []
    end = time.monotonic() + seconds

    def work(restrict: bool) -> None:
        try:
            if restrict:
                ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)
            launcher = muontrap.Launcher(["/bin/true"])
            while time.monotonic() < end:
                launcher.run()
        except Exception as error:
            errors.append(repr(error))

    workers = [threading.Thread(target=work, args=(number % 2 == 0,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    say(errors=errors)
    hear()


def test_threads_with_different_privileges_launch_at_once(arena: Arena) -> None:
    assert arena.host(mixed_host, threads=4, seconds=3.0).hear() == {"errors": []}


# --- What runs as somebody else ends as everything does


def lasting_host(*, line: list[str]) -> None:
    process = muontrap.Launcher(line, user="nobody", delay_to_sigkill=GRACE).launch()
    say(pid=process.pid)
    if hear() == "stop":
        process.stop()
        say(stopped=True)
    hear()


@pytest.mark.parametrize("how", ["stop", "sigkill"])
def test_commands_of_another_user_end_too(arena: Arena, how: str) -> None:
    ignorer = f"trap '' TERM HUP; setsid sleep 1000 & echo ready >{arena.ready}; while :; do sleep 1000; done"
    started = arena.host(lasting_host, line=["/bin/sh", "-c", ignorer])
    started.hear()
    arena.wait_ready()
    if how == "stop":
        started.ask("stop")
        arena.assert_left({started.pid, arena.the("muontrap-guard"), arena.the("muontrap-watch")})
    else:
        started.signal(signal.SIGKILL)
        arena.wait_left(bound=GRACE + BOUND)


def storm_host(*, storm: list[int]) -> None:
    """The guard blocks all signals, but for the moments in which it starts a command for another user."""
    from muontrap.host import link

    muontrap.start_guard()
    first = link._links.current
    assert first is not None
    guard, done = first.hello.guard_pid, threading.Event()
    os.kill(guard, signal.SIGRTMIN)  # of these, each is queued

    def blow() -> None:
        while not done.is_set():
            for number in storm:
                os.kill(guard, number)
            time.sleep(0.0001)

    thread = threading.Thread(target=blow)
    thread.start()
    results = [muontrap.run(["/bin/echo", "x"], user="nobody", capture_output=True).stdout for _ in range(50)]
    done.set()
    thread.join()
    say(right=results == 50 * [b"x\n"], same=link._links.current is first and first.is_whole())
    hear()


def test_signals_do_not_end_a_guard_that_starts_commands_for_another_user(arena: Arena) -> None:
    storm = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGALRM, signal.SIGTSTP]
    answer = arena.host(storm_host, storm=list(map(int, storm))).hear(bound=40)
    assert answer == {"right": True, "same": True}


def slow_host(*, folder: str) -> None:
    """As where a process of the new user stops the child: the guard does not wait for it to go on."""
    from muontrap.host import link

    link._BOOTSTRAP = link._BOOTSTRAP.replace(
        "from muontrap.guard.__main__ import run",
        "from muontrap.guard import fork_exec; fork_exec._EXECUTE_MS = 0; "
        "from muontrap.guard.__main__ import run",
    )
    run = muontrap.run
    for args in 20 * (["/bin/echo", "x"], [folder + "/plain"], ["/bin/sh", "-c", "kill -9 $$"], [folder]):
        say(found=kind(lambda: run(args, user="nobody", capture_output=True, check=True)))  # noqa: B023
    hear()


def test_the_guard_does_not_wait_for_a_child_of_another_user(arena: Arena) -> None:
    (arena.folder / "plain").write_text("#!/bin/sh\n")
    arena.folder.chmod(0o755)
    started = arena.host(slow_host, folder=str(arena.folder))
    for _ in range(20):  # a child may be quicker than no time at all
        found = [started.hear()["found"] for _ in range(4)]
        assert [kinds[0] for kinds in found] == [
            "returned", "PermissionError", "CalledProcessError", "PermissionError",
        ]  # fmt: skip
        assert found[1][1:] == [13, str(arena.folder / "plain")]
    arena.assert_left({started.pid, arena.the("muontrap-guard"), arena.the("muontrap-watch")})


def crowded_host(*, options: dict[str, Any]) -> None:
    """More descriptors in the guard than each of its commands may have."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    from muontrap.host import link

    muontrap.start_guard()
    assert link._links.current is not None
    guard = link._links.current.hello.guard_pid
    reading, writing = os.pipe()
    found: list[Any] = []

    def run() -> None:
        found.append(kind(lambda: muontrap.run(["/bin/cat"], stdin=reading, check=True, **options)))

    threads = [threading.Thread(target=run) for _ in range(40)]
    for thread in threads:
        thread.start()
    while not found and len(open(f"/proc/{guard}/task/{guard}/children").read().split()) < 40:  # noqa: SIM115
        time.sleep(0.01)
    os.close(writing)
    for thread in threads:
        thread.join()
    say(found=found)
    hear()


@pytest.mark.parametrize("options", [{}, {"user": "nobody"}], ids=["spawn", "credentials"])
def test_a_guard_with_more_descriptors_than_a_command(arena: Arena, options: dict[str, Any]) -> None:
    assert arena.host(crowded_host, options=options).hear(bound=40)["found"] == 40 * [["returned"]]


def test_a_command_of_another_user_cannot_touch_its_guard(arena: Arena) -> None:
    script = f"kill -9 $PPID; echo ready $? >{arena.ready}; exec sleep 1000"
    started = arena.host(lasting_host, line=["/bin/sh", "-c", script])
    started.hear()
    arena.wait_ready()
    assert arena.words.split()[:2] == ["ready", "1"]
    arena.the("muontrap-guard")


def test_a_host_that_has_dropped_root_before_its_first_launch_sees_where_it_is() -> None:
    """Its /proc/self is root's then."""
    code = compile(Path(situation.__file__).read_text("utf-8"), "situation", "exec")
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        names: dict[str, Any] = {"__name__": "situation"}
        exec(code, names)
        os._exit(0 if names["Situation"]().place == situation.Situation().place else 1)
    assert os.waitpid(child, 0)[1] == 0
