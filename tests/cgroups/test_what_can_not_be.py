"""Cgroups that can't be had: errors that name file, value and remedy, and leave nothing; or doing without."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path
from typing import Any

import pytest
from commands import need_root, ordinary_user
from ground import BOUND, Ground, group_of
from hostlib import hear, say
from machine import OURS, V2, VERSION

import muontrap
from muontrap.containment.groups import Group
from muontrap.errors import ProtocolError
from muontrap.host import cgroups
from muontrap.logic.hierarchy import Layout

INSISTING = {
    "cgroup": {"cgroup": True},
    "limits": {"limits": {"memory_max": "64M"}},
    "base": {"cgroup_base": "nowhere-at-all"},
    "path": {"cgroup_path": "nowhere-at-all/web"},
    "controllers": {"cgroup_controllers": ["memory"]},
    "sets": {"cgroup_sets": [("pids", "pids.max", "9")]},
}


def host(*, runs: list[dict[str, Any]], patch: str = "") -> None:
    """Run commands; tell what came of each, and where they were."""
    from muontrap.host import link

    link._BOOTSTRAP = link._BOOTSTRAP.replace("; run()", f"\n{patch}\nrun()")
    for options in runs:
        try:
            result = muontrap.run(["cat", "/proc/self/cgroup"], capture_output=True, text=True, **options)
            say(stdout=result.stdout, returncode=result.returncode, counted=result.cgroup is not None)
        except Exception as error:
            say(refused=type(error).__name__, errno=getattr(error, "errno", None), text=str(error))
    hear()


def assert_refused_in_full(ground: Ground, error: BaseException, *words: str) -> None:
    """It says all of this, and nothing is left."""
    assert all(word in str(error) for word in words), str(error)
    ground.assert_clean()


# --- A machine without cgroups, or a user without


@pytest.mark.skipif(bool(OURS), reason="there are cgroups here")
@pytest.mark.parametrize("name", INSISTING)
def test_without_cgroups_who_insists_gets_an_error(ground: Ground, name: str) -> None:
    with pytest.raises(muontrap.ContainmentError) as caught:
        ground.run("true", **INSISTING[name])
    words = {"limits": "memory", "controllers": "memory", "sets": "pids"}.get(name, "cgroup")
    assert_refused_in_full(ground, caught.value, words)


@pytest.mark.parametrize("insist", [{"cgroup": "auto"}, {"cgroup": "auto", "limits": {}}, {"cgroup": False}])
def test_who_does_not_insist_is_launched_everywhere(ground: Ground, insist: dict[str, Any]) -> None:
    answer = ground.host(host, runs=[insist]).hear(BOUND)
    assert answer.get("returncode") == 0, answer


def test_a_layer_that_is_required_is_an_error_where_it_is_not(ground: Ground) -> None:
    with pytest.raises(muontrap.ContainmentError, match=r"require='cgroup': there are .*subreaper"):
        ground.run("true", cgroup_base=None, require=["cgroup"])
    if OURS:
        result = ground.run("true", cgroup_base=None, cgroup="auto", require=["cgroup", "subreaper"])
        assert result.cgroup is not None
    ground.assert_clean()


@pytest.mark.needs("group")
@pytest.mark.parametrize("name", INSISTING)
def test_an_ordinary_user_without_delegation(ground: Ground, name: str) -> None:
    """What the user may not have is named, with what would give it."""
    need_root()
    options = {"cgroup_base": ground.base, **INSISTING[name]}
    if name == "path":
        options = {"cgroup_path": f"{ground.base}/web"}
    elif name == "base":
        options["cgroup_base"] = ground.base
    answer = ground.host(host, runs=[options, {"cgroup": "auto"}], **ordinary_user()).hear(BOUND)
    assert answer.get("refused") == "ContainmentError", answer
    assert str(ground.base) in answer["text"], answer
    assert "not writable" in answer["text"], answer
    assert "chown" in answer["text"], answer
    assert "systemd-run --user --scope -p Delegate=yes" in answer["text"], answer
    ground.hosts[0].order("end")
    ground.hosts[0].wait_end()
    ground.assert_clean()


@pytest.mark.needs("group")
def test_auto_of_an_ordinary_user_without_delegation(ground: Ground) -> None:
    need_root()
    started = ground.host(host, runs=[{"cgroup": "auto"}], **ordinary_user())
    answer = started.hear(BOUND)
    assert (answer.get("returncode"), answer.get("counted")) == (0, False), answer
    assert not ground.groups()


@pytest.mark.needs("memory", "pids")
def test_a_base_that_was_given_to_an_ordinary_user(ground: Ground) -> None:
    """By chown, as `cgcreate -a` does it; in v2 with the group that host and base have in common."""
    need_root()
    give_away(ground)
    started = ground.host(
        host,
        runs=[{"limits": {"memory_max": "64M", "pids_max": 9}, "cgroup_base": f"{ground.base}/given"}],
        **ordinary_user(),
    )
    answer = started.hear(BOUND)
    assert answer.get("returncode") == 0, answer
    assert f"{ground.base}/given/muontrap-" in answer["stdout"]
    assert all(Path(group).name == "given" for group in ground.groups())


def give_away(ground: Ground) -> None:
    for root in ground.tree.roots:  # type: ignore[union-attr]
        (root / "given").mkdir()
        for name in ("cgroup.procs", "cgroup.subtree_control", "tasks"):
            for folder in (root, root / "given"):
                if (folder / name).exists():
                    os.chown(folder / name, 54321, 54321)
        os.chown(root / "given", 54321, 54321)
        if (root / "cgroup.controllers").exists():
            for controller in (root / "cgroup.controllers").read_text("ascii").split():
                (root / "cgroup.subtree_control").write_text(f"+{controller}", "ascii")


# --- What the kernel refuses


def refused_sets() -> dict[str, tuple[tuple[str, str, str], int]]:
    """Settings that the kernel does not take, and why."""
    cases = {
        "no-such-file": (("pids", "pids.nothing", "1"), errno.ENOENT),
        "no-number": (("pids", "pids.max", "lots"), errno.EINVAL),
        "too-many": (("pids", "pids.max", str(2**40)), errno.EINVAL),
        "no-text": (("pids", "pids.max", "\udcff"), errno.EINVAL),
        "read-only": (("pids", "pids.current", "1"), errno.EACCES),
    }
    if VERSION["memory"] == 1:
        setting = ("memory", "memory.memsw.limit_in_bytes", "4096")
        cases["memory-and-swap-below-memory"] = (setting, errno.EINVAL)
    return cases


@pytest.mark.needs("pids")
@pytest.mark.parametrize("name", [*refused_sets()])
def test_a_setting_that_the_kernel_refuses(ground: Ground, name: str) -> None:
    (controller, file, value), code = refused_sets()[name]
    options: dict[str, Any] = {"cgroup_sets": [(controller, file, value)]}
    if controller == "memory":
        options["limits"] = {"memory_max": "64M"}
    with pytest.raises(OSError, match=file) as caught:
        ground.run("true", **options)
    # root may open a file that has no writing, and is refused then
    assert caught.value.errno in {code, *({errno.EINVAL, errno.EPERM} if name == "read-only" else ())}
    assert Path(caught.value.filename).name == file
    assert Path(caught.value.filename).parent.parent == ground.folder_of(controller)
    assert_refused_in_full(ground, caught.value, repr(value), ": ")


@pytest.mark.needs("io")
def test_a_device_that_is_not_there(ground: Ground) -> None:
    with pytest.raises(OSError, match="no such device") as caught:
        ground.run("true", limits={"io_max": {"4000:9": {"rbps": "1M"}}})
    assert caught.value.errno == errno.ENODEV
    assert_refused_in_full(ground, caught.value, "4000:9")


@pytest.mark.needs("cpuset")
def test_a_cpu_that_is_not_there(ground: Ground) -> None:
    with pytest.raises(OSError, match="does not take") as caught:
        ground.run("true", limits={"cpuset_cpus": "4099"})
    assert_refused_in_full(ground, caught.value, "'4099'", "cpuset.cpus")


@pytest.mark.needs("cpuset")
def test_a_group_without_cpus_names_its_own_file(ground: Ground) -> None:
    if VERSION["cpuset"] != 1:
        pytest.skip("in v2, a new group has the CPUs of the one above")
    path = ground.folder_of("cpuset") / "empty"
    path.mkdir()
    with pytest.raises(OSError, match="no CPUs") as caught:
        ground.run("true", cgroup_path=f"{ground.base}/empty", cgroup_controllers=["cpuset"])
    assert str(path) in str(caught.value)
    assert ground.groups() == [str(path)]


@pytest.mark.skipif(VERSION["memory"] != 2, reason="memory is not v2's here")
def test_a_base_with_processes_can_not_limit(ground: Ground) -> None:
    """Where the kernel's rule of no internal processes strikes."""
    base = ground.folder_of(V2) / "host"
    options = {"limits": {"memory_max": "64M"}, "cgroup_base": f"{ground.base}/host"}
    answer = ground.host(host, runs=[options]).hear(BOUND)
    assert answer.get("refused") == "ContainmentError", answer
    assert "memory" in answer["text"]
    assert str(base) in answer["text"]
    assert "subtree_control" in answer["text"]
    assert not ground.groups()


@pytest.mark.needs("memory")
def test_a_controller_that_is_not_given(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of v1: as if the machine had been booted with cgroup_disable=memory. Of v2: not enabled above."""
    if VERSION["memory"] == 1:
        found = cgroups.discover()
        rest = {name: place for name, place in found.controllers.items() if name != "memory"}
        monkeypatch.setattr(cgroups, "discover", lambda: Layout(unified=found.unified, controllers=rest))
        with pytest.raises(muontrap.ContainmentError) as caught:
            ground.run("true", limits={"memory_max": "64M"})
        assert_refused_in_full(ground, caught.value, "no", "controller", "memory")
        return
    base = ground.folder_of(V2) / "app" / "inner"
    base.mkdir(parents=True)
    with pytest.raises(muontrap.ContainmentError) as caught:
        ground.run("true", limits={"memory_max": "64M"}, cgroup_base=f"{ground.base}/app/inner")
    remedy = f"echo +memory > {base.parent}/cgroup.subtree_control"
    assert remedy in str(caught.value)
    assert ground.groups() == sorted([str(base), str(base.parent)])
    # The remedy is one.
    (ground.folder_of(V2) / "cgroup.subtree_control").write_text("+memory", "ascii")
    (base.parent / "cgroup.subtree_control").write_text("+memory", "ascii")
    assert ground.run("true", limits={"memory_max": "64M"}, cgroup_base=f"{ground.base}/app/inner").cgroup


@pytest.mark.needs("memory")
@pytest.mark.parametrize("program", ["/no/such/program", "/etc/passwd"])
def test_a_program_that_is_not_there_leaves_no_group(ground: Ground, program: str) -> None:
    with pytest.raises(OSError, match=program):
        ground.run(program, limits={"memory_max": "64M"})
    ground.assert_clean()


@pytest.mark.needs("group")
def test_a_user_that_can_not_be_leaves_no_group(ground: Ground) -> None:
    if os.getuid() == 0:
        pytest.skip("root can be anybody")
    with pytest.raises(PermissionError):
        ground.run("true", cgroup=True, user=0, allow_root=True)
    ground.assert_clean()


# --- "auto", wherever there can be none


@pytest.mark.skipif(V2 not in OURS, reason="this machine gives this user no v2 hierarchy")
@pytest.mark.parametrize(
    ("file", "value"),
    [("cgroup.max.descendants", "0"), ("cgroup.max.depth", "0"), ("cgroup.type", "threaded")],
)
def test_auto_where_the_kernel_lets_no_group_be_made(ground: Ground, file: str, value: str) -> None:
    base = ground.folder_of(V2) / "app" / "inner"
    base.mkdir(parents=True)
    (base / file).write_text(value, "ascii")
    env = {"MUONTRAP_CGROUP_BASE": f"{ground.base}/app/inner"}
    started = ground.host(host, runs=[{"cgroup": "auto"}, {"cgroup": True}], env=env)
    answer = started.hear(BOUND)
    assert (answer.get("returncode"), answer.get("counted")) == (0, False), answer
    answer = started.hear(BOUND)
    assert answer.get("refused"), answer
    assert str(base) in answer["text"]


@pytest.mark.parametrize("base", ["nowhere/at/all", "../..", "/etc", "a//b", " "])
def test_auto_with_a_strange_base(ground: Ground, base: str) -> None:
    answer = ground.host(host, runs=[{"cgroup": "auto"}], env={"MUONTRAP_CGROUP_BASE": base}).hear(BOUND)
    assert (answer.get("returncode"), answer.get("counted")) == (0, False), answer


# What the guard meets, though the host has seen that it can be.
GUARDS = {
    "no-directory": "groups.Directory.make = refuse",
    "no-entrance": "groups.Group.entrances = refuse",
    "no-joining": "groups.Group.entrances = full",
    "no-setting": "groups._set = refuse",
}
REFUSE = """
import errno, os
from muontrap.containment import groups
def refuse(*arguments, **options):
    raise OSError(errno.ENOSPC, "no more", "/some/file")
def full(group, entrances=groups.Group.entrances):
    found = entrances(group)
    for _, fd in found:
        os.dup2(os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC), fd, inheritable=False)
    return found
"""


@pytest.mark.needs("pids")
@pytest.mark.parametrize("name", GUARDS)
def test_what_the_guard_can_not_do(ground: Ground, name: str) -> None:
    """ "auto" does without; whoever insists is told."""
    runs = [
        {"cgroup": "auto"},
        {"cgroup": True, "cgroup_base": ground.base},
        {"limits": {"pids_max": 9}, "cgroup_base": ground.base},
    ]
    env = {"MUONTRAP_CGROUP_BASE": str(ground.base)}
    started = ground.host(host, runs=runs, patch=f"{REFUSE}\n{GUARDS[name]}", env=env)
    answer = started.hear(BOUND)
    # without settings there is nothing to refuse
    assert (answer.get("returncode"), answer.get("counted")) == (0, name == "no-setting"), answer
    for _ in range(1 if name == "no-setting" else 0):
        assert started.hear(BOUND).get("returncode") == 0
    for _ in range(1 if name == "no-setting" else 2):
        answer = started.hear(BOUND)
        assert (answer.get("refused"), answer.get("errno")) == ("OSError", errno.ENOSPC), answer
    ground.assert_clean()


@pytest.mark.skipif(VERSION["memory"] != 1, reason="memory is not v1's here, where the guard does it")
def test_a_guard_that_can_not_hear_of_oom_kills(ground: Ground) -> None:
    options = {"limits": {"memory_max": "64M"}, "cgroup_base": ground.base}
    patch = f"{REFUSE}\ngroups.OomKills.__init__ = refuse"
    answer = ground.host(host, runs=[options], patch=patch).hear(BOUND)
    assert (answer.get("refused"), answer.get("errno")) == ("OSError", errno.ENOSPC), answer
    ground.assert_clean()


@pytest.mark.parametrize("what", ["unreadable", "strange"])
def test_auto_on_a_machine_that_is_not_understood(
    ground: Ground, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def discover() -> Layout:
        raise PermissionError(13, "Permission denied") if what == "unreadable" else ProtocolError("?")

    monkeypatch.setattr(cgroups, "discover", discover)
    assert ground.run("true", cgroup_base=None, cgroup="auto").returncode == 0
    with pytest.raises((muontrap.MuontrapError, OSError)):
        ground.run("true", cgroup_base=None, cgroup=True)


# --- Limits are in force, or there is an error


@pytest.mark.parametrize(
    "limits",
    [
        {"memory_max": "64M", "memory_high": "32M"},
        {"pids_max": 9, "io_weight": 50},
        {"cpuset_cpus": "0", "cpu_weight": 300},
        {"memory_max": "64M", "memory_swap_max": 0, "memory_low": "1M"},
    ],
)
def test_not_one_of_several_limits_is_ignored(ground: Ground, limits: dict[str, Any]) -> None:
    try:
        process = ground.launch("sleep", "1000", limits=limits, cgroup="auto")
    except (muontrap.ContainmentError, OSError):
        ground.assert_clean()
        return
    with process:
        assert process.cgroup
        found = process.cgroup.limits().as_dict()
        assert {name: found.get(name) for name in limits} == muontrap.Limits(**limits).as_dict()
        for name in limits:
            controller = name.partition("_")[0]
            v1 = "blkio" if controller == "io" else controller
            group = group_of(process.pid, v1 if v1 in OURS else controller)
            assert f"/{ground.base}/muontrap-" in str(group)


def test_a_group_that_can_not_be_made_for_want_of_descriptors(tmp_path: Path) -> None:
    """Wherever it is that there is none: no directory is left, and no descriptor."""
    path = str(tmp_path / "muontrap-1-0")
    setting = (f"{path}/no-such-file", "1", f"{path}/nor-this", "1")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = sorted(os.listdir("/proc/self/fd"))
    code, free = errno.EMFILE, 0
    while code == errno.EMFILE:
        lowest = os.dup(0)
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + free, before[1]))
        try:
            Group.make([(path, True)], [setting])
        except OSError as error:
            code = error.errno or 0
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
        assert os.listdir(tmp_path) == []
        assert sorted(os.listdir("/proc/self/fd")) == files
        free += 1
    assert code == errno.ENOENT
    assert free > 2
