"""Whether a machine is what its kind promises. Run inside of it; pytest does not find this file by itself."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

CGROUP = Path("/sys/fs/cgroup")
KIND = os.environ.get("MUONTRAP_MACHINE", "")
IS_USER = os.geteuid() != 0

pytestmark = pytest.mark.skipif(not KIND, reason="only in a machine of tests/machines/boot.py")

# Of the 6.1 kernel for user mode: neither cpuset, nor io.weight, nor pressure.
CONTROLLERS_V2 = {"cpu", "io", "memory", "pids"}
CONTROLLERS_V1 = {"blkio", "cpu,cpuacct", "devices", "freezer", "memory", "net_cls", "pids", "name=systemd"}


def mounts() -> dict[str, str]:
    """Point and type of what is mounted on /sys/fs/cgroup and below."""
    found = {}
    for line in Path("/proc/self/mounts").read_text("utf-8").splitlines():
        _source, point, kind, *_ = line.split(" ")
        if point.startswith(str(CGROUP)):
            found[point.removeprefix(str(CGROUP)).lstrip("/")] = kind
    return found


def own_groups() -> dict[str, str]:
    """/proc/self/cgroup: controllers ("" for v2) and the group's path."""
    rows = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    return {controllers: path for _, controllers, path in (row.split(":", 2) for row in rows)}


def test_hierarchies() -> None:
    v1 = {name.removeprefix("name="): "cgroup" for name in CONTROLLERS_V1}
    assert mounts() == {
        "v2": {"": "cgroup2"},
        "v1": {"": "tmpfs", **v1},
        "hybrid": {"": "tmpfs", **v1, "unified": "cgroup2"},
        "none": {},
    }[KIND]  # fmt: skip


def test_own_groups() -> None:
    """A hierarchy that was never mounted is not in /proc/self/cgroup either, not even v2's."""
    expected = {"v2": {""}, "v1": CONTROLLERS_V1, "hybrid": CONTROLLERS_V1 | {""}, "none": set()}[KIND]
    assert own_groups() == dict.fromkeys(expected, "/delegated/tests" if IS_USER else "/")


@pytest.mark.skipif(KIND not in {"v2", "hybrid"}, reason="no cgroup2 in this machine")
def test_controllers_of_v2() -> None:
    root = CGROUP if KIND == "v2" else CGROUP / "unified"
    expected = CONTROLLERS_V2 if KIND == "v2" else set()
    for name in ("cgroup.controllers", "cgroup.subtree_control"):
        assert set((root / name).read_text("ascii").split()) == expected


@pytest.mark.skipif(KIND == "none", reason="no cgroup in this machine")
def test_a_group_can_be_made_and_joined() -> None:
    base = CGROUP if KIND == "v2" else CGROUP / "memory"
    group = (base / "delegated" if IS_USER else base) / "made"
    group.mkdir()
    try:
        if KIND == "v2" and IS_USER:
            (group.parent / "cgroup.subtree_control").write_text("+memory +pids +cpu +io", "ascii")
        assert (group / ("memory.max" if KIND == "v2" else "memory.limit_in_bytes")).exists()
        if not os.fork():
            (group / "cgroup.procs").write_text("0", "ascii")
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
    finally:
        group.rmdir()


@pytest.mark.skipif(KIND == "none" or not IS_USER, reason="nothing is delegated in this machine")
def test_delegation_ends_above() -> None:
    base = CGROUP if KIND == "v2" else CGROUP / "memory"
    with pytest.raises(PermissionError):
        (base / "made").mkdir()
    limit = base / "delegated" / ("memory.max" if KIND == "v2" else "memory.limit_in_bytes")
    with pytest.raises(PermissionError):
        limit.write_text("1000000000", "ascii")


def test_the_checkout_is_read_only_and_tmp_is_not(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"Read-only|denied"):
        Path(__file__).with_name("written").touch()
    (tmp_path / "written").write_text("here", "ascii")


def test_loopback_is_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname(), 5).close()
