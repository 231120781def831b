"""What limits do to a command that meets them, and what its result says of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from ground import BOUND, Ground, group_of
from machine import IS_UML, VERSION

import muontrap

MB = 1 << 20
PYTHON = [sys.executable, "-S", "-E", "-c"]
HOG = [*PYTHON, f"bytearray({400 * MB})"]
# As one word of a shell's script.
HOG_IN_SHELL = " ".join([*HOG[:-1], f"'{HOG[-1]}'"])

# Forks as long as it can, says so once, and stays.
BOMB = """
import os, signal, sys
while True:
    try:
        os.fork()
    except BlockingIOError:
        os.write(1, b"full\\n")
        signal.pause()
"""
# Never stays: what forks is replaced at once.
RESTLESS_BOMB = """
import os
while True:
    try:
        os.fork() or os._exit(0)
        os.fork()
    except BlockingIOError:
        pass
"""
# Seconds of CPU that it had when it had started, and in all, and what part of a CPU it had in between.
SPINNER = """
import time
start, begin = time.process_time(), time.monotonic()
while (used := time.process_time()) < {cpu}:
    pass
print(start, used, (used - start) / (time.monotonic() - begin))
"""


def oom_kills_of_the_machine() -> int:
    """How many processes the kernel has killed for want of memory since it was booted."""
    lines = Path("/proc/vmstat").read_text("ascii").splitlines()
    return int(dict(line.split() for line in lines)["oom_kill"])


# --- Memory


@pytest.mark.needs("memory")
def test_memory_hog_is_killed_and_reported(ground: Ground) -> None:
    before = oom_kills_of_the_machine()
    result = ground.run(*HOG, limits={"memory_max": "256M"})
    assert oom_kills_of_the_machine() > before
    assert (result.returncode, result.reason) == (-9, "out-of-memory")
    assert result.explanation == "out of memory (limit 256 MiB, peak 256 MiB)"
    assert result.cgroup
    assert result.cgroup.oom_kills
    assert result.cgroup.memory_limit == 256 * MB
    assert result.cgroup.memory_peak
    assert 250 * MB < result.cgroup.memory_peak <= 256 * MB
    assert result.cgroup.memory_events
    assert result.cgroup.memory_events["oom_kill"]
    ground.assert_clean()


@pytest.mark.needs("memory")
def test_the_error_says_out_of_memory(ground: Ground) -> None:
    launcher = ground.launcher(*HOG, limits={"memory_max": "64M"})
    with pytest.raises(muontrap.CalledProcessError, match=r"out of memory \(limit 64 MiB, peak 64 MiB\)"):
        launcher.run(check=True)


@pytest.mark.needs("memory")
def test_the_whole_command_dies_of_one_hog(ground: Ground) -> None:
    script = f"setsid sleep 1000 & {HOG_IN_SHELL}; echo survived; exec sleep 1000"
    result = ground.run("sh", "-c", script, limits={"memory_max": "64M"})
    assert (result.returncode, result.reason) == (-9, "out-of-memory")
    if VERSION["memory"] == 2:  # in v1 the guard does it, when it hears of the kill
        assert "survived" not in result.stdout
    ground.assert_clean()


@pytest.mark.needs("memory")
def test_without_oom_group_only_the_hog_dies(ground: Ground) -> None:
    script = f"sleep 1000 & {HOG_IN_SHELL}; echo survived $?; kill -0 $! && echo so did the other"
    limits = {"memory_max": "64M", "memory_oom_group": False}
    result = ground.run("sh", "-c", script, limits=limits)
    assert result.stdout == "survived 137\nso did the other\n"
    assert (result.returncode, result.reason, result.explanation) == (0, "exited", "exited")
    assert result.cgroup
    assert result.cgroup.oom_kills == 1


@pytest.mark.needs("memory")
@pytest.mark.parametrize(
    ("script", "returncode", "reason"),
    [("exit 137", 137, "exited"), ("kill -KILL $$", -9, "signal"), ("kill -KILL 0", -9, "signal")],
)
def test_137_by_itself_is_no_lack_of_memory(
    ground: Ground, script: str, returncode: int, reason: str
) -> None:
    result = ground.run("sh", "-c", script, limits={"memory_max": "64M"})
    assert (result.returncode, result.reason, result.explanation) == (returncode, reason, reason)
    assert result.cgroup
    assert result.cgroup.oom_kills == 0


@pytest.mark.needs("memory")
def test_sigkill_of_ours_is_no_lack_of_memory(ground: Ground) -> None:
    with ground.launch("sleep", "1000", limits={"memory_max": "64M"}) as process:
        process.kill()
        process.wait(BOUND)
    assert process.result
    assert (process.result.returncode, process.result.reason) == (-9, "stopped")


@pytest.mark.needs("memory")
def test_an_older_oom_kill_in_a_group_is_no_evidence(ground: Ground) -> None:
    """`cgroup_path` may name a group that has counted before."""
    ground.make("counts", "memory")
    options = {"cgroup_path": f"{ground.base}/counts", "limits": {"memory_max": "64M"}}
    assert ground.run(*HOG, **options).reason == "out-of-memory"
    result = ground.run("sh", "-c", "kill -KILL $$", **options)
    assert result.cgroup
    assert result.cgroup.oom_kills
    assert (result.returncode, result.reason) == (-9, "signal")
    assert ground.run(*HOG, **options).reason == "out-of-memory"


# --- Processors


@pytest.mark.needs("cpu")
def test_cpu_hog_gets_half_of_a_cpu(ground: Ground) -> None:
    """Within 10 points; less only where the machine had no more to give, which it has in one of five goes."""
    line = [*PYTHON, SPINNER.format(cpu=1 if IS_UML else 3)]
    for _ in range(5):
        result = ground.run(*line, limits={"cpu_max": 0.5})
        start, used, part = map(float, result.stdout.split())
        figures = result.cgroup
        assert figures
        assert figures.cpu_periods
        assert figures.cpu_throttled_periods is not None
        if figures.cpu_usage is not None:  # it joins its group before its start, but after its birth
            assert 0.9 * (used - start) <= figures.cpu_usage <= 1.1 * used
        assert part <= 0.6
        if part >= 0.4:
            return
    pytest.fail(f"{part:.2f} of a CPU: the limit is lower than was asked for")


@pytest.mark.needs("cpuset")
def test_cpus_of_its_own(ground: Ground) -> None:
    last = str(max(os.sched_getaffinity(0)))
    script = "sed -n s/^Cpus_allowed_list://p /proc/self/status"
    assert ground.run("sh", "-c", script, limits={"cpuset_cpus": last}).stdout.strip() == last
    ground.assert_clean()


# --- Processes


@pytest.mark.needs("pids")
def test_fork_bomb_stays_under_its_limit(ground: Ground) -> None:
    with ground.launch(*PYTHON, BOMB, stdout=muontrap.PIPE, limits={"pids_max": 32}) as process:
        assert process.stdout
        assert process.stdout.readline() == "full\n"
        group = group_of(process.pid, "pids")
        assert (group / "pids.max").read_text("ascii") == "32\n"
        assert int((group / "pids.current").read_text("ascii")) <= 32
        assert len(ground.left() - ground.of_muontrap()) <= 32
        result = process.stop()
        ground.assert_clean()
    assert result.cgroup
    assert result.cgroup.pids_max_events
    assert result.cgroup.pids_peak in (32, None)  # the file is of Linux 6.1


@pytest.mark.needs("pids")
def test_restless_fork_bomb_dies(ground: Ground) -> None:
    launcher = ground.launcher(*PYTHON, RESTLESS_BOMB, limits={"pids_max": 24})
    with pytest.raises(muontrap.TimeoutExpired) as caught:
        launcher.run(timeout=1 if IS_UML else 0.3)
    if not IS_UML or caught.value.result:
        assert caught.value.result
        assert caught.value.result.reason == "timeout"
        ground.assert_clean()
    ground.wait_left(ground.of_muontrap(), bound=BOUND)


@pytest.mark.needs("group")
def test_spawning_program_leaves_nothing(ground: Ground) -> None:
    script = "(sleep 1000 &); setsid sleep 1000 & setsid sh -c 'sleep 1000 & sleep 1000' & exit 5"
    result = ground.run("sh", "-c", script, cgroup=True)
    assert (result.returncode, result.reason) == (5, "exited")
    ground.assert_clean()


# --- Each limit is in the kernel's file


# Any block device: the limit is for the command alone.
DISK = next((path.read_text("ascii").strip() for path in sorted(Path("/sys/block").glob("*/dev"))), "7:0")
# limit, what is given, what the kernel has then: v2's file and text, v1's; None where v1 can't do it
FILES: dict[str, tuple[object, tuple[str, str], tuple[str, str] | None]] = {
    "memory_max": ("64M", ("memory.max", f"{64 * MB}"), ("memory.limit_in_bytes", f"{64 * MB}")),
    "memory_high": (32 * MB, ("memory.high", f"{32 * MB}"), None),
    "memory_low": ("4M", ("memory.low", f"{4 * MB}"), None),
    "memory_min": ("4M", ("memory.min", f"{4 * MB}"), None),
    "cpu_max": (0.25, ("cpu.max", "25000 100000"), ("cpu.cfs_quota_us", "25000")),
    "cpu_weight": (200, ("cpu.weight", "200"), ("cpu.shares", "2048")),
    "cpu_idle": (True, ("cpu.idle", "1"), ("cpu.idle", "1")),
    "pids_max": (77, ("pids.max", "77"), ("pids.max", "77")),
    "io_max": (
        {DISK: {"rbps": "1M"}},
        ("io.max", f"{DISK} rbps={MB} wbps=max riops=max wiops=max"),
        ("blkio.throttle.read_bps_device", f"{DISK} {MB}"),
    ),
    "cpuset_cpus": ("0", ("cpuset.cpus", "0"), ("cpuset.cpus", "0")),
    "cpuset_mems": ("0", ("cpuset.mems", "0"), ("cpuset.mems", "0")),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_limit_is_in_force_or_an_error(ground: Ground, name: str) -> None:
    """Never silently ignored, on any machine and for any user."""
    value, *files = FILES[name]
    controller = name.partition("_")[0]
    version = VERSION[controller]
    in_file = files[version != 2]
    if not version or not in_file:
        with pytest.raises(muontrap.ContainmentError, match=controller):
            ground.launch("sleep", "1000", limits={name: value})
        ground.assert_clean()
        return
    with ground.launch("sleep", "1000", limits={name: value}) as process:
        group = group_of(process.pid, "blkio" if version == 1 and controller == "io" else controller)
        assert group.parent == ground.folder_of("blkio" if controller == "io" else controller)
        assert (group / in_file[0]).read_text("ascii").strip() == in_file[1]
    ground.assert_clean()


@pytest.mark.needs("memory")
def test_swap_is_limited_beside_memory(ground: Ground) -> None:
    if not (ground.folder_of("memory") / "memory.memsw.limit_in_bytes").exists() and VERSION["memory"] == 1:
        pytest.skip("no swap accounting here")
    limits = {"memory_max": "64M", "memory_swap_max": "16M"}
    with ground.launch("sleep", "1000", limits=limits) as process:
        group = group_of(process.pid, "memory")
        if VERSION["memory"] == 2:
            assert (group / "memory.swap.max").read_text("ascii") == f"{16 * MB}\n"
        else:
            assert (group / "memory.memsw.limit_in_bytes").read_text("ascii") == f"{80 * MB}\n"


@pytest.mark.needs("memory", "cpu", "pids")
def test_all_limits_at_once_are_one_group_in_each_hierarchy(ground: Ground) -> None:
    limits = {"memory_max": "64M", "cpu_max": 0.5, "pids_max": 9}
    with ground.launch("sh", "-c", "sleep 1000 & wait", limits=limits) as process:
        groups = {group_of(process.pid, name) for name in ("memory", "cpu", "pids")}
        assert {str(group) for group in groups} <= set(ground.groups())
        assert set(ground.groups()) == ground.groups_of(process.pid)
        assert len({group.name for group in groups}) == 1
    ground.assert_clean()
