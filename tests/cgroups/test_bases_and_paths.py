"""Where the cgroup of a command is: below a base, at a path, in the controllers that were asked for."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ground import BOUND, Ground, group_of
from hostlib import hear, say
from machine import OURS, V2, VERSION

import muontrap
from muontrap.host import cgroups
from muontrap.logic.hierarchy import Layout, Place

# What contains, with nothing else asked for.
CONTAINING = V2 if V2 in OURS else next((name for name in ("freezer", "pids", "memory") if name in OURS), "")


def host(*, runs: list[dict[str, Any]]) -> None:
    """Run commands that say where they are; tell what came of each."""
    for options in runs:
        try:
            process = muontrap.Launcher(["sleep", "1000"], **options).launch()
            with process, open(f"/proc/{process.pid}/cgroup", encoding="utf-8") as file:
                say(cgroup=file.read(), paths=process.cgroup and dict(process.cgroup.paths))
        except Exception as error:
            say(refused=type(error).__name__, text=str(error))
    hear()


# --- A base


@pytest.mark.needs("group")
def test_a_new_group_below_the_base(ground: Ground) -> None:
    (ground.folder_of(CONTAINING) / "app").mkdir()
    with ground.launch("sleep", "1000", cgroup_base=f"{ground.base}/app") as process:
        assert group_of(process.pid, CONTAINING).parent == ground.folder_of(CONTAINING) / "app"
    assert ground.groups() == [str(ground.folder_of(CONTAINING) / "app")]


@pytest.mark.needs("group")
def test_the_base_of_the_environment(ground: Ground) -> None:
    started = ground.host(host, runs=[{"cgroup": True}], env={"MUONTRAP_CGROUP_BASE": str(ground.base)})
    answer = started.hear()
    assert f"/{ground.base}/muontrap-" in answer["cgroup"], answer


@pytest.mark.needs("group")
@pytest.mark.parametrize("base", ["../etc", "/etc", "/", "app/../../x"])
def test_a_base_of_the_environment_does_not_lead_out(ground: Ground, base: str) -> None:
    started = ground.host(host, runs=[{"cgroup": True}], env={"MUONTRAP_CGROUP_BASE": base})
    answer = started.hear()
    assert answer.get("refused") in ("ContainmentError", "ValueError"), answer
    started.order("end")
    started.wait_end()
    ground.assert_clean()


@pytest.mark.needs("group")
def test_the_hosts_own_group_is_the_first_base(ground: Ground) -> None:
    answer = ground.host(host, runs=[{"cgroup": True}]).hear()
    assert f"/{ground.base}/host/muontrap-" in answer["cgroup"], answer


@pytest.mark.needs("memory", "pids")
def test_limits_need_no_base(ground: Ground) -> None:
    """In v2 the host's own group, which has a process, can't: the next above is taken, or the root."""
    answer = ground.host(host, runs=[{"limits": {"memory_max": "64M", "pids_max": 9}}]).hear()
    assert answer.get("paths"), answer
    for name in ("memory", "pids"):
        path = answer["paths"][name if VERSION[name] == 1 else V2]
        assert path.rpartition("/")[2] in answer["cgroup"]
        if VERSION[name] == 1:
            assert Path(path).parent == ground.folder_of(name) / "host"


@pytest.mark.needs("group")
def test_a_base_that_is_not_there(ground: Ground) -> None:
    with pytest.raises(muontrap.ContainmentError, match=f"mkdir .*{ground.base}/nowhere"):
        ground.run("true", cgroup_base=f"{ground.base}/nowhere")
    ground.assert_clean()


@pytest.mark.skipif(V2 not in OURS, reason="this machine gives this user no v2 hierarchy")
@pytest.mark.parametrize("path", ["{base}/app/threaded/web", "{base}/app/threaded"])
def test_a_threaded_base_is_refused(ground: Ground, path: str) -> None:
    """What is in a threaded group is not in its list of processes."""
    base = ground.folder_of(V2) / "app" / "threaded"
    base.mkdir(parents=True)
    (base / "cgroup.type").write_text("threaded", "ascii")
    with pytest.raises(muontrap.ContainmentError, match=f"{base} is threaded"):
        ground.run("true", cgroup_base=f"{ground.base}/app/threaded")
    with pytest.raises((muontrap.ContainmentError, OSError), match="threaded"):
        ground.run("true", cgroup_path=path.format(base=ground.base))
    assert ground.groups() == sorted([str(base), str(base.parent)])


# --- A path


@pytest.mark.needs("group")
def test_exactly_this_group(ground: Ground) -> None:
    with ground.launch("sleep", "1000", cgroup_path=f"{ground.base}/web") as process:
        assert process.cgroup
        assert process.cgroup.path == str(ground.folder_of(CONTAINING) / "web")
        assert str(group_of(process.pid, CONTAINING)) == process.cgroup.path
    ground.assert_clean()


@pytest.mark.needs("pids")
def test_a_group_that_is_there_is_taken_and_stays(ground: Ground) -> None:
    path = ground.make("web", "pids")
    options = {"cgroup_path": f"{ground.base}/web", "limits": {"pids_max": 9}}
    for _ in range(2):
        with ground.launch("sleep", "1000", **options) as process:
            assert group_of(process.pid, "pids") == path
        assert ground.groups() == [str(path)]
        assert (path / "pids.max").read_text("ascii") == "9\n"
        ground.assert_left(ground.of_muontrap())


@pytest.mark.needs("group")
def test_a_group_is_used_again_and_again(ground: Ground) -> None:
    """What was killed in it before is of no matter."""
    path = ground.make("web", CONTAINING)
    for _ in range(3):
        with ground.launch("sleep", "1000", cgroup_path=f"{ground.base}/web") as process:
            process.kill()
            process.wait(BOUND)
        assert ground.run("echo", "there", cgroup_path=f"{ground.base}/web").stdout == "there\n"
    assert ground.groups() == [str(path)]


@pytest.mark.needs("group")
def test_a_group_with_a_process_in_it_is_refused(ground: Ground) -> None:
    path = ground.make("web", CONTAINING)
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            (path / "cgroup.procs").write_text(str(other.pid), "ascii")
            with pytest.raises(OSError, match="in use") as caught:
                ground.run("true", cgroup_path=f"{ground.base}/web")
            assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, str(path))
            assert ground.left() == {other.pid}
        finally:
            other.kill()
    assert ground.groups() == [str(path)]


@pytest.mark.needs("group")
def test_a_group_with_a_process_below_it_is_refused(ground: Ground) -> None:
    path = ground.folder_of(CONTAINING) / "web"
    (path / "below").mkdir(parents=True)
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            (path / "below" / "cgroup.procs").write_text(str(other.pid), "ascii")
            with pytest.raises(OSError, match="in use"):
                ground.run("true", cgroup_path=f"{ground.base}/web")
            assert ground.left() == {other.pid}
        finally:
            other.kill()


@pytest.mark.needs("group")
def test_a_group_is_one_commands_at_a_time(ground: Ground) -> None:
    with ground.launch("sleep", "1000", cgroup_path=f"{ground.base}/web") as first:
        with pytest.raises(OSError, match=r".") as caught:
            ground.run("true", cgroup_path=f"{ground.base}/web")
        assert caught.value.errno == errno.EBUSY
        assert first.poll() is None
    assert ground.run("true", cgroup_path=f"{ground.base}/web").returncode == 0
    ground.assert_clean()


@pytest.mark.needs("group")
def test_a_group_that_another_program_has_locked_is_refused(ground: Ground) -> None:
    path = ground.make("web", CONTAINING)
    lock = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r".") as caught:
            ground.run("true", cgroup_path=f"{ground.base}/web")
        assert (caught.value.errno, caught.value.filename) == (errno.EBUSY, str(path))
    finally:
        os.close(lock)
    assert ground.run("true", cgroup_path=f"{ground.base}/web").returncode == 0
    assert ground.groups() == [str(path)]


# --- Controllers, and what is written as it stands


@pytest.mark.needs("memory", "cpu")
def test_controllers_without_limits(ground: Ground) -> None:
    with ground.launch("sleep", "1000", cgroup_controllers=["memory", "cpu"]) as process:
        for name in ("memory", "cpu"):
            assert group_of(process.pid, name).parent == ground.folder_of(name)
        assert process.cgroup
        assert process.cgroup.statistics().memory_current is not None
    ground.assert_clean()


@pytest.mark.needs("memory", "pids")
def test_settings_as_they_stand(ground: Ground) -> None:
    """The original's own example is of v1."""
    file = "memory.max" if VERSION["memory"] == 2 else "memory.limit_in_bytes"
    sets = [("memory", file, "268435456"), ("pids", "pids.max", 17)]
    with ground.launch("sleep", "1000", cgroup_sets=sets) as process:
        assert (group_of(process.pid, "memory") / file).read_text("ascii") == "268435456\n"
        assert (group_of(process.pid, "pids") / "pids.max").read_text("ascii") == "17\n"
    ground.assert_clean()


@pytest.mark.needs("pids")
def test_settings_come_after_limits(ground: Ground) -> None:
    options = {"limits": {"pids_max": 9}, "cgroup_sets": [("pids", "pids.max", "17")]}
    with ground.launch("sleep", "1000", **options) as process:
        assert (group_of(process.pid, "pids") / "pids.max").read_text("ascii") == "17\n"


# --- Paths that lead out


ATTACKS = ["..", "../x", "a/../../x", "a/..", "/etc", "/", "", ".", "./a", "a//b", "a/", "a\0b", "a/./b"]


@pytest.mark.parametrize("path", ATTACKS)
@pytest.mark.parametrize("option", ["cgroup_base", "cgroup_path"])
def test_a_path_that_leads_out_is_refused(option: str, path: str) -> None:
    with pytest.raises(ValueError, match=option):
        muontrap.Launcher(["true"], **{option: path})


@pytest.mark.parametrize(
    ("controller", "file"),
    [
        ("memory", "../x"), ("memory", "a/b"), ("memory", ".."), ("memory", "/etc/x"), ("memory", ""),
        ("memory", "memory.max\0"), ("../memory", "memory.max"), ("", "memory.max"),
    ],
)  # fmt: skip
def test_a_setting_that_leads_out_is_refused(controller: str, file: str) -> None:
    with pytest.raises(ValueError, match="cgroup_sets"):
        muontrap.Launcher(["true"], cgroup_sets=[(controller, file, "1")])


@pytest.mark.parametrize("name", ["../memory", "a/b", "", "..", "a,b", "a b", "a\0"])
def test_a_controller_that_leads_out_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="cgroup_controllers"):
        muontrap.Launcher(["true"], cgroup_controllers=[name])


@pytest.mark.parametrize(
    ("option", "path"),
    [
        ("cgroup_base", "link"),
        ("cgroup_base", "app/link"),
        ("cgroup_path", "link"),
        ("cgroup_path", "link/web"),
    ],
)
def test_a_link_is_not_followed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, option: str, path: str
) -> None:
    """The kernel has none in a hierarchy: so this is an ordinary folder, and taken for one."""
    outside, point = tmp_path / "outside", tmp_path / "point"
    for folder in (outside, outside / "within", point / "app"):
        folder.mkdir(parents=True)
    for link in (point / "link", point / "app" / "link"):
        link.symlink_to(outside)
    place = Place(version=1, point=str(point), own=str(point), writable=True)
    monkeypatch.setattr(cgroups, "discover", lambda: Layout(unified=None, controllers={"freezer": place}))
    with pytest.raises((muontrap.ContainmentError, OSError)):
        muontrap.run(["true"], timeout=BOUND, **{option: path})  # type: ignore[arg-type]
    assert sorted(os.listdir(outside)) == ["within"]
    assert sorted(os.listdir(point / "app")) == ["link"]
