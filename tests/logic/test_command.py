"""Every check of a command's options: what is refused, with which exception, and in which words."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muontrap.logic.command import _CHECKERS, DEVNULL, PIPE, STDOUT, Command, check_seconds, encode
from muontrap.logic.limits import Limits

NOFILE, LOCKS = resource.RLIMIT_NOFILE, 10
# option, value, exception, what the message has to name
REFUSED: list[tuple[str, Any, type[Exception], str]] = [
    ("shell", True, TypeError, "shlex|list"),
    ("preexec_fn", print, TypeError, "rlimits"),
    ("no_such_option", 1, TypeError, "no_such_option"),
    ("close_fds", False, TypeError, "close_fds"),
    ("executable", 3, TypeError, "executable.*3"),
    ("executable", "a\0b", ValueError, r"executable.*a\\x00b"),
    ("timeout", 5, TypeError, r"timeout.*run\(\)"),
    ("stdin", "file", TypeError, "stdin.*'file'"),
    ("stdin", 2**40, ValueError, "stdin.*1099511627776"),
    ("stdin", STDOUT, ValueError, "stderr alone"),
    ("stdout", STDOUT, ValueError, "stderr alone"),
    ("stdout", True, TypeError, "stdout.*True"),
    ("stderr", -4, TypeError, "stderr.*-4"),
    ("stderr", 1.0, TypeError, "stderr.*1.0"),
    ("bufsize", "1", TypeError, "bufsize.*'1'"),
    ("bufsize", -2, ValueError, "bufsize.*-2"),
    ("stdio_window", 0, ValueError, "stdio_window.*0"),
    ("stdio_window", True, TypeError, "stdio_window.*True"),
    ("max_line", 0, ValueError, "max_line.*0"),
    ("max_line", None, TypeError, "max_line.*None"),
    ("inactivity_timeout", 0, ValueError, "inactivity_timeout.*more than 0"),
    ("inactivity_timeout", float("nan"), ValueError, "inactivity_timeout.*nan"),
    ("inactivity_timeout", "1", TypeError, "inactivity_timeout.*'1'"),
    ("encoding", "no-such", LookupError, "no-such"),
    ("encoding", 8, TypeError, "encoding.*8"),
    ("errors", "no-such", LookupError, "no-such"),
    ("cwd", 3.5, TypeError, "cwd.*3.5"),
    ("cwd", b"a\0", ValueError, "cwd.*null"),
    ("cwd", "\ud800", UnicodeEncodeError, "in cwd"),
    ("env", [("A", "b")], TypeError, "env.*mapping"),
    ("env", {"A": 1}, TypeError, r"env\['A'\].*1"),
    ("env", {"A": None}, TypeError, r"env\['A'\].*None"),
    ("env", {"A=B": "c"}, ValueError, "A=B"),
    ("env", {"": "c"}, ValueError, "''"),
    ("env", {"A": "b\0"}, ValueError, r"env\['A'\].*null"),
    ("env", {1: "b"}, TypeError, "name in env.*1"),
    ("env_update", {"A=": None}, ValueError, "A="),
    ("env_update", "A=b", TypeError, "mapping.*A=b"),
    ("user", True, TypeError, "user.*True"),
    ("user", 1.0, TypeError, "user.*1.0"),
    ("user", -1, ValueError, "user.*-1"),
    ("user", 2**32 - 1, ValueError, "user.*4294967295"),
    ("user", "a\0", ValueError, "user.*null"),
    ("group", b"wheel", TypeError, "group.*wheel"),
    ("extra_groups", "wheel", TypeError, "extra_groups.*'wheel'"),
    ("extra_groups", 4, TypeError, "extra_groups.*4"),
    ("extra_groups", [4, -1], ValueError, r"extra_groups\[1\].*-1"),
    ("encoding", "hex", LookupError, "not a text encoding"),
    ("encoding", "utf-8\0", ValueError, "encoding.*null"),
    ("errors", "strict\0", ValueError, "errors.*null"),
    ("allow_root", 1, TypeError, "allow_root.*1"),
    ("umask", 0o1000, ValueError, "umask.*512"),
    ("umask", -1, ValueError, "umask.*-1"),
    ("umask", "022", TypeError, "umask.*'022'"),
    ("pass_fds", 3, TypeError, "pass_fds.*3"),
    ("pass_fds", [-1], ValueError, r"pass_fds\[0\].*-1"),
    ("pass_fds", [3, None], TypeError, r"pass_fds\[1\].*None"),
    ("start_new_session", 0, TypeError, "start_new_session.*0"),
    ("foreground", True, ValueError, "start_new_session=False"),
    ("foreground", None, TypeError, "foreground.*None"),
    ("kill_mode", "control_group", ValueError, "control-group.*control_group"),
    ("kill_mode", None, ValueError, "None"),
    ("kill_mode", [], ValueError, r"\[\]"),
    ("delay_to_sigkill", -0.1, ValueError, "delay_to_sigkill.*-0.1"),
    ("delay_to_sigkill", float("nan"), ValueError, "nan"),
    ("delay_to_sigkill", float("inf"), ValueError, "inf"),
    ("delay_to_sigkill", 10**400, ValueError, "delay_to_sigkill"),
    ("delay_to_sigkill", "1", TypeError, "delay_to_sigkill.*'1'"),
    ("delay_to_sigkill", True, TypeError, "delay_to_sigkill.*True"),
    ("delay_to_sigkill", None, TypeError, "delay_to_sigkill.*None"),
    ("stop_signal", 0, ValueError, "stop_signal.*0"),
    ("stop_signal", 65, ValueError, "stop_signal.*65"),
    ("stop_signal", "TERM", TypeError, "stop_signal.*'TERM'"),
    ("rlimits", [(NOFILE, 4)], TypeError, "rlimits.*mapping"),
    ("rlimits", {LOCKS: 4}, ValueError, "RLIMIT_LOCKS.*tag"),
    ("rlimits", {16: 4}, ValueError, "rlimits.*16"),
    ("rlimits", {"NOFILE": 4}, TypeError, "rlimits.*'NOFILE'"),
    ("rlimits", {NOFILE: "4"}, TypeError, r"rlimits\[7\].*'4'"),
    ("rlimits", {NOFILE: (1, 2, 3)}, ValueError, r"\(1, 2, 3\)"),
    ("rlimits", {NOFILE: (5, 4)}, ValueError, r"soft.*\(5, 4\)"),
    ("rlimits", {NOFILE: (-1, 4)}, ValueError, r"soft.*\(-1, 4\)"),
    ("rlimits", {NOFILE: -2}, ValueError, "-2"),
    ("rlimits", {NOFILE: 2**63}, ValueError, "9223372036854775808"),
    ("nice", 20, ValueError, "nice.*20"),
    ("nice", -21, ValueError, "nice.*-21"),
    ("nice", 1.5, TypeError, "nice.*1.5"),
    ("cpu_affinity", [], ValueError, r"cpu_affinity.*\(|\["),
    ("cpu_affinity", 0, TypeError, "cpu_affinity.*0"),
    ("cpu_affinity", [-1], ValueError, r"cpu_affinity\[0\].*-1"),
    ("oom_score_adj", 1001, ValueError, "oom_score_adj.*1001"),
    ("oom_score_adj", -1001, ValueError, "oom_score_adj.*-1001"),
    ("no_new_privs", "yes", TypeError, "no_new_privs.*'yes'"),
    ("pdeathsig", 0, ValueError, "pdeathsig.*0"),
    ("pdeathsig", 65, ValueError, "pdeathsig.*65"),
    ("cgroup", "yes", ValueError, "cgroup.*'auto'.*'yes'"),
    ("cgroup", None, ValueError, "cgroup.*None"),
    ("cgroup", 1, ValueError, "cgroup.*1"),
    ("cgroup_base", "/app", ValueError, "cgroup_base.*'/app'"),
    ("cgroup_base", "app/../..", ValueError, "cgroup_base"),
    ("cgroup_base", 3, TypeError, "cgroup_base.*3"),
    ("cgroup_path", "", ValueError, "cgroup_path.*''"),
    ("cgroup_path", "a//b", ValueError, "cgroup_path.*'a//b'"),
    ("cgroup_path", "./a", ValueError, "cgroup_path"),
    ("cgroup_path", "a\0", ValueError, "cgroup_path.*null"),
    ("cgroup_controllers", "memory", TypeError, "cgroup_controllers.*'memory'"),
    ("cgroup_controllers", ["memory", "../cpu"], ValueError, r"cgroup_controllers\[1\].*'../cpu'"),
    ("cgroup_controllers", [""], ValueError, r"cgroup_controllers\[0\].*''"),
    ("cgroup_sets", [("memory", "memory.max")], ValueError, r"cgroup_sets\[0\].*\(controller, file, value\)"),
    ("cgroup_sets", [("memory", "../memory.max", "1")], ValueError, r"file of cgroup_sets\[0\]"),
    ("cgroup_sets", [("memory", "tasks", "1")], ValueError, r"cgroup_sets.*'tasks', which moves"),
    ("cgroup_sets", [("", "cgroup.procs", "1")], ValueError, r"cgroup_sets\[0\]"),
    ("cgroup_sets", [("a/b", "memory.max", "1")], ValueError, r"controller of cgroup_sets\[0\].*'a/b'"),
    ("cgroup_sets", [("memory", "memory.max", b"1")], ValueError, r"value of cgroup_sets\[0\].*b'1'"),
    ("cgroup_sets", [("memory", "memory.max", "1\0")], ValueError, r"value of cgroup_sets\[0\]"),
    ("limits", "256M", TypeError, "limits.*'256M'"),
    ("limits", {"memory": "256M"}, TypeError, "unknown limit 'memory'.*memory_max"),
    ("limits", {"memory_max": "lots"}, ValueError, "memory_max.*'lots'"),
    ("require", "tag", TypeError, "require.*'tag'"),
    ("require", ["cgroups"], ValueError, r"require\[0\].*cgroup-v2.*'cgroups'"),
]
# option, value, what becomes of it
TAKEN: list[tuple[str, Any, Any]] = [
    ("executable", Path("/bin/sh"), b"/bin/sh"),
    ("stdin", PIPE, PIPE),
    ("stdout", DEVNULL, DEVNULL),
    ("stderr", STDOUT, STDOUT),
    ("stderr", 7, 7),
    ("bufsize", 0, 0),
    ("stdio_window", None, None),
    ("stdio_window", 1, 1),
    ("max_line", 1, 1),
    ("inactivity_timeout", None, None),
    ("inactivity_timeout", 1, 1.0),
    ("text", 1, True),
    ("encoding", "utf-8", "utf-8"),
    ("errors", "replace", "replace"),
    ("cwd", "/ä", "/ä".encode()),
    ("cwd", "/\udcff", b"/\xff"),
    ("env", {"A": "b", b"C": b""}, {b"A": b"b", b"C": b""}),
    ("env", {}, {}),
    ("env_update", {"A": None, "B": "=c"}, {b"A": None, b"B": b"=c"}),
    ("user", "nobody", "nobody"),
    ("user", 0, 0),
    ("group", 2**32 - 2, 2**32 - 2),
    ("extra_groups", ["wheel", 4], ("wheel", 4)),
    ("extra_groups", [], ()),
    ("umask", 0, 0),
    ("umask", 0o777, 0o777),
    ("pass_fds", {5}, (5,)),
    ("kill_mode", "control-group", "control-group"),
    ("delay_to_sigkill", 0, 0.0),
    ("stop_signal", signal.SIGINT, 2),
    ("rlimits", {NOFILE: 64}, ((NOFILE, 64, 64),)),
    ("rlimits", {NOFILE: (1, -1), 0: [2, 3]}, ((NOFILE, 1, -1), (0, 2, 3))),
    ("rlimits", {NOFILE: resource.RLIM_INFINITY}, ((NOFILE, -1, -1),)),
    ("nice", -20, -20),
    ("cpu_affinity", range(2), (0, 1)),
    ("oom_score_adj", -1000, -1000),
    ("pdeathsig", signal.SIGKILL, 9),
    ("cgroup", True, True),
    ("cgroup", "auto", "auto"),
    ("cgroup_base", "app/web", "app/web"),
    ("cgroup_path", Path("app"), "app"),
    ("cgroup_controllers", ["memory"], ("memory",)),
    (
        "cgroup_sets",
        [["memory", "memory.max", 4096], ("cpu", "cpu.max", "max 1000")],
        (("memory", "memory.max", "4096"), ("cpu", "cpu.max", "max 1000")),
    ),
    ("limits", {"memory_max": "1M"}, Limits(memory_max=2**20)),
    ("limits", Limits(pids_max=3), Limits(pids_max=3)),
    ("limits", None, None),
    ("require", {"tag"}, ("tag",)),
]


@pytest.mark.parametrize(("option", "value", "kind", "message"), REFUSED)
def test_refused(option: str, value: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Command(["true"], **{option: value})


@pytest.mark.parametrize(("option", "value", "result"), TAKEN)
def test_taken(option: str, value: Any, result: Any) -> None:
    taken = getattr(Command(["true"], **{option: value}), option)
    assert taken == result
    assert type(taken) is type(result)


def test_every_option_is_in_both_tables() -> None:
    """Streams and switches have one check each, and are tried with one of them."""
    alike = {"allow_root", "start_new_session", "foreground", "no_new_privs"}
    assert {option for option, *_ in REFUSED} >= _CHECKERS.keys() - {"text"}
    assert {option for option, *_ in TAKEN} >= _CHECKERS.keys() - alike


@pytest.mark.parametrize(
    ("args", "kind", "message"),
    [
        ("ls -l", TypeError, r"\['ls', '-l'\].*'ls -l'"),
        (b"ls", TypeError, "b'ls'"),
        (Path("/bin/ls"), TypeError, "/bin/ls"),
        ([], ValueError, "empty"),
        (["ls", 1], TypeError, r"args\[1\].*1"),
        (["ls", None], TypeError, r"args\[1\].*None"),
        (["l\0s"], ValueError, r"args\[0\].*null"),
        (None, TypeError, "args.*None"),
        (5, TypeError, "args.*5"),
    ],
)
def test_refused_args(args: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        Command(args)


def test_args() -> None:
    given_args = ["a", b"\xff", Path("/c"), "\udcfe", ""]
    command = Command(given_args)
    expected = list(given_args)
    given_args.clear()
    assert command.args == expected
    assert command.argv == (b"a", b"\xff", b"/c", b"\xfe", b"")


def test_args_of_other_kinds() -> None:
    given_args = ("a", "b")
    assert Command(given_args).args is given_args
    assert Command(args=(letter for letter in "ab")).args == ["a", "b"]  # type: ignore[arg-type]


def test_defaults() -> None:
    command = Command(["true"])
    assert (command.kill_mode, command.delay_to_sigkill, command.stop_signal) == ("mixed", 0.5, 15)
    assert command.start_new_session is True
    assert (command.pass_fds, command.rlimits, command.bufsize) == ((), (), -1)
    unset = {name for name in _CHECKERS if getattr(command, name) is None}
    assert unset >= {
        "stdin",
        "env",
        "env_update",
        "user",
        "group",
        "extra_groups",
        "umask",
        "nice",
        "pdeathsig",
    }


@pytest.mark.parametrize("options", [{"shell": False}, {"preexec_fn": None}])
def test_what_is_not_asked_for_is_not_refused(options: dict[str, Any]) -> None:
    Command(["true"], **options)


def test_the_first_unknown_option_is_named_with_those_there_are() -> None:
    with pytest.raises(TypeError, match=r"'bogus'.*delay_to_sigkill.*pdeathsig"):
        Command(["true"], bogus=2, zzz=1)  # type: ignore[call-arg]


def test_foreground_without_a_new_session() -> None:
    assert Command(["true"], foreground=True, start_new_session=False).foreground


def test_a_base_or_a_path() -> None:
    with pytest.raises(ValueError, match="cgroup_base and cgroup_path"):
        Command(["true"], cgroup_base="a", cgroup_path="b")


@pytest.mark.parametrize(
    ("options", "insists"),
    [
        ({}, False),
        ({"cgroup": "auto"}, False),
        ({"limits": {}}, False),
        ({"limits": {"memory_max": "max"}}, False),
        ({"require": ["tag"]}, False),
        ({"cgroup": True}, True),
        ({"cgroup_base": "a"}, True),
        ({"cgroup_path": "a"}, True),
        ({"cgroup_controllers": ["memory"]}, True),
        ({"cgroup_sets": [("memory", "memory.max", 4096)]}, True),
        ({"limits": {"memory_max": "1M"}, "cgroup": "auto"}, True),
    ],
)
def test_what_insists_on_a_cgroup(options: dict[str, Any], insists: bool) -> None:
    assert Command(["true"], **options).insists_on_cgroup is insists


def test_a_group_alone_leaves_no_groups() -> None:
    """None means the account's groups, which there is none of."""
    assert Command(["true"], group=5).extra_groups == ()
    assert Command(["true"], group=5, user="nobody").extra_groups is None
    assert Command(["true"], group=5, extra_groups=[7]).extra_groups == (7,)


def test_constants_are_those_of_subprocess() -> None:
    assert (PIPE, STDOUT, DEVNULL) == (subprocess.PIPE, subprocess.STDOUT, subprocess.DEVNULL)


@pytest.mark.parametrize(
    ("options", "is_text"),
    [({}, False), ({"text": True}, True), ({"encoding": "ascii"}, True), ({"errors": "strict"}, True)],
)
def test_is_text(options: dict[str, Any], is_text: bool) -> None:
    assert Command(["true"], **options).is_text is is_text


@pytest.mark.parametrize("name", ["argv", "args", "stop_signal", "env", "something_new"])
def test_immutable(name: str) -> None:
    command = Command(["true"], env={"A": "b"})
    with pytest.raises(AttributeError, match=name):
        setattr(command, name, 1)
    assert command.argv == (b"true",)


def test_what_was_given_may_change_afterwards() -> None:
    args, env, fds = ["true"], {"A": "b"}, [3]
    command = Command(args, env=env, pass_fds=fds)
    args.append("x")
    env["A"] = "c"
    fds.append(4)
    assert (command.argv, command.env, command.pass_fds) == ((b"true",), {b"A": b"b"}, (3,))


@given(value=st.floats() | st.integers() | st.integers(2**1023, 2**1025))
def test_check_seconds(value: float) -> None:
    if 0 <= value <= sys.float_info.max:
        seconds = check_seconds("timeout", value)
        assert (seconds, type(seconds)) == (float(value), float)
    else:
        with pytest.raises(ValueError, match="timeout"):
            check_seconds("timeout", value)


@given(text=st.text() | st.binary())
def test_encode(text: str | bytes) -> None:
    try:
        encoded = encode("it", text)
    except ValueError:  # a NUL, or a surrogate that stands for no byte
        return
    assert b"\0" not in encoded
    assert encoded == (text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape"))
