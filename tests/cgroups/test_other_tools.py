"""Tools that no one here wrote agree: libcgroup's (Debian: cgroup-tools) and stress-ng."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from commands import need_program, need_root, python_for_anybody
from ground import Ground
from hostlib import hear, say
from machine import IS_UML, MOUNTS, VERSION

import muontrap

pytestmark = [
    pytest.mark.skipif(IS_UML, reason="the tools are asked on a real machine"),
    pytest.mark.needs("memory", "cpu", "pids"),
]

MB = 1 << 20


def host(*, options: dict[str, Any]) -> None:
    with muontrap.Launcher(["sleep", "1000"], **options).launch() as process:
        say(paths=dict(process.cgroup.paths))
        hear()


def tool(*argv: str) -> str:
    """What one of them prints."""
    need_program(argv[0])
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_cgget_shows_what_was_set(ground: Ground) -> None:
    limits = {"memory_max": "64M", "cpu_weight": 200, "pids_max": 77}
    with ground.launch("sleep", "1000", limits=limits) as process:
        assert process.cgroup
        name = process.cgroup.path.rpartition("/")[2]
        files = ("memory.max", "cpu.weight", "pids.max")
        values = [64 * MB, 200, 77]
        if VERSION["memory"] == 1:
            files, values[1] = ("memory.limit_in_bytes", "cpu.shares", "pids.max"), 2048
        shown = tool("cgget", "-n", "-v", *(f"--variable={file}" for file in files), f"{ground.base}/{name}")
        assert [int(line) for line in shown.split()] == values


def test_lscgroup_lists_it_while_it_runs(ground: Ground) -> None:
    with ground.launch("sleep", "1000", limits={"memory_max": "64M"}) as process:
        assert process.cgroup
        name = process.cgroup.path.rpartition("/")[2]
        assert f"{ground.base}/{name}" in tool("lscgroup")
    assert name not in tool("lscgroup")


def test_cgset_and_process_cgroup_see_the_same(ground: Ground) -> None:
    with ground.launch("sleep", "1000", limits={"pids_max": 77}) as process:
        assert process.cgroup
        name = process.cgroup.path.rpartition("/")[2]
        tool("cgset", "-r", "pids.max=55", f"{ground.base}/{name}")
        assert process.cgroup.read("pids.max") == "55"
        assert process.cgroup.limits().pids_max == 55


def test_what_cgcreate_gives_to_a_user_is_a_base(ground: Ground) -> None:
    """On v2 that is not enough: see `test_a_base_that_was_given_to_an_ordinary_user`."""
    need_root()
    if VERSION["memory"] != 1:
        pytest.skip("cgcreate gives no common group away")
    given = f"{ground.base}/given"
    tool("cgcreate", "-a", "nobody:nogroup", "-t", "nobody:nogroup", "-g", f"memory,cpu:{given}")
    user = [need_program("setpriv"), "--reuid=nobody", "--regid=nogroup", "--clear-groups"]
    options = {"cgroup_base": given, "limits": {"memory_max": "64M", "cpu_max": 0.5}}
    started = ground.host(host, options=options, before=user, python=python_for_anybody())
    paths = started.hear()["paths"]
    assert set(paths) == {"memory", "cpu"}
    assert all(f"/{given}/muontrap-" in path for path in paths.values())
    group = f"{given}/{paths['memory'].rpartition('/')[2]}"
    assert tool("cgget", "-n", "-v", "-r", "memory.limit_in_bytes", group).strip() == str(64 * MB)
    started.order("end")
    started.wait_end()
    ground.wait_left()
    assert set(ground.groups()) == {f"{MOUNTS[name]}/{given}" for name in ("memory", "cpu")}
    tool("cgdelete", "-g", f"memory,cpu:{given}")


def test_stress_ng_is_out_of_memory(ground: Ground) -> None:
    """It takes care of its hogs: each that is killed is started again, unless all die at once."""
    stress = need_program("stress-ng")
    line = [stress, "--vm", "2", "--vm-bytes", "300M", "--vm-keep", "--timeout", "60", "--temp-path", "/tmp"]
    result = ground.run(*line, limits={"memory_max": "100M"})
    assert result.reason == "out-of-memory"
    assert result.explanation == "out of memory (limit 100 MiB, peak 100 MiB)"
    ground.assert_clean()


def test_stress_ng_forks_no_further(ground: Ground) -> None:
    stress = need_program("stress-ng")
    line = [stress, "--fork", "2", "--fork-max", "64", "--timeout", "60", "--temp-path", "/tmp"]
    launcher = ground.launcher(*line, limits={"pids_max": 20})
    with pytest.raises(muontrap.TimeoutExpired) as caught:
        launcher.run(timeout=1, capture_output=True)
    result = caught.value.result
    assert result
    assert result.cgroup
    assert result.cgroup.pids_max_events
    assert result.cgroup.pids_peak in (20, None)
    ground.assert_clean()


def test_stress_ng_gets_half_of_a_cpu(ground: Ground) -> None:
    stress = need_program("stress-ng")
    line = [stress, "--cpu", "2", "--timeout", "60", "--temp-path", "/tmp"]
    with pytest.raises(muontrap.TimeoutExpired) as caught:
        ground.launcher(*line, limits={"cpu_max": 0.5}).run(timeout=2, capture_output=True)
    result = caught.value.result
    assert result
    used = result.usage.user + result.usage.system
    assert used <= 0.6 * result.usage.wall
    assert result.cgroup
    assert result.cgroup.cpu_throttled_periods or used < 0.5 * result.usage.wall  # others have the machine
