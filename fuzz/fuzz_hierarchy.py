"""Any bytes as mountinfo and a process's cgroups are a layout with absolute paths, or raise ProtocolError."""

from __future__ import annotations

from pathlib import Path

import harness

from muontrap.errors import ProtocolError
from muontrap.logic import hierarchy


def target(data: bytes) -> None:
    """Take the bytes up to a NUL as one file and the rest as the other, then as both."""
    first, _, second = data.partition(b"\0")
    for mountinfo, own in ((first, second), (data, data)):
        try:
            mounts = hierarchy.parse_mountinfo(mountinfo)
            paths = hierarchy.parse_own(own)
        except ProtocolError:
            continue
        layout = hierarchy.layout(mounts, paths)
        places = [*layout.controllers.values(), *([layout.unified] if layout.unified else [])]
        for place in places:
            assert place.point.startswith("/")
            assert place.own is None or (place.own.startswith("/") and ".." not in _below(place))


def _below(place: hierarchy.Place) -> list[str]:
    assert place.own is not None
    assert place.own.startswith(place.point.rstrip("/"))
    return place.own[len(place.point.rstrip("/")) :].split("/")


def corpus() -> list[bytes]:
    """This machine's, and a container's."""
    own = b"4:memory:/a\n3:cpu,cpuacct:/a/b\n1:name=systemd:/\n0::/a\n"
    mounts = (
        b"27 1 8:1 / / rw - ext4 /dev/sda rw\n"
        b"31 27 0:28 / /sys/fs/cg\\040x rw,nosuid shared:9 - tmpfs tmpfs rw\n"
        b"32 31 0:29 /a /sys/fs/cg\\040x/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        b"33 31 0:30 /.. /sys/fs/cg\\040x/memory ro master:1 - cgroup cgroup rw,memory\n"
        b"34 31 0:31 / /sys/fs/cg\\040x/unified rw - cgroup2 cgroup2 rw\n"
    )
    real = [Path("/proc/self", name).read_bytes() for name in ("mountinfo", "cgroup")]
    return [b"\0".join(real), mounts + b"\0" + own]


if __name__ == "__main__":
    harness.run(target, corpus())
