"""Where hierarchies are: what the kernel writes is read right, hidden mounts and foreign roots included."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muontrap.errors import ProtocolError
from muontrap.logic.hierarchy import Layout, Mount, Place, layout, parse_mountinfo, parse_own

SYSTEM = b"""\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 8:1 / / rw,relatime shared:1 - ext4 /dev/root rw,seclabel
31 27 0:28 / /sys/fs/cgroup rw,relatime shared:9 master:1 - tmpfs tmpfs rw,mode=755
"""
NAMES = st.binary(min_size=1, max_size=12).map(
    lambda name: name.translate(None, b"\0/\n") or b"x"
)  # what a cgroup may be called (cgroup_mkdir refuses a newline)
PATHS = st.lists(NAMES.filter(lambda name: name not in (b".", b"..")), max_size=4).map(
    lambda names: b"/" + b"/".join(names)
)


def escaped(path: bytes) -> bytes:
    """As seq_path() does."""
    return b"".join(b"\\%03o" % byte if byte in b" \t\n\\" else bytes((byte,)) for byte in path)


def cgroup(
    point: bytes,
    *,
    version: int = 1,
    options: bytes = b"rw,memory",
    root: bytes = b"/",
    number: int = 40,
    parent: int = 31,
    flags: bytes = b"rw,nosuid",
) -> bytes:
    kind = b"cgroup2" if version == 2 else b"cgroup"
    ids = b"%d %d 0:29" % (number, parent)
    return (
        b" ".join((ids, escaped(root), escaped(point), flags, b"shared:7", b"-", kind, kind, options)) + b"\n"
    )


def places(mountinfo: bytes, own: bytes) -> Layout:
    return layout(parse_mountinfo(mountinfo), parse_own(own))


@given(point=PATHS, root=PATHS)
def test_any_path_is_read(point: bytes, root: bytes) -> None:
    (mount,) = parse_mountinfo(cgroup(point, root=root))
    assert (os.fsencode(mount.point), os.fsencode(mount.root)) == (point, root)


@pytest.mark.parametrize(
    ("options", "controllers"),
    [
        (b"rw,memory", {"memory"}),
        (b"rw,seclabel,cpu,cpuacct", {"cpu", "cpuacct"}),
        (b"rw,xattr,release_agent=/lib/a\\054cpu,name=systemd", {"name=systemd"}),
        (b"rw,cpuset,noprefix,clone_children,cpuset_v2_mode", {"cpuset"}),
        (b"rw,net_cls,net_prio,blkio,pids,freezer", {"net_cls", "net_prio", "blkio", "pids", "freezer"}),
        (b"rw", set()),
    ],
)
def test_controllers(options: bytes, controllers: set[str]) -> None:
    (mount,) = parse_mountinfo(SYSTEM + cgroup(b"/sys/fs/cgroup/x", options=options))
    assert mount.controllers == controllers
    assert mount.version == 1


def test_v2_has_no_controllers_of_its_own() -> None:
    (mount,) = parse_mountinfo(SYSTEM + cgroup(b"/c", version=2, options=b"rw,memory,nsdelegate", parent=27))
    assert (mount.version, mount.controllers) == (2, frozenset())


@pytest.mark.parametrize(
    ("flags", "options", "writable"),
    [
        (b"rw,nosuid", b"rw,memory", True),
        (b"ro,nosuid", b"rw,memory", False),
        (b"rw,nosuid", b"ro,memory", False),
        (b"nosuid,rw", b"memory,rw", True),
    ],
)
def test_writable(flags: bytes, options: bytes, writable: bool) -> None:
    (mount,) = parse_mountinfo(SYSTEM + cgroup(b"/sys/fs/cgroup/x", flags=flags, options=options))
    assert mount.writable is writable


def points(mountinfo: bytes) -> list[str]:
    return [mount.point for mount in parse_mountinfo(mountinfo)]


def test_a_later_mount_over_the_same_point_hides() -> None:
    under = cgroup(b"/sys/fs/cgroup", version=2, number=40, parent=27)
    tmpfs = b"41 40 0:50 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
    above = cgroup(b"/sys/fs/cgroup/memory", number=42, parent=41)
    own_system = SYSTEM.replace(b"31 27", b"31 22")  # somewhere else
    assert points(own_system + under + tmpfs + above) == ["/sys/fs/cgroup/memory"]
    assert points(own_system + above + tmpfs + under) == ["/sys/fs/cgroup/memory"], "in any order"
    again = cgroup(b"/sys/fs/cgroup/memory", number=43, parent=42, options=b"rw,pids")
    (mount,) = parse_mountinfo(own_system + under + tmpfs + above + again)
    assert mount.controllers == {"pids"}


def test_a_mount_over_a_directory_above_hides() -> None:
    hidden = cgroup(b"/sys/fs/cgroup/memory", number=40, parent=31)
    cover = b"41 27 0:50 / /sys rw - tmpfs tmpfs rw\n"
    assert points(SYSTEM + hidden) == ["/sys/fs/cgroup/memory"]
    assert points(SYSTEM + hidden + cover) == []
    assert points(SYSTEM + hidden + cover + cgroup(b"/sys/cg", number=42, parent=41)) == ["/sys/cg"]


def test_of_two_lines_without_known_parents_the_later_counts() -> None:
    lines = cgroup(b"/c", number=5, parent=90) + cgroup(b"/c", number=6, parent=91, options=b"rw,pids")
    (mount,) = parse_mountinfo(lines)
    assert mount.controllers == {"pids"}


def test_a_root_that_is_its_own_parent_and_no_root_at_all() -> None:
    assert points(b"1 1 0:1 / / rw - rootfs rootfs rw\n" + cgroup(b"/c", parent=1)) == ["/c"]
    assert points(cgroup(b"/c", parent=31)) == ["/c"]
    assert points(cgroup(b"/", parent=31)) == ["/"]


def test_a_circle_of_mounts_ends() -> None:
    lines = cgroup(b"/c", number=1, parent=2) + cgroup(b"/c", number=2, parent=1)
    assert points(lines) == []


@pytest.mark.parametrize(
    "line",
    [
        b"x",
        b"40 31 0:29 / /c rw cgroup cgroup rw",
        b"40 31 0:29 / /c rw -",
        b"a 31 0:29 / /c rw - cgroup cgroup rw",
        b"40 31 0:29 c /c rw - cgroup cgroup rw",
        b"40 31 0:29 / c rw - cgroup cgroup rw",
        b"40 31 0:29 / /c\\04 rw - cgroup cgroup rw",
        b"40 31 0:29 / /c\\0a0 rw - cgroup2 cgroup rw",
    ],
)
def test_malformed_mountinfo(line: bytes) -> None:
    with pytest.raises(ProtocolError, match="mountinfo"):
        parse_mountinfo(line)


def test_own() -> None:
    text = b"9:name=systemd:/\n4:memory:/a:b/c\n2:cpu,cpuacct:/d\n0::/e f\n"
    expected = {"name=systemd": "/", "memory": "/a:b/c", "cpu": "/d", "cpuacct": "/d", "": "/e f"}
    assert parse_own(text) == expected
    assert parse_own(b"") == {}


@given(path=PATHS)
def test_own_paths(path: bytes) -> None:
    expected = {"pids": os.fsdecode(path)}
    assert parse_own(b"3:pids:%s\n" % path) == expected


def test_a_removed_group_has_no_directory() -> None:
    """The kernel says so for v2 alone; in v1 it is a name."""
    assert parse_own(b"1:cpu:/a (deleted)\n0::/a (deleted)\n") == {"cpu": "/a (deleted)"}
    found = places(cgroup(b"/c", version=2), b"0::/a (deleted)\n")
    assert found.unified is not None
    assert found.unified.own is None


@pytest.mark.parametrize(
    "text", [b"x", b"1:cpu", b"1:cpu:a", b"1::/", b"1:cpu,:/", b"a:cpu:/", b":cpu:/", b"0::", b"1:cpu:/\nx"]
)
def test_malformed_own(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="cgroup"):
        parse_own(text)


@pytest.mark.parametrize(
    ("root", "own", "directory"),
    [
        ("/", "/", "/c"),
        ("/", "/a/b", "/c/a/b"),
        ("/a", "/a", "/c"),
        ("/a", "/a/b", "/c/b"),
        ("/a", "/ab", None),
        ("/a", "/", None),
        ("/a/b", "/a", None),
        ("/", "/..", None),
        ("/", "/../x", None),
        ("/", "/..x", "/c/..x"),
        ("/..", "/", None),
        ("/..", "/../x", "/c/x"),
        ("/..", "/../..", None),
        ("/", None, None),
    ],
)
@pytest.mark.parametrize("point", ["/c", "/"])
def test_own_directory(root: str, own: str | None, directory: str | None, point: str) -> None:
    mount = Mount(version=2, controllers=frozenset(), root=root, point=point, writable=True)
    found = layout([mount], {} if own is None else {"": own}).unified
    if directory is not None and point == "/":
        directory = directory.removeprefix("/c") or "/"
    assert found == Place(version=2, point=point, own=directory, writable=True)


@pytest.mark.parametrize(
    ("lines", "own", "kind"),
    [
        (b"", b"0::/\n", "none"),
        (cgroup(b"/c", version=2), b"0::/\n", "v2"),
        (cgroup(b"/c"), b"1:memory:/\n", "v1"),
        (cgroup(b"/c", options=b"rw,name=systemd"), b"1:name=systemd:/\n", "none"),
        (cgroup(b"/c", number=50) + cgroup(b"/d", version=2), b"1:memory:/\n0::/\n", "hybrid"),
        (
            cgroup(b"/c", number=50, options=b"rw,name=x") + cgroup(b"/d", version=2),
            b"1:name=x:/\n0::/\n",
            "v2",
        ),
        (cgroup(b"/c"), b"", "none"),
    ],
)
def test_kind(lines: bytes, own: bytes, kind: str) -> None:
    assert places(lines, own).kind == kind


def test_each_controller_has_its_place() -> None:
    lines = cgroup(b"/sys/fs/cgroup/cpu,cpuacct", options=b"rw,cpu,cpuacct")
    lines += cgroup(b"/sys/fs/cgroup/memory", number=50)
    found = places(lines, b"4:memory:/m\n2:cpuacct,cpu:/\n")
    own = {name: place.own for name, place in found.controllers.items()}
    assert own == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory/m",
    }
    assert found.unified is None


@pytest.mark.parametrize("reverse", [False, True])
def test_the_better_of_two_mounts(reverse: bool) -> None:
    """One with the own group before a writable one, and both before order."""

    def best(*lines: bytes) -> str:
        return (
            places(b"".join(reversed(lines) if reverse else lines), b"1:memory:/m\n")
            .controllers["memory"]
            .point
        )

    elsewhere = cgroup(b"/elsewhere", root=b"/other", number=50)
    readonly = cgroup(b"/readonly", flags=b"ro", number=51)
    good = cgroup(b"/good", number=52)
    assert best(elsewhere, good) == "/good"
    assert best(readonly, good) == "/good"
    assert best(elsewhere, readonly) == "/readonly"
    first = "/same" if reverse else "/good"
    assert best(good, cgroup(b"/same", number=53)) == first


@given(first=st.binary(max_size=200), second=st.binary(max_size=100))
def test_any_bytes_are_a_layout_or_an_error(first: bytes, second: bytes) -> None:
    for mountinfo, own in ((first, second), (SYSTEM + first, b"0::" + second)):
        try:
            assert layout(parse_mountinfo(mountinfo), parse_own(own)).kind in ("v2", "v1", "hybrid", "none")
        except ProtocolError:
            continue


def test_values_compare_and_show_themselves() -> None:
    one, same = (
        Mount(version=1, controllers=frozenset(names), root="/", point="/c", writable=True)
        for names in (("cpu", "cpuacct", "memory"), ("memory", "cpu", "cpuacct"))
    )
    assert one == same
    assert hash(one) == hash(same)
    assert one != Mount(version=2, controllers=one.controllers, root="/", point="/c", writable=True)
    assert "controllers=['cpu', 'cpuacct', 'memory']" in repr(one)


def test_this_machine() -> None:
    """Every directory that is found is there, and is a cgroup."""
    with open("/proc/self/mountinfo", "rb") as mountinfo, open("/proc/self/cgroup", "rb") as own:
        found = layout(parse_mountinfo(mountinfo.read()), parse_own(own.read()))
    for place in [*found.controllers.values(), *filter(None, [found.unified])]:
        assert os.path.exists(os.path.join(place.own or place.point, "cgroup.procs"))
