"""Files of daemons: what they become, each way to be wrong on its line, and what a change comes to."""

from __future__ import annotations

import inspect
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from muontrap import Backoff, Daemon, Supervisor
from muontrap.logic.command import _CHECKERS, DEVNULL, STDOUT
from muontrap.logic.limits import Limits
from muontrap.logic.toml_lines import find_lines
from muontrap.supervise import config
from muontrap.supervise.config import Changes, ConfigError, Plan, changes, load
from muontrap.supervise.keys import DAEMON, GROUP
from muontrap.supervise.places import NOT_HERE

tomllib: Any = config._toml()
BOUND = 20.0
PAGE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"
thorough = settings(
    deadline=None,
    max_examples=1000 if os.environ.get("MUONTRAP_FULL") else 100,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tree.toml"


def read(file: Path, text: str) -> Plan:
    file.write_text(textwrap.dedent(text), encoding="utf-8", newline="")
    return load(file)


def values(file: Path, line: str) -> dict[str, Any]:
    """Return what a daemon gets for these keys."""
    plan = read(file, f"[daemon.web]\ncommand = ['web']\n{line}\n")
    plan.build()
    [member] = plan.members
    assert member.values.pop("command") == ["web"]
    return member.values


def refused(file: Path, text: str) -> list[tuple[int, str]]:
    with pytest.raises(ConfigError) as caught:
        read(file, text)
    assert caught.value.path == str(file)
    return list(caught.value.problems)


# What is right


def test_a_tree_is_built_in_the_order_of_the_file(file: Path) -> None:
    plan = read(
        file,
        """
        [daemon.first]
        command = ["first", "-x"]
        [group.second.daemon.deep]
        command = ["deep"]
        [daemon.third]
        command = ["third"]
        depends_on = ["first"]
        [supervisor]
        strategy = "rest_for_one"
        max_restarts = 10
        max_seconds = "1m"
        on_give_up = "ignore"
        [group.second]
        strategy = "one_for_all"
        essential = true
        [group.second.group.deeper]
        daemon = { b = { command = ["b"] }, a = { command = ["a"] } }
        """,
    )
    assert plan.daemons == ["first", "second/deep", "second/deeper/b", "second/deeper/a", "third"]
    assert plan.settings == {
        "strategy": "rest_for_one",
        "max_restarts": 10,
        "max_seconds": 60,
        "on_give_up": "ignore",
    }
    root = plan.build()
    assert [each.name for each in root.which_children()] == plan.daemons
    branch = root._branch
    assert (branch._strategy, branch._max_restarts, branch._max_seconds, branch._give_up) == (
        "rest_for_one",
        10,
        60.0,
        "ignore",
    )
    second = root.child("second")
    assert isinstance(second, Supervisor)
    assert second._essential
    assert second._branch._strategy == "one_for_all"
    first = root.child("first")
    assert isinstance(first, Daemon)
    assert first._launcher.args == ["first", "-x"]


def test_a_plan_can_be_built_again_and_in_parts(file: Path) -> None:
    plan = read(file, "[daemon.a]\ncommand = ['a']\n[group.g.daemon.b]\ncommand = ['b']\n")
    assert plan.build().child("g/b") is not plan.build().child("g/b")
    assert isinstance(plan.build_child("g"), Supervisor)
    part = plan.build_child("g/b")
    assert isinstance(part, Daemon)
    assert (part.name, part.supervisor) == ("b", None)
    for path in ("b", "g/a", "a/b", "", "g/"):
        with pytest.raises(KeyError, match="there is no child"):
            plan.build_child(path)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("delay_to_sigkill = 2", {"delay_to_sigkill": 2.0}),
        ("delay_to_sigkill = 0.25", {"delay_to_sigkill": 0.25}),
        ("delay_to_sigkill = '500ms'", {"delay_to_sigkill": 0.5}),
        ("delay_to_sigkill = '1.5s'", {"delay_to_sigkill": 1.5}),
        ("delay_to_sigkill = '2 m'", {"delay_to_sigkill": 120.0}),
        ("delay_to_sigkill = '1h'", {"delay_to_sigkill": 3600.0}),
        ("delay_to_sigkill = '1d'", {"delay_to_sigkill": 86400.0}),
        ("delay_to_sigkill = '7'", {"delay_to_sigkill": 7.0}),
        ("umask = '0o022'", {"umask": 0o022}),
        ("umask = '027'", {"umask": 0o027}),
        ("umask = 0o077", {"umask": 0o077}),
        ("stop_signal = 'SIGINT'", {"stop_signal": signal.SIGINT}),
        ("stop_signal = 'quit'", {"stop_signal": signal.SIGQUIT}),
        ("pdeathsig = 9", {"pdeathsig": 9}),
        ("rlimits = { NOFILE = 1024, CORE = [0, 0] }", {"rlimits": {7: (1024, 1024), 4: (0, 0)}}),
        ("rlimits.STACK = [8192, 'unlimited']", {"rlimits": {3: (8192, -1)}}),
        ("env = { A = '1' }", {"env": {"A": "1"}}),
        ("env_update = { A = '1', B = false }", {"env_update": {"A": "1", "B": None}}),
        ("backoff = { initial = '50ms', cap = 5 }", {"backoff": Backoff(initial=0.05, cap=5.0)}),
        ("limits = { memory_max = '256M' }", {"limits": Limits(memory_max="256M")}),
        ("log_output = 'info'", {"log_output": logging.INFO}),
        ("log_output = 25", {"log_output": 25}),
        ("logger = 'app.web'", {"logger": logging.getLogger("app.web")}),
        ("logger_metadata = { tier = 1 }", {"logger_metadata": {"tier": 1}}),
        ("stdin = 'inherit'\nstdout = 'null'", {"stdin": 0, "stdout": DEVNULL}),
        ("stdout = 'inherit'\nstderr = 'stdout'", {"stdout": 1, "stderr": STDOUT}),
        ("success_exit_status = [3, 4]", {"success_exit_status": [3, 4]}),
        ("cgroup = 'auto'\nrequire = ['tag']", {"cgroup": "auto", "require": ["tag"]}),
        (
            "cgroup_sets = [['memory', 'memory.max', 1]]",
            {"cgroup_sets": [["memory", "memory.max", 1]]},
        ),
        ("ready = 'output:^up$'\nready_timeout = '1m'", {"ready": "output:^up$", "ready_timeout": 60.0}),
    ],
)
def test_what_values_become(file: Path, line: str, expected: dict[str, Any]) -> None:
    assert values(file, line) == expected


def test_an_account_that_may_be_root(file: Path) -> None:
    assert values(file, "user = 'root'\nallow_root = true")["user"] == "root"


def test_every_argument_has_a_key_or_a_reason() -> None:
    daemon = inspect.signature(Daemon.__init__).parameters.keys() - {"self", "options"}
    assert daemon | _CHECKERS.keys() == (
        DAEMON.keys() - {"command"} | NOT_HERE.keys() - {"shell", "preexec_fn"}
    )
    supervisor = inspect.signature(Supervisor.__init__).parameters.keys() - {"self"}
    assert supervisor - {"children", "name", "on_event"} == GROUP.keys()
    assert not DAEMON.keys() & NOT_HERE.keys()


def test_every_key_is_documented() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not [key for key in (*DAEMON, *GROUP) if f"`{key}`" not in page]


def test_the_example_is_right(file: Path) -> None:
    example = re.findall("^```toml\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert read(file, example[0]).daemons == ["db", "web", "workers/mail", "workers/thumbnails"]


# What is wrong

REST_FOR_ONE = """
daemon.a = { command = ['x'], depends_on = ['b'] }
daemon.b.command = ['x']
supervisor.strategy = 'rest_for_one'
"""
GROUP_CIRCLE = """\
[group.g]
depends_on = ['a']
[group.g.daemon.b]
command = ['x']
[daemon.a]
command = ['x']
depends_on = ['g']
"""
WRONG = [
    # of TOML
    ("[daemon.web]\ncommand = ['x'\n[x]", 3, "Unclosed array"),
    ("[daemon.web]\ncommand = 'x", 2, "Illegal|Expected|Unterminated"),
    ("[daemon.web]\ncommand = ['x']\nnice = 1\nnice = 2\n", 4, "Cannot overwrite"),
    ("[daemon.web]\ncommand = ['x']\n\n[daemon.web]\n", 4, "Cannot declare"),
    ("[daemon.web]\r\ncommand = ['x']\r\n\r\n= 3\r\n", 4, "Invalid"),
    ("[daemon.web]\ncommand = ['x']\nnice = " + "9" * 5000, 3, "too many digits"),
    ("[daemon.web]\ncommand = ['x']\nnice = 0x" + "9" * 5000, 3, "digits"),
    ("[daemon.web]\ncommand = " + "[" * 100_000, 1, "nested too deep"),
    ("[" + "group.g." * 5000 + "daemon.web]\ncommand = ['x']", 1, "nested too deep"),
    # of the whole
    ("", 1, "the file has no children: a table such as \\[daemon.NAME\\]"),
    ("# nothing\n", 1, "no children"),
    ("[supervisor]\n\n[group.g]\n", 3, "g has no children: a table such as \\[group.g.daemon.NAME\\]"),
    ("demon.web.command = ['x']\n[daemon.web]\ncommand = ['x']", 1, "unknown key 'demon': is 'daemon' meant"),
    ("name = 3\n[daemon.web]\ncommand = ['x']", 1, "unknown key 'name'; there are supervisor, daemon, group"),
    ("supervisor = 3\n[daemon.web]\ncommand = ['x']", 1, "supervisor must be a table, not 3"),
    ("\n[[daemon]]\ncommand = ['x']", 2, "daemon must be tables with names"),
    ("\ndaemon = 3", 2, "daemon must be tables with names"),
    ("[daemon]\ncommand = ['x']", 2, "command must be a table"),
    ("[daemon]\n\nweb = 3", 3, "web must be a table, not 3"),
    ("group.g = 'x'", 1, "g must be a table, not 'x'"),
    # of names
    ("\n[daemon.'a/b']\ncommand = ['x']", 2, "without '/', not 'a/b'"),
    ("\n[daemon.'']\ncommand = ['x']\ndepends_on = ['']", 2, "not ''"),
    ('[daemon."a\\nb"]\ncommand = ["x"]', 1, "printable characters"),
    ("[group.'a/b'.daemon.web]\ncommand = ['x']", 1, "not 'a/b'"),
    ("[daemon.web]\ncommand = ['x']\n[group.web.daemon.x]\ncommand = ['x']", 3, "two children named 'web'"),
    # of the supervisor, and of a group
    ("[supervisor]\nstrategy = 'one'\n[daemon.web]\ncommand = ['x']", 2, "strategy must be one of"),
    ("[supervisor]\nstrategy = ['one']\n[daemon.web]\ncommand = ['x']", 2, "strategy must be one of"),
    ("[supervisor]\nmax_restarts = '3'\n[daemon.web]\ncommand = ['x']", 2, "max_restarts must be an int"),
    ("[supervisor]\nmax_restarts = -1\n[daemon.web]\ncommand = ['x']", 2, "max_restarts must be 0 or more"),
    ("[supervisor]\nmax_seconds = 0\n[daemon.web]\ncommand = ['x']", 2, "max_seconds must be more than 0"),
    ("[supervisor]\nmax_seconds = inf\n[daemon.web]\ncommand = ['x']", 2, "must be a finite number"),
    ("[supervisor]\non_give_up = 'stop'\n[daemon.web]\ncommand = ['x']", 2, "one of stop_all, ignore"),
    ("[supervisor]\nrestart = 'temporary'\n[daemon.web]\ncommand = ['x']", 2, "unknown key 'restart'"),
    ("[group.g]\nready = 'notify'\n[group.g.daemon.web]\ncommand = ['x']", 2, "unknown key 'ready'"),
    ("[group.g]\nrestart = 1\n[group.g.daemon.web]\ncommand = ['x']", 2, "restart of 'g' must be one of"),
    ("[group.g.daemon.web]\ncommand = ['x']\n[group.g]\nstrategy = 1", 4, "strategy must be one of"),
    # of dependencies
    (
        "[daemon.a]\ncommand = ['x']\ndepends_on = [\n'web',\n]",
        4,
        "'a' depends on 'web', which is not beside",
    ),
    ("[daemon.web]\ncommand = ['x']\ndepends_on = ['wep']", 3, "is 'web' meant"),
    ("[daemon.a]\ncommand = ['x']\ndepends_on = ['b']\n[group.g.daemon.b]\ncommand = ['x']", 3, "not beside"),
    ("[daemon.web]\ncommand = ['x']\ndepends_on = ['web']", 3, "in a circle: web -> web"),
    (
        "[daemon.a]\ncommand = ['x']\ndepends_on = ['b']\n[daemon.b]\ncommand = ['x']\ndepends_on = ['a']",
        6,
        "in a circle: a -> b -> a$",
    ),
    (
        REST_FOR_ONE,
        2,
        "in a circle: .*: with rest_for_one each depends on the one before",
    ),
    (GROUP_CIRCLE, 7, "in a circle: g -> a -> g"),
]


@pytest.mark.parametrize(("text", "line", "message"), WRONG)
def test_what_is_wrong_has_its_line(file: Path, text: str, line: int, message: str) -> None:
    [(found, said)] = refused(file, text)
    assert re.search(message, said)
    assert found == line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("comand = ['x']", "unknown key 'comand': is 'command' meant?"),
        ("frobnicate = 1", "unknown key 'frobnicate'; there are command, restart"),
        ("name = 'x'", "name can't be given in a file: it is in the header, [daemon.NAME]"),
        ("args = ['x']", "args can't be given in a file: the program and its arguments are `command`"),
        ("shell = true", 'shell can\'t be given in a file: where one is meant, `command` is ["sh", "-c",'),
        ("pass_fds = [3]", "pass_fds can't be given"),
        ("text = true", "text can't be given"),
        (
            "restart = 'always'",
            "restart of 'web' must be one of permanent, transient, temporary, not 'always'",
        ),
        ("restart = true", "not true"),
        ("essential = 'yes'", "essential must be true or false, not 'yes'"),
        ("essential = 1", "essential must be true or false, not 1"),
        ("depends_on = 'db'", "depends_on must be an array, not 'db'"),
        ("depends_on = [3]", "depends_on[0] must be a string, not 3"),
        ("backoff = 3", "backoff must be a table, not 3"),
        ("backoff = { inital = 3 }", "unknown key 'inital': is 'initial' meant?"),
        ("backoff = { factor = 0.5 }", "factor of a backoff must be 1 or more, not 0.5"),
        ("backoff = { factor = 'two' }", "factor of a backoff must be a number, not 'two'"),
        ("backoff.jitter = 2", "jitter of a backoff must be from 0 to 1, not 2"),
        ("backoff.cap = 'long'", "cap must be seconds, or a text"),
        ("success_exit_status = 3", "success_exit_status must be an array, not 3"),
        ("success_exit_status = [256]", "success_exit_status[0] must be from 0 to 255, not 256"),
        ("success_exit_status = ['3']", "success_exit_status[0] must be an integer, not '3'"),
        ("wait_for = 3", "wait_for must be a string, not 3"),
        ("wait_for = 'notify'", "that comes from the daemon itself"),
        ("wait_for = 'tcp:80'", "wait_for must have a host and a port"),
        ("ready = 'soon'", "ready must be 'notify'"),
        ("ready = 'output:('", "ready has no regular expression"),
        ("ready = true", "ready must be a string, not true"),
        ("ready = 'output:x'\nstdout = 'null'", "needs its output"),
        ("ready_timeout = '5x'", 'ready_timeout must be seconds, or a text such as "500ms"'),
        ("ready_timeout = -1", "ready_timeout must be a finite number of seconds, 0 or more, not -1"),
        ("ready_timeout = nan", "ready_timeout must be a finite number"),
        ("ready_timeout = '" + "9" * 400 + "d'", "ready_timeout must be a finite number"),
        ("watchdog = true", "watchdog must be a number of seconds, not true"),
        ("log_output = 'LOUD'", "log_output must be a level such as \"INFO\" or 20, not 'LOUD'"),
        ("log_output = true", "log_output must be a level"),
        ("stdout = 'null'\nlog_output = 20", "log_output=20 needs its output"),
        ("log_prefix = 3", "log_prefix must be a string"),
        ("logger = 3", "logger must be a string"),
        ("logger_metadata = 3", "logger_metadata must be a table"),
        ("log_output = 20\nlogger_metadata = { message = 'x' }", "extra can't have message"),
        ("recent_output = -1", "recent_output must be 0 or more"),
        ("recent_output = '1K'", "recent_output must be an integer"),
        ("command = 'x'", 'command must be an array such as ["ls", "-l"], not \'x\': no shell'),
        ("command = []", "command is empty: it must begin with the program"),
        ("command = ['x', 3]", "command[1] must be a string, not 3"),
        ('command = ["\\u0000"]', "command[0] has an embedded null byte"),
        ("executable = 3", "executable must be a string"),
        ("stdin = 'file:/x'", "stdin must be one of null, inherit, not 'file:/x'"),
        ("stdout = 1", "stdout must be one of null, inherit, not 1"),
        ("stderr = []", "stderr must be one of null, inherit, stdout, not []"),
        ("stdio_window = 0", "stdio_window must be from 1"),
        ("max_line = 'long'", "max_line must be an integer"),
        ("inactivity_timeout = 0", "inactivity_timeout must be more than 0 s: for no limit, leave it out"),
        ("recent_output = 0\ninactivity_timeout = 9", "inactivity_timeout=9.0 needs its output"),
        ("encoding = 'utf-9'", "unknown encoding: utf-9"),
        ("errors = 'ignored'", "unknown error handler name 'ignored'"),
        ("cwd = 3", "cwd must be a string"),
        ("env = 'A=1'", "env must be a table of strings"),
        ("env = { A = 1 }", 'A must be a string without NUL, such as "1"'),
        ("env = { A = false }", "A must be a string"),
        ("env_update = { A = true }", "A must be a string"),
        ("env_update = { 'A=' = 'x' }", "illegal environment variable name: 'A='"),
        ('env = { A = "\\u0000" }', "A must be a string without NUL"),
        ("user = 'no-such-user'", "there is no user 'no-such-user'"),
        ("group = 'no-such-group'", "there is no group 'no-such-group'"),
        ("user = 'root'", "user 'root' is uid 0: pass allow_root=true if that is meant"),
        ("user = 4000000000", "has no account: give group="),
        ("user = 1.5", "user must be a name or a number"),
        ("extra_groups = ['no-such-group']", "there is no group 'no-such-group'"),
        ("umask = '0o99'", "umask must be a text such as \"0o022\", or a number, not '0o99'"),
        ("umask = 0o1000", "umask must be from 0 to 511, not 512"),
        ("umask = []", "umask must be an integer"),
        ("kill_mode = 'gently'", "kill_mode must be one of"),
        ("kill_mode = []", "kill_mode must be one of"),
        ("delay_to_sigkill = []", "delay_to_sigkill must be a number of seconds"),
        ("stop_signal = 'SIGNOT'", "stop_signal must be a signal such as \"SIGINT\" or 2, not 'SIGNOT'"),
        ("stop_signal = 0", "stop_signal must be a signal"),
        ("pdeathsig = 65", "pdeathsig must be a signal"),
        ("rlimits = { RLIMIT_NOFILE = 1 }", "unknown key 'RLIMIT_NOFILE': is 'NOFILE' meant?"),
        ("rlimits = { LOCKS = 1 }", "unknown key 'LOCKS'"),
        ("rlimits = { NOFILE = [2, 1] }", "NOFILE has a soft limit above the hard one"),
        ("rlimits = { NOFILE = [1] }", "NOFILE must be a number or (soft, hard)"),
        ("rlimits = { NOFILE = 'many' }", "NOFILE must be an integer"),
        ("rlimits = [1]", "rlimits must be a table"),
        ("nice = 20", "nice must be from -20 to 19, not 20"),
        ("nice = 1979-05-27", "nice must be an integer"),
        ("cpu_affinity = []", "cpu_affinity must have at least 1 item"),
        ("oom_score_adj = 1001", "oom_score_adj must be from"),
        ("cgroup = 'yes'", "cgroup must be true, false or 'auto', not 'yes'"),
        ("cgroup_path = '/x'", "cgroup_path must be a path below"),
        ("cgroup_base = 'a'\ncgroup_path = 'b'", "cgroup_base and cgroup_path may not both be given"),
        ("cgroup_controllers = ['../x']", "cgroup_controllers[0] must be a name"),
        ("cgroup_sets = ['memory']", "cgroup_sets[0] must be (controller, file, value)"),
        ("limits = { memory_max = '3' }", "memory_max must be 4096 or more"),
        ("limits.memory_maxx = '3M'", "unknown key 'memory_maxx': is 'memory_max' meant?"),
        ("limits = { cpu_idle = true, cpu_weight = 3 }", "cpu_weight=3 has no meaning with cpu_idle=true"),
        ("require = ['walls']", "require[0] must be one of"),
    ],
)
def test_a_wrong_key_or_value_has_its_line(file: Path, line: str, message: str) -> None:
    """It is the last of the lines, and the others are right."""
    command = "" if line.startswith("command") else "command = ['web']\n"
    text = f"{command}{line}" if command else line
    [(found, said)] = refused(file, f"[daemon.web]\n{text}\n[daemon.other]\ncommand = ['x']\nnice = 3\n")
    assert message in said
    assert found == 1 + text.count("\n") + 1


def test_a_daemon_without_a_command_is_refused_at_its_header(file: Path) -> None:
    assert refused(file, "\n[daemon.web]\nnice = 3\n") == [
        (2, 'daemon \'web\' has no command, such as ["nginx", "-g", "daemon off;"]')
    ]


def test_all_problems_are_told_at_once_and_in_order(file: Path) -> None:
    problems = refused(
        file,
        """\
        [daemon.web]
        command = "nginx"
        nice = 99
        user = "no-such-user"
        group = "no-such-group"
        env.A = 1
        env.C = 3
        depends_on = ["db", "cache",
                      "nobody"]
        [daemon.db]
        umask = "rwx"
        [supervisor]
        strategy = "none"
        [group.workers.daemon.one]
        command = ["one",
                   2]
        depends_on = ["one"]
        [grup.x]
        """,
    )
    assert [line for line, _ in problems] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 16, 17, 18]


def test_values_of_variables_are_not_told(file: Path) -> None:
    """They are often secrets, and messages are logged."""
    for env in ("{ A = 12345 }", "['A=12345']", "'A=12345'", '{ A = "12345\\u0000" }'):
        [(_, said)] = refused(file, f"daemon.web = {{ command = ['x'], env = {env} }}")
        assert "12345" not in said


def test_files_that_are_no_text(file: Path, tmp_path: Path) -> None:
    file.write_bytes(b"[daemon.web]\ncommand = ['x']\n# \xff\n")
    for path, problem in (
        (file, (3, "not UTF-8: byte 0xff")),
        (tmp_path, (1, "can't be read: Is a directory")),
        (tmp_path / "none", (1, "can't be read: No such file or directory")),
        (file / "x", (1, "can't be read: Not a directory")),
    ):
        with pytest.raises(ConfigError) as caught:
            load(path)
        assert caught.value.problems == (problem,)
        assert str(caught.value) == f"{path}:{problem[0]}: {problem[1]}"


def test_without_a_reader_of_toml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    for name in ("tomllib", "tomli"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'muontrap\[supervise\]'"):
        load(file)


JUNK = st.recursive(
    st.sampled_from(
        [
            *("0", "-1", "3", "64", "1.5", "nan", "inf", "true", "false", "0x" + "f" * 40, "1979-05-27"),
            *("''", "'x'", "'1'", "'max'", "'\u00e9'", "'a:b'", "'tcp:a:1'", "'output:x'", '"\\u0000"'),
        ]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.dictionaries(
            st.sampled_from(["a", "memory_max", "NOFILE", "io_max", "'8:0'", "rbps", "initial", "factor"]),
            inner,
            max_size=3,
        ).map(lambda table: f"{{{', '.join(f'{key} = {value}' for key, value in table.items())}}}"),
    ),
    max_leaves=6,
)


@thorough
@given(st.lists(st.tuples(st.sampled_from(sorted(DAEMON)), JUNK), unique_by=lambda pair: pair[0]))
@example([("ready", "'output:x'"), ("stdout", "'null'")])
def test_any_values_are_right_or_refused_on_their_lines(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    """And never an exception of another kind."""
    file = tmp_path_factory.getbasetemp() / "junk.toml"
    text = "[daemon.web]\n" + "".join(f"{key} = {value}\n" for key, value in pairs)
    try:
        read(file, text).build()
    except ConfigError as error:
        lines = {line for line, _ in error.problems}
        assert lines <= {*range(1, len(pairs) + 2)}
        # Without what is wrong, all is right, but for a command.
        rest = [pair for line, pair in enumerate(pairs, 2) if line not in lines and pair[0] != "command"]
        read(
            file, "[daemon.web]\ncommand = ['x']\n" + "".join(f"{key} = {value}\n" for key, value in rest)
        ).build()


# Lines of keys

KEYS = st.one_of(
    st.sampled_from(["a", "b", "1", "-", "a b", "a.b", "#", "=", "[x]", '"', "'", "\u00e9", "\\", "", "\t"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=4),
)
SCALARS = st.sampled_from(
    [
        *("1", "-0.5e3", "inf", "true", "0x1F", "1979-05-27T07:32:00Z", "1979-05-27 07:32:00", "07:32:00"),
        *(
            "'x'",
            "''",
            '""',
            "'# no = \"comment'",
            '"] } , \\" # [y]"',
            '"\\\\"',
            "'\\'",
            "'''a'''",
            "''''''",
        ),
        '"""\n[fake]\nkey = 1\n"""',
        '"""a\\""" b """',
        '""""quoted"""""',
        '"""\\\n   \n x"""',
        '"""\\\\"""',
        "'''\n[[fake]]\n\\'''",
        "''''x'''''",
        "'''''x''''",
        '"""\'\'\'\n"""',
        "'''\"\"\"\n'''",
    ]
)
TABLES: st.SearchStrategy[Any] = st.deferred(
    lambda: st.dictionaries(
        KEYS,
        st.one_of(
            SCALARS,
            ARRAYS,
            st.tuples(st.sampled_from(["header", "dotted", "inline"]), TABLES),
            st.tuples(st.just("header"), TABLES),
            st.tuples(st.just("several"), st.lists(TABLES, min_size=1, max_size=3)),
        ),
        max_size=4,
    )
)
ARRAYS: st.SearchStrategy[Any] = st.deferred(
    lambda: st.lists(st.one_of(SCALARS, ARRAYS, st.tuples(st.just("inline"), TABLES)), max_size=3)
)


class Writer:
    """Writes a document, and notes on which line it puts each key, and what it should mean."""

    def __init__(self, draw: Any) -> None:
        self.text = ""
        self.lines: dict[tuple[str | int, ...], int] = {}
        self._draw = draw

    def document(self, table: Any) -> dict[str, Any]:
        return self._body((), table)

    def _choose(self, *choices: Any) -> Any:
        return self._draw(st.sampled_from(choices))

    def _write(self, text: str) -> None:
        self.text += text

    def _line(self) -> int:
        return self.text.count("\n") + 1

    def _space(self) -> None:
        self._write(self._choose("", "", " ", "\t "))

    def _gap(self) -> None:
        """Where a line may end."""
        self._write(self._choose("", " ", "\n", " # [x] ] } , \" ''' \n", "\n\n  "))

    def _end(self) -> None:
        self._write(self._choose("\n", "\n\n", ' # a = [1, """\n', "\r\n", "\n# [daemon.x]\n\t"))

    def _key(self, key: str) -> None:
        bare = key and all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in key)
        literal = "'" not in key and (key.isprintable() or key == "\t")
        escaped = "".join(
            letter if letter.isprintable() and letter not in '"\\' else f"\\U{ord(letter):08x}"
            for letter in key
        )
        forms = [f'"{escaped}"', *([key] if bare else []), *([f"'{key}'"] if literal else [])]
        self._write(self._choose(*forms))

    def _keys(self, keys: Any) -> None:
        for number, key in enumerate(keys):
            if number:
                self._space()
                self._write(".")
                self._space()
            self._key(key)

    def _body(self, path: Any, table: Any) -> dict[str, Any]:
        """Pairs first: what comes behind a header is that header's."""
        pairs = {key: value for key, value in table.items() if not self._is_below(value)}
        document = {}
        for key, value in pairs.items():
            document[key] = self._pair(path, (key,), value)
            self._end()
        for key, value in table.items():
            if self._is_below(value):
                document[key] = self._below((*path, key), value)
        return document

    @staticmethod
    def _is_below(value: Any) -> bool:
        return isinstance(value, tuple) and value[0] in ("header", "several")

    def _below(self, path: Any, value: Any) -> Any:
        how, what = value
        if how == "several":
            line, items = None, []
            for number, table in enumerate(what):
                line = self._header(path, "[[", "]]")
                self.lines.setdefault(path, line)
                self.lines[(*path, number)] = line
                items.append(self._body((*path, number), table))
            return items
        # A table of tables alone needs no header, or may have it behind them.
        place = self._choose("no", "behind", "before") if self._only_below(what) else "before"
        if place == "before":
            self.lines[path] = self._header(path, "[", "]")
        else:
            self._implied(path)
        document = self._body(path, what)
        if place == "behind":
            self.lines[path] = self._header(path, "[", "]")
        return document

    def _only_below(self, table: Any) -> bool:
        return bool(table) and all(
            isinstance(value, tuple) and value[0] == "header" for value in table.values()
        )

    def _implied(self, path: Any) -> None:
        """The line is that of the first header below it."""
        self.waiting = [*getattr(self, "waiting", []), path]

    def _header(self, path: Any, opening: str, closing: str) -> int:
        self._space()
        line = self._line()
        self._write(opening)
        self._space()
        self._keys([key for key in path if isinstance(key, str)])
        self._space()
        self._write(closing)
        self._end()
        for waiting in getattr(self, "waiting", []):
            self.lines.setdefault(waiting, line)
        self.waiting: list[Any] = []
        return line

    def _pair(self, path: Any, keys: Any, value: Any) -> Any:
        """Write keys = value, or a.b = value for each of a dotted table's."""
        if isinstance(value, tuple) and value[0] == "dotted" and value[1] and self._dottable(value[1]):
            document = {}
            for number, (key, inner) in enumerate(value[1].items()):
                if number:
                    self._write("\n")
                document[key] = self._pair(path, (*keys, key), inner)
            return document
        self._space()
        line = self._line()
        for length in range(1, len(keys) + 1):
            self.lines.setdefault((*path, *keys[:length]), line)
        self._keys(keys)
        self._space()
        self._write("=")
        self._space()
        return self._value((*path, *keys), value)

    def _dottable(self, table: Any) -> bool:
        return not any(self._is_below(value) for value in table.values())

    def _value(self, path: Any, value: Any) -> Any:
        if isinstance(value, str):
            self._write(value)
            return tomllib.loads(f"x = {value}")["x"]
        if isinstance(value, list):
            items = []
            self._write("[")
            for number, item in enumerate(value):
                self._gap()
                self.lines[(*path, number)] = self._line()
                items.append(self._value((*path, number), item))
                self._gap()
                if number < len(value) - 1 or self._choose(True, False):
                    self._write(",")
            self._gap()
            self._write("]")
            return items
        document = {}
        self._write("{")
        for number, (key, inner) in enumerate(value[1].items()):
            if number:
                self._write(",")
            self._space()
            document[key] = self._pair_of_inline((*path,), key, inner)
            self._space()
        self._write("}")
        return document

    def _pair_of_inline(self, path: Any, key: str, value: Any) -> Any:
        """In an inline table there are neither headers nor, here, dotted keys of more than one value."""
        if isinstance(value, tuple) and value[0] == "dotted" and len(value[1]) == 1:
            [(below, inner)] = value[1].items()
            if isinstance(inner, str):
                return {below: self._pair(path, (key, below), inner)}
        if isinstance(value, tuple):
            tables = value[1] if value[0] == "several" else None
            value = [("inline", table) for table in tables] if tables is not None else ("inline", value[1])
        return self._pair(path, (key,), value)


def paths_of(value: Any, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = {path} if path else set()
    return found.union(*(paths_of(inner, (*path, key)) for key, inner in items))


def test_the_lines_of_arrays_of_tables() -> None:
    text = "[[a]]\n[a.b]\nx = 1\n[[a.c]]\n[[a]]\n[[a.c]]\n[[a.c]]\n[a.c.d]\ny = [\n1, [ # ]\n2]]\n"
    assert find_lines(text, tomllib.loads) == {
        ("a",): 1,
        ("a", 0): 1,
        ("a", 0, "b"): 2,
        ("a", 0, "b", "x"): 3,
        ("a", 0, "c"): 4,
        ("a", 0, "c", 0): 4,
        ("a", 1): 5,
        ("a", 1, "c"): 6,
        ("a", 1, "c", 0): 6,
        ("a", 1, "c", 1): 7,
        ("a", 1, "c", 1, "d"): 8,
        ("a", 1, "c", 1, "d", "y"): 9,
        ("a", 1, "c", 1, "d", "y", 0): 10,
        ("a", 1, "c", 1, "d", "y", 1): 10,
        ("a", 1, "c", 1, "d", "y", 1, 0): 11,
    }


@thorough
@given(st.data(), TABLES)
def test_the_line_of_a_key_is_where_that_key_is(data: st.DataObject, table: Any) -> None:
    writer = Writer(data.draw)
    document = writer.document(table)
    assert repr(tomllib.loads(writer.text)) == repr(document)  # `repr`, for nan and the order
    lines = find_lines(writer.text, tomllib.loads)
    assert lines.keys() == paths_of(document)
    assert lines == writer.lines


def test_lines_are_in_the_order_of_their_first_mention() -> None:
    text = "[b.x]\n[a]\ny = 1\n[b]\nz.w = 2\n"
    assert list(find_lines(text, tomllib.loads).items()) == [
        (("b",), 4),
        (("b", "x"), 1),
        (("a",), 2),
        (("a", "y"), 3),
        (("b", "z"), 5),
        (("b", "z", "w"), 5),
    ]


# Changes

OLD = """
[supervisor]
max_restarts = 5
[daemon.db]
command = ["db"]
[daemon.web]
command = ["web"]
depends_on = ["db"]
[daemon.cron]
command = ["cron"]
[group.workers]
[group.workers.daemon.a]
command = ["a"]
[group.workers.daemon.b]
command = ["b"]
depends_on = ["a"]
"""


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("", "", Changes()),
        ('["cron"]', '[ "cron", ]  # the same', Changes()),
        ('["cron"]', '["cron"]\ndelay_to_sigkill = 1.0', Changes(["cron"], ["cron"])),
        ('["web"]', '["web", "-v"]', Changes(["web"], ["web"])),
        ('["db"]\n[', '["db"]\nnice = 3\n[', Changes(["web", "db"], ["db", "web"])),
        ('["a"]\n[', '["a"]\nnice = 3\n[', Changes(["workers/b", "workers/a"], ["workers/a", "workers/b"])),
        ('["b"]\n', '["b", "b"]\n', Changes(["workers/b"], ["workers/b"])),
        ("[group.workers]\n", "[group.workers]\nmax_restarts = 9\n", Changes(["workers"], ["workers"])),
        ("[daemon.cron]\n", "[daemon.tick]\n", Changes(["cron"], ["tick"])),
        ("[daemon.cron]\n", "[group.cron.daemon.x]\n", Changes(["cron"], ["cron"])),
        ("max_restarts = 5", "max_restarts = 6", Changes(needs_restart=["max_restarts"])),
        ("max_restarts = 5", "max_seconds = 6", Changes(needs_restart=["max_restarts", "max_seconds"])),
        (
            '[daemon.cron]\ncommand = ["cron"]\n',
            '[daemon.x]\ncommand = ["x"]\ndepends_on = ["y"]\n[daemon.y]\ncommand = ["y"]\n',
            Changes(["cron"], ["y", "x"]),
        ),
    ],
)
def test_only_what_changed_is_restarted(file: Path, before: str, after: str, expected: Changes) -> None:
    assert before in OLD
    found = changes(read(file, OLD), read(file, OLD.replace(before, after, 1)))
    assert repr(found) == repr(expected)
    assert bool(found) == bool(expected.remove or expected.add or expected.needs_restart)
    assert found.replace == tuple(name for name in found.add if name in found.remove)


def test_the_order_counts_only_where_the_strategy_makes_it(file: Path) -> None:
    def plan(names: str, strategy: str) -> Plan:
        daemons = "".join(f"daemon.{name}.command = ['x']\n" for name in names)
        return read(file, f"{daemons}[supervisor]\nstrategy = '{strategy}'\n")

    assert not changes(plan("abc", "one_for_one"), plan("cab", "one_for_one"))
    found = changes(plan("abcd", "rest_for_one"), plan("acbd", "rest_for_one"))
    assert (found.remove, found.add) == (("d", "b"), ("b", "d"))
    found = changes(plan("abcd", "rest_for_one"), plan("axcd", "rest_for_one"))
    assert (found.remove, found.add) == (("d", "c", "b"), ("x", "c", "d"))
    assert changes(plan("abcd", "rest_for_one"), plan("abd", "rest_for_one")).remove == ("c",)


NAMES = "abcdef"
PLANS = st.tuples(
    st.sampled_from(["one_for_one", "rest_for_one"]),
    st.permutations(NAMES),
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 1), st.sets(st.sampled_from(NAMES), max_size=2)),
        min_size=6,
        max_size=6,
    ),
)


def make_plan(file: Path, drawn: Any, strategy: str) -> Plan:
    """Each depends only on those before it in one order, which for `rest_for_one` is that of the file."""
    _, order, traits = drawn
    there = {name: trait for name, trait in zip(order, traits, strict=True) if trait[0]} or {
        "a": (1, 0, set())
    }
    blocks = []
    for index, (name, (_, nice, needs)) in enumerate(there.items()):
        before = [each for each in list(there)[:index] if each in needs]
        blocks.append(f"[daemon.{name}]\ncommand = ['x']\nnice = {nice}\ndepends_on = {before}\n")
    if strategy == "one_for_one":
        blocks.reverse()
    return read(file, "".join(blocks) + f"[supervisor]\nstrategy = '{strategy}'\n")


@thorough
@given(PLANS, PLANS)
def test_changes_can_be_done_and_lead_to_the_new_plan(
    tmp_path_factory: pytest.TempPathFactory, one: Any, two: Any
) -> None:
    """By a supervisor itself, which refuses what can't be; and who is kept has not changed."""
    file = tmp_path_factory.getbasetemp() / "changes.toml"
    old, new = make_plan(file, one, one[0]), make_plan(file, two, one[0])
    supervisor, found = old.build(), changes(old, new)
    kept = {name: member for name, member in supervisor._branch.members.items() if name not in found.remove}
    for path in found.remove:
        supervisor.remove(path)
    for path in found.add:
        supervisor.add(new.build_child(path))
    wanted = new.build()
    assert supervisor._branch.members.keys() == wanted._branch.members.keys()
    assert {name: each._depends_on for name, each in supervisor._branch.members.items()} == {
        name: each._depends_on for name, each in wanted._branch.members.items()
    }
    for name, member in kept.items():
        assert supervisor._branch.members[name] is member
        [before] = [each for each in old.members if each.name == name]
        [after] = [each for each in new.members if each.name == name]
        assert before.values == after.values
    if one[0] == "rest_for_one":
        assert list(supervisor._branch.members) == list(wanted._branch.members)
    assert not changes(new, new)


# The command line


def check(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "muontrap", "check", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=BOUND,
    )


def test_a_file_that_is_right(file: Path, tmp_path: Path) -> None:
    """No guard is started: there can't be one."""
    file.write_text(f"[daemon.web]\ncommand = ['touch', '{tmp_path}/started']\n")
    done = check(str(file), MUONTRAP_PYTHON="/no/such/python")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{file}: 1 daemon, all right\n", "")
    file.write_text(OLD)
    assert check(str(file)).stdout == f"{file}: 5 daemons, all right\n"
    assert os.listdir(tmp_path) == [file.name]


def test_a_file_that_is_wrong(file: Path) -> None:
    file.write_text("[daemon.web]\ncomand = ['x']\nnice = 99\n")
    done = check(str(file))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        f'{file}:1: daemon \'web\' has no command, such as ["nginx", "-g", "daemon off;"]',
        f"{file}:2: unknown key 'comand': is 'command' meant?",
        f"{file}:3: nice must be from -20 to 19, not 99",
    ]


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    for path, said in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file or directory")):
        done = check(str(path))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"{path}:1: can't be read: {said}\n"


def test_what_is_no_file_at_all() -> None:
    for arguments in ((), ("a", "b"), ("--frobnicate", "a")):
        done = check(*arguments)
        assert (done.returncode, done.stdout) == (125, "")
        assert all(line.startswith("muontrap: ") for line in done.stderr.splitlines())
    assert check("--help").stdout.startswith("usage: muontrap check [-h] FILE\n")


def test_a_full_stdout_is_no_success(file: Path) -> None:
    file.write_text(OLD)
    with open("/dev/full", "w") as full:
        argv = [sys.executable, "-m", "muontrap", "check", str(file)]
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, timeout=BOUND)
    assert (done.returncode, done.stderr) == (125, b"muontrap: stdout: No space left on device\n")
