"""`process.cgroup`: where it is, its files, its limits for another launch, its figures while it runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from ground import BOUND, Ground, group_of
from machine import OURS, V2, VERSION, groups_of

import muontrap

MB = 1 << 20
ALL_LIMITS = {
    "memory_max": "64M",
    "cpu_max": (20000, 80000),
    "cpu_weight": 300,
    "pids_max": 12,
    "cpuset_cpus": "0",
}


def possible_limits() -> dict[str, object]:
    return {name: value for name, value in ALL_LIMITS.items() if VERSION[name.partition("_")[0]]}


def name_of_pids_max(process: muontrap.Process) -> Path:
    return group_of(process.pid, "pids") / "pids.max"


@pytest.mark.needs("group")
def test_it_is_where_the_kernel_says(ground: Ground) -> None:
    with ground.launch("sleep", "1000", cgroup=True, limits=possible_limits()) as process:
        assert process.cgroup
        assert process.cgroup.path in process.cgroup.paths.values()
        assert set(process.cgroup.paths.values()) == ground.groups_of(process.pid) == set(ground.groups())
        for controller, path in process.cgroup.paths.items():
            assert str(group_of(process.pid, controller)) == path
            assert Path(path).parent == ground.folder_of(controller)


@pytest.mark.needs("group")
def test_containment_names_the_version(ground: Ground) -> None:
    layer = "cgroup-v2" if V2 in OURS else "cgroup-v1"
    with ground.launch("sleep", "1000", cgroup=True, require=[layer]) as process:
        assert process.containment[0] == layer
        hierarchy = V2 if V2 in OURS else next(iter(process.cgroup.paths))  # type: ignore[union-attr]
        assert str(ground.base) in groups_of(process.pid)[hierarchy]
    with ground.launch("sleep", "1000", cgroup_base=None) as process:
        assert not any(name.startswith("cgroup") for name in process.containment)
        assert process.cgroup is None
        assert not any(str(ground.base) in path for path in groups_of(process.pid).values())
    other = "cgroup-v1" if V2 in OURS else "cgroup-v2"
    with pytest.raises(muontrap.ContainmentError, match=rf"require='{other}': there are {layer}"):
        ground.launch("sleep", "1000", cgroup=True, require=[other])
    ground.assert_clean()


@pytest.mark.needs("pids")
def test_files_are_read_and_written_while_it_runs(ground: Ground) -> None:
    with ground.launch("sleep", "1000", limits={"pids_max": 9}) as process:
        file = name_of_pids_max(process)
        assert process.cgroup
        assert process.cgroup.read("pids.max") == "9"
        process.cgroup.write("pids.max", 7)
        assert file.read_text("ascii") == "7\n"
        process.cgroup.write("pids.max", "max")
        assert file.read_text("ascii") == "max\n"
        file.write_text("5", "ascii")
        assert process.cgroup.read("pids.max") == "5"
        assert process.cgroup.read("cgroup.procs") == str(process.pid)


@pytest.mark.needs("pids")
def test_a_refused_write_names_file_and_value(ground: Ground) -> None:
    with ground.launch("sleep", "1000", limits={"pids_max": 9}) as process:
        assert process.cgroup
        with pytest.raises(OSError, match=r"'lots'") as caught:
            process.cgroup.write("pids.max", "lots")
        assert caught.value.filename == str(name_of_pids_max(process))
        with pytest.raises(FileNotFoundError, match=r"pids\.nothing"):
            process.cgroup.write("pids.nothing", 1)
        with pytest.raises(FileNotFoundError, match=r"pids\.nothing"):
            process.cgroup.read("pids.nothing")
        assert name_of_pids_max(process).read_text("ascii") == "9\n"


@pytest.mark.needs("pids")
@pytest.mark.parametrize(
    "name",
    [
        "../pids.max", "a/b", "/etc/hosts", "sub/pids.max", "pids.max/", "", "..", ".", "pids.max\0",
        "../cgroup.procs",
    ],
)  # fmt: skip
def test_what_is_no_name_of_a_file_is_refused(ground: Ground, name: str) -> None:
    with ground.launch("sleep", "1000", limits={"pids_max": 9}) as process:
        assert process.cgroup
        with pytest.raises(ValueError, match="is no name"):
            process.cgroup.read(name)
        with pytest.raises(ValueError, match="is no name"):
            process.cgroup.write(name, 0)
        assert name_of_pids_max(process).read_text("ascii") == "9\n"


@pytest.mark.needs("memory", "cpu", "pids")
def test_limits_go_into_another_launch(ground: Ground) -> None:
    given = muontrap.Limits(**possible_limits())  # type: ignore[arg-type]
    with ground.launch("sleep", "1000", limits=given) as process:
        assert process.cgroup
        found = process.cgroup.limits()
        assert {**found.as_dict(), **given.as_dict()} == found.as_dict()
        process.cgroup.write("pids.max", 31)
        found = process.cgroup.limits()
        assert found.pids_max == 31
    with ground.launch("sleep", "1000", limits=found) as process:
        assert process.cgroup
        assert process.cgroup.limits() == found
        assert name_of_pids_max(process).read_text("ascii") == "31\n"


@pytest.mark.needs("memory")
def test_a_choice_of_the_oom_killer_goes_into_another_launch(ground: Ground) -> None:
    """v1 has no file of it."""
    limits = {"memory_max": "64M", "memory_oom_group": False}
    with ground.launch("sleep", "1000", limits=limits) as process:
        assert process.cgroup
        assert process.cgroup.limits() == muontrap.Limits(**limits)  # type: ignore[arg-type]


@pytest.mark.needs("pids")
def test_limits_that_no_launch_would_take_can_be_read(ground: Ground) -> None:
    with ground.launch("sleep", "1000", limits={"pids_max": 9}) as process:
        assert process.cgroup
        process.cgroup.write("pids.max", 0)
        assert process.cgroup.limits().pids_max == 0


@pytest.mark.needs("memory", "pids")
def test_statistics_while_it_runs(ground: Ground) -> None:
    program = f"import os; some = bytearray({30 * MB}); os.write(1, b'there\\n'); os.read(0, 1)"
    line = [sys.executable, "-S", "-E", "-c", program]
    limits = {"memory_max": "200M", "pids_max": 9}
    with ground.launch(*line, limits=limits, stdin=muontrap.PIPE, stdout=muontrap.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        assert process.cgroup
        figures = process.cgroup.statistics()
        in_use = group_of(process.pid, "memory") / (
            "memory.current" if VERSION["memory"] == 2 else "memory.usage_in_bytes"
        )
        assert figures.memory_current
        assert figures.memory_current == pytest.approx(int(in_use.read_text("ascii")), abs=4 * MB)
        assert figures.memory_current > 30 * MB
        assert figures.memory_limit == 200 * MB
        assert figures.memory_peak is None or figures.memory_peak >= figures.memory_current
        assert (figures.pids_current, figures.oom_kills) == (1, 0)
        result = process.stop()
    assert result.cgroup
    assert result.cgroup.memory_peak is None or result.cgroup.memory_peak > 30 * MB


@pytest.mark.needs("group")
def test_there_are_statistics_of_each_cgroup(ground: Ground) -> None:
    with ground.launch("sleep", "1000", cgroup=True) as process:
        assert process.cgroup
        assert isinstance(process.cgroup.statistics(), muontrap.CgroupStatistics)
        assert process.cgroup.limits() == muontrap.Limits()


@pytest.mark.needs("pids")
def test_after_the_end_there_is_nothing_to_read(ground: Ground) -> None:
    with ground.launch("sleep", "1000", limits={"pids_max": 9}) as process:
        process.kill()
        process.wait(BOUND)
        cgroup = process.cgroup
        assert cgroup
        for ask in (
            lambda: cgroup.read("pids.max"),
            lambda: cgroup.write("pids.max", 1),
            cgroup.statistics,
            cgroup.limits,
        ):
            with pytest.raises(FileNotFoundError):
                ask()
        assert process.result
        assert process.result.cgroup
        assert process.result.cgroup.pids_current in (0, 1)  # its zombie may be counted


def test_without_a_cgroup_there_are_no_figures(ground: Ground) -> None:
    result = ground.run("true", cgroup_base=None)
    assert result.cgroup is None
