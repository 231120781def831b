"""`muontrap doctor`: what it says is true, of this machine and this user; and it says all of it."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest

from muontrap.cli.arguments import LIMITS
from muontrap.doctor import findings, page
from muontrap.doctor.findings import Finding
from muontrap.doctor.probes import Facts, Group, Trial, look
from muontrap.logic.hierarchy import Layout, Place
from muontrap.logic.limits import Limits

ROOT = Path(__file__).parent.parent
BOUND = 60.0  # s, for things that take milliseconds, in a machine of user-mode-linux a second
ORDINARY = 65534
NAMES = [
    *("default.guard", "default.tag", "default.subreaper"),
    *("kernel.release", "kernel.pidfd", "kernel.close_range", "kernel.children", "kernel.cgroup_kill"),
    *("cgroup.hierarchy", "cgroup.containment"),
    *("controller.memory", "controller.cpu", "controller.pids", "controller.io", "controller.cpuset"),
    *("privilege.user_namespaces", "privilege.CAP_SETUID", "privilege.CAP_SETGID", "privilege.CAP_KILL"),
    *("privilege.CAP_SYS_RESOURCE", "privilege.CAP_SYS_NICE", "privilege.CAP_SYS_ADMIN"),
]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def contradictions(report: dict[str, Any]) -> list[str]:
    """What a launch says of a report: each yes is tried, and each no.

    Its source is also executed as another user, by a Python without pytest.
    """
    import glob
    import os

    import muontrap

    values = {
        "memory_max": "64M",
        "memory_high": "64M",
        "memory_low": "1M",
        "memory_min": "1M",
        "memory_oom_group": True,
        "cpu_max": 0.5,
        "cpu_weight": 50,
        "cpu_idle": True,
        "pids_max": 64,
        "io_weight": 50,
        "cpuset_cpus": [min(os.sched_getaffinity(0))],
        "cpuset_mems": "0",
    }
    tries = {option: {"limits": {option: value}} for option, value in values.items()}
    tries["memory_swap_max"] = {"limits": {"memory_max": "64M", "memory_swap_max": "64M"}}
    devices = sorted(glob.glob("/sys/block/*/dev"))
    if devices:
        with open(devices[0]) as stream:
            tries["io_max"] = {"limits": {"io_max": {stream.read().strip(): {"rbps": "100M"}}}}
    found = {finding["name"]: finding for finding in report["findings"]}
    able = set()
    for name, finding in found.items():
        section, _, controller = name.partition(".")
        if section == "controller":
            able.update(finding["limits"] if finding["ok"] else [])
            if controller == "io" and finding["version"] == 1:
                controller = "blkio"
            tries[name] = {"cgroup_controllers": [controller]}
    expected = {option: option in able for option in tries} | {
        name: finding["ok"] for name, finding in found.items() if name in tries
    }
    for name, options in {
        "cgroup.containment": {"cgroup": True},
        "default.tag": {"require": ["tag"]},
        "default.subreaper": {"require": ["subreaper"]},
        "privilege.CAP_SETUID": {"user": 4711, "group": 4711},
        "privilege.CAP_SETGID": {"group": 4711},
        "privilege.CAP_SYS_NICE": {"nice": -1},
    }.items():
        tries[name] = dict(options)
        expected[name] = found[name]["ok"]
    if not found["privilege.CAP_SETGID"]["ok"]:
        del tries["privilege.CAP_SETUID"]  # which then can't be tried by itself
    wrong = []
    for name, options in tries.items():
        try:
            muontrap.run(["/bin/true"], stdin=muontrap.DEVNULL, cwd="/", timeout=30, check=True, **options)
            said = ""
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        if bool(said) is expected[name]:
            wrong.append(f"{name} is {expected[name]}, but {options}: {said or 'worked'}")
    return wrong


def doctor(*before: str, python: str = sys.executable, **variables: str) -> tuple[int, dict[str, Any]]:
    """Exit status and report of `muontrap doctor --json`."""
    done = subprocess.run(
        [*before, python, "-m", "muontrap", "doctor", "--json"],
        env=environment(python) | variables,
        cwd="/",
        capture_output=True,
        timeout=BOUND,
    )
    assert done.stderr == b""
    return done.returncode, json.loads(done.stdout)


def environment(python: str) -> dict[str, str]:
    paths = [str(ROOT)]
    if python != sys.executable:  # of the same version, but without cffi
        paths.append(str(Path(cffi.__file__).parents[1]))
    return os.environ | {"PYTHONPATH": ":".join(paths), "MUONTRAP_PYTHON": python}


def by_name(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {finding["name"]: finding for finding in report["findings"]}


def need_program(name: str) -> str:
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if not path:
        pytest.skip(f"needs {name}")
    return path


def ordinary_user() -> tuple[list[str], str]:
    """A command line to run things as somebody else, and a Python that this one may execute."""
    before = [need_program("setpriv"), f"--reuid={ORDINARY}", f"--regid={ORDINARY}", "--clear-groups"]
    version = sys.version_info[:2]
    for python in (sys.executable, f"/usr/bin/python{version[0]}.{version[1]}"):
        code = f"import sys; sys.exit(sys.version_info[:2] != {version})"
        line = [*before, "/bin/sh", "-c", 'exec "$@"', "sh", python, "-S", "-c", code]
        if os.path.exists(python) and not subprocess.run(line, capture_output=True).returncode:
            return before, python
    pytest.skip("no other user may start a Python of this version here")


# The truth


@pytest.mark.slow
def test_what_it_says_is_true() -> None:
    """Of whoever runs the tests; they are run in machines of other kinds too (tests/machines)."""
    status, report = doctor()
    assert contradictions(report) == []
    assert status == (0 if report["default_containment"] else 1)


@needs_root
@pytest.mark.slow
def test_what_it_says_to_an_ordinary_user_is_true() -> None:
    before, python = ordinary_user()
    status, report = doctor(*before, python=python)
    assert (status, report["user"]["uid"]) == (0, ORDINARY)
    assert contradictions_as(before, python, report) == []


def contradictions_as(before: list[str], python: str, report: dict[str, Any], **variables: str) -> list[str]:
    code = (
        "from __future__ import annotations\nimport json, sys\nfrom typing import Any\n"
        f"{inspect.getsource(contradictions)}\n"
        "print(json.dumps(contradictions(json.load(sys.stdin))))"
    )
    done = subprocess.run(
        [*before, python, "-c", code],
        input=json.dumps(report).encode(),
        env=environment(python) | variables,
        cwd="/",
        capture_output=True,
        timeout=BOUND,
    )
    assert done.returncode == 0, done.stderr
    wrong: list[str] = json.loads(done.stdout)
    return wrong


@pytest.mark.slow
def test_it_changes_nothing() -> None:
    def enabled() -> dict[str, str]:
        found = {}
        for folder, _, _ in os.walk("/sys/fs/cgroup"):
            with contextlib.suppress(OSError):
                found[folder] = Path(folder, "cgroup.subtree_control").read_text()
        return found

    before = enabled()
    doctor()
    after = enabled()
    both = before.keys() & after.keys()  # other tests may be at work
    assert {folder: after[folder] for folder in both} == {folder: before[folder] for folder in both}


@pytest.mark.slow
def test_without_a_tag() -> None:
    limit = [need_program("prlimit"), "--locks=1000:1000"]
    status, report = doctor(*limit)
    found = by_name(report)
    assert (status, report["default_containment"]) == (1, False)
    assert (found["default.tag"]["ok"], found["default.guard"]["ok"]) == (False, True)
    assert "1000" in found["default.tag"]["detail"]
    assert any("prlimit" in remedy for remedy in found["default.tag"]["remedies"])


def test_without_a_guard() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "muontrap", "doctor", "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "MUONTRAP_PYTHON": "/no/such/python"},
        capture_output=True,
        timeout=BOUND,
    )
    found = by_name(json.loads(done.stdout))
    assert done.returncode == 1
    assert [found[name]["ok"] for name in NAMES[:3]] == [False] * 3
    assert "/no/such/python" in found["default.guard"]["detail"]


# What it advises


@contextlib.contextmanager
def renamed(remedy: str) -> Iterator[str]:
    """A remedy for root, whose groups have a name of their own, and are removed at the end."""
    name = f"muontrap{os.getpid()}-doctor"
    text = remedy.replace("sudo ", "").replace("/muontrap", f"/{name}").replace(":muontrap", f":{name}")
    text = text.replace("=muontrap", f"={name}")
    try:
        yield text
    finally:
        for point in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*")]:
            for group in (point / name / "shell", point / name):
                if group.is_dir():
                    wait_empty(group)
                    group.rmdir()


def wait_empty(group: Path) -> None:
    """Wait until nobody is in it: a guard ends after its host."""
    deadline = time.monotonic() + BOUND
    while (group / "cgroup.procs").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def advice(name: str) -> tuple[list[str], str, str]:
    """Who is told, by which Python, and the last of the remedies."""
    before, python = ordinary_user()
    found = by_name(doctor(*before, python=python)[1])
    if found[name]["ok"] or found["cgroup.hierarchy"]["kind"] == "none":
        pytest.skip("nothing to be changed, or too much")
    return before, python, found[name]["remedies"][-1]


@needs_root
@pytest.mark.slow
@pytest.mark.parametrize("name", ["controller.memory", "cgroup.containment"])
def test_what_it_advises_works(name: str) -> None:
    """Root does that, and the user has what was missing."""
    before, python, remedy = advice(name)
    if "cgcreate" in remedy:
        need_program("cgcreate")
    argv = [*before, python, "-m", "muontrap", "doctor", "--json"]
    with renamed(remedy) as script:
        done = subprocess.run(
            ["sh", "-c", f'{{ {script}; }} >&2 && exec "$@"', "sh", *argv],
            env=environment(python),
            cwd="/",
            capture_output=True,
            timeout=BOUND,
        )
        assert done.returncode == 0, done.stderr
        assert by_name(json.loads(done.stdout))[name]["ok"], done.stdout


# What it says


def test_every_option_is_looked_at() -> None:
    assert set(findings.EVERY.as_dict()) == set(Limits.__annotations__) == set(LIMITS)


def test_the_page() -> None:
    """One line for each finding, and for each remedy."""
    facts = look()
    found = findings.findings(facts)
    text = page.as_text(facts, found)
    for finding in found:
        assert f"  {'yes' if finding.ok else 'no '}  {finding.name.partition('.')[2]} " in text
        assert finding.detail in text
        assert all(f"> {remedy}\n" in text for remedy in finding.remedies)


def test_stdout_that_takes_nothing() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "muontrap", "doctor"], stdout=full, stderr=subprocess.PIPE, timeout=BOUND
        )
    assert (done.returncode, done.stderr) == (125, b"muontrap: stdout: No space left on device\n")


def v1(point: str, *, own: str | None = None, writable: bool = True) -> Place:
    return Place(version=1, point=point, own=own or point, writable=writable)


def v2(point: str = "/sys/fs/cgroup", *, own: str = "/sys/fs/cgroup/mine", writable: bool = True) -> Place:
    return Place(version=2, point=point, own=own, writable=writable)


FILES = frozenset({
    *("memory.max", "memory.high", "memory.low", "memory.min", "memory.swap.max", "memory.oom.group"),
    *("cpu.max", "cpu.weight", "cpu.idle", "pids.max", "io.max"),
})  # fmt: skip
BASE = "/sys/fs/cgroup/mine"
ALL_WELL = Facts(
    version="1.2.3",
    python="3.11.7",
    release="6.1.0-42-amd64",
    machine="x86_64",
    uid=1000,
    user="ann",
    pidfd="",
    close_range=True,
    children=True,
    cgroup_kill=True,
    locks=None,
    tag_width=62,
    trial=Trial("", 0.03, ("tag", "subreaper"), left=False),
    layout=Layout(unified=v2(), controllers={}),
    listed={"memory": True},
    group=Group(2, BASE),
    controllers={name: Group(2, BASE, files=FILES) for name in ("memory", "cpu", "pids", "io", "cpuset")},
    capabilities=(1 << 41) - 1,
    namespaces="",
    systemd=True,
)
NOT_WRITABLE = Group(2, "", ("/x is not writable for this user: as root, chown",))
NO_V2 = {
    "layout": Layout(unified=None, controllers={}),
    "controllers": {},
    "listed": {},
    "cgroup_kill": False,
}


def test_all_is_well() -> None:
    found = findings.findings(ALL_WELL)
    assert [finding.name for finding in found] == NAMES
    assert all(finding.ok for finding in found)
    assert findings.default_works(found)
    assert not any(finding.remedies for finding in found)


@pytest.mark.parametrize(
    ("changes", "name", "detail", "remedy"),
    [
        ({"trial": Trial("GuardError: why")}, "default.guard", "GuardError: why", ""),
        ({"trial": Trial("GuardError: why")}, "default.tag", "no guard", ""),
        (
            {"trial": Trial("", 0.1, ("subreaper",)), "tag_width": 0, "locks": 64},
            *("default.tag", "64", "prlimit"),
        ),
        ({"trial": Trial("", 0.1, ("tag", "subreaper"), left=True)}, "default.subreaper", "lived on", ""),
        ({"release": "4.19.0"}, "kernel.release", "4.19.0", "5.4"),
        ({"release": "5.3-rc1"}, "kernel.release", "5.3-rc1", "5.4"),
        ({"pidfd": "pidfd_open: not permitted"}, "kernel.pidfd", "not permitted", "seccomp"),
        ({"close_range": False}, "kernel.close_range", "one by one", "5.9"),
        ({"children": False}, "kernel.children", "/proc", "CONFIG_PROC_CHILDREN"),
        ({"cgroup_kill": False}, "kernel.cgroup_kill", "frozen", "5.14"),
        (NO_V2, "kernel.cgroup_kill", "no v2", "mount -t cgroup2"),
        (NO_V2, "cgroup.hierarchy", "none", "mount -t cgroup2 none /sys/fs/cgroup"),
        (NO_V2 | {"listed": {"memory": True}}, "controller.memory", "not mounted", "mount -t cgroup2"),
        (NO_V2, "controller.cpuset", "/proc/cgroups", "CONFIG_CPUSETS"),
        (NO_V2 | {"listed": {"blkio": False}}, "controller.io", "booted without", "cgroup_disable=blkio"),
        ({"controllers": {}}, "controller.pids", "no such controller", "CONFIG_CGROUP_PIDS"),
        ({"controllers": {}}, "controller.pids", "no such controller", "container"),
        ({"group": NOT_WRITABLE}, "cgroup.containment", "/x is not writable", "Delegate=yes"),
        ({"group": NOT_WRITABLE}, "cgroup.containment", "/x is not writable", "chown ann"),
        (
            {"group": NOT_WRITABLE, "controllers": {"memory": NOT_WRITABLE}},
            *("controller.memory", "/x is not writable for this user", "echo '+memory' | sudo tee"),
        ),
        # Groups can be made, but not with that controller: the library's own remedy.
        (
            {"controllers": {"memory": Group(2, "", ("/x has no controller memory: echo +memory > /y",))}},
            *("controller.memory", "/x has no controller memory", "echo +memory > /y"),
        ),
        # Root needs no delegation.
        ({"uid": 0, "group": NOT_WRITABLE}, "cgroup.containment", "not writable", "as root, chown"),
        (
            {
                "layout": Layout(unified=None, controllers={"memory": v1("/c/memory"), "cpu": v1("/c/cpu")}),
                "controllers": {"memory": Group(1, "", ("/c/memory is not writable: chown",))},
            },
            *(
                "controller.memory",
                "/c/memory is not writable",
                "cgcreate -a ann -t ann -g memory,cpu:muontrap",
            ),
        ),
        (
            {
                "layout": Layout(unified=None, controllers={"memory": v1("/c/memory", writable=False)}),
                "controllers": {
                    "memory": Group(1, "", ("/c/memory is mounted read-only: mount -o remount",))
                },
            },
            *("controller.memory", "read-only", "remount"),
        ),
        (
            {"namespaces": "user.max_user_namespaces is 0: sudo sysctl -w user.max_user_namespaces=10000"},
            *("privilege.user_namespaces", "is 0", "sysctl -w"),
        ),
        ({"namespaces": "unshare: failed: why"}, "privilege.user_namespaces", "unshare", ""),
        ({"capabilities": 0}, "privilege.CAP_KILL", "another user", "sudo"),
        ({"capabilities": 0, "uid": 0}, "privilege.CAP_SYS_NICE", "nice=", "--cap-add SYS_NICE"),
    ],
)
def test_what_is_missing(changes: dict[str, Any], name: str, detail: str, remedy: str) -> None:
    facts = ALL_WELL._replace(**changes)
    found = findings.findings(facts)
    (finding,) = [finding for finding in found if finding.name == name]
    assert not finding.ok
    assert detail in finding.detail
    assert remedy in " | ".join(finding.remedies)
    assert bool(finding.remedies) or not remedy
    assert findings.default_works(found) is not name.startswith("default.")


def finding_of(controller: str, group: Group) -> Finding:
    found = findings.findings(ALL_WELL._replace(controllers={controller: group}))
    name = "io" if controller == "blkio" else controller
    return next(finding for finding in found if finding.name == f"controller.{name}")


@pytest.mark.parametrize(
    ("controller", "group", "limits"),
    [
        ("pids", Group(2, BASE, files=FILES), ["pids_max"]),
        ("io", Group(2, BASE, files=FILES), ["io_max"]),
        ("io", Group(2, BASE, files=FILES | {"io.bfq.weight"}), ["io_weight", "io_max"]),
        ("io", Group(2, BASE), ["io_weight", "io_max"]),
        ("memory", Group(1, BASE), ["memory_max", "memory_swap_max", "memory_oom_group"]),
        (
            "memory",
            Group(1, BASE, files=frozenset({"memory.limit_in_bytes"})),
            ["memory_max", "memory_oom_group"],
        ),
        ("freezer", Group(1, BASE), []),
    ],
)
def test_limits_of_a_controller(controller: str, group: Group, limits: list[str]) -> None:
    finding = finding_of(controller, group)
    assert finding.data == {"version": group.version, "base": BASE, "limits": limits}
    assert all(name in finding.detail for name in limits)


def test_blkio_is_called_io() -> None:
    finding = finding_of("blkio", Group(1, BASE))
    assert (finding.name, finding.data and finding.data["version"]) == ("controller.io", 1)


def test_a_remedy_that_several_need_stands_once() -> None:
    facts = ALL_WELL._replace(capabilities=0)
    text = page.as_text(facts, findings.findings(facts))
    assert text.count("> sudo COMMAND") == 1
    assert text.endswith("> sudo COMMAND\n")


def test_the_form_for_programs() -> None:
    facts = ALL_WELL._replace(capabilities=0)
    report = json.loads(page.as_json(facts, findings.findings(facts)))
    assert {key: value for key, value in report.items() if key != "findings"} == {
        "format": 1,
        "muontrap": "1.2.3",
        "python": "3.11.7",
        "kernel": "6.1.0-42-amd64",
        "machine": "x86_64",
        "user": {"uid": 1000, "name": "ann"},
        "default_containment": True,
    }
    found = by_name(report)
    assert list(found) == NAMES
    assert found["privilege.CAP_KILL"]["remedies"] == ["sudo COMMAND"]
    assert found["cgroup.hierarchy"]["kind"] == "v2"
    for name, finding in found.items():
        more = {"controller": {"version", "base", "limits"}, "cgroup": {"kind"}}.get(
            name.partition(".")[0], set()
        )
        if name == "cgroup.containment":
            more = set()
        assert finding.keys() == {"name", "ok", "detail", "remedies"} | more


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("6.18.44-fc-v595", (6, 18)), ("5.4", (5, 4)), ("6.1-rc3", (6, 1)), ("odd", (0,)), ("5.x", (5, 0))],
)
def test_release(text: str, numbers: tuple[int, ...]) -> None:
    assert findings.release(text) == numbers
