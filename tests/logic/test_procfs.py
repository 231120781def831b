"""Parsers of /proc: what the kernel writes is read right, and hostile names change nothing."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muontrap.errors import ProtocolError
from muontrap.logic.procfs import (
    parse_children,
    parse_last_pid,
    parse_soft_limit,
    parse_stat,
    parse_umask,
    privileges,
)

PIDS = st.integers(1, 2**22)
COMM = st.binary(max_size=15).map(lambda name: name.replace(b"\0", b"").replace(b"\n", b"\\n"))
TAIL = b" 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 %d 123 456 18446744073709551615 1 1 0 0"
LIMITS = b"""\
Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max open files            1024                 1048576              files
Max locked memory         8388608              8388608              bytes
Max file locks            %s            unlimited            locks
Max pending signals       15000                15000                signals
"""
STATUS = """\
Name:\t%(name)s
Umask:\t0022
State:\tS (sleeping)
Pid:\t%(other)d
Uid:\t%(uid)d\t0\t0\t0
Gid:\t%(gid)d\t0\t0\t0
FDSize:\t%(other)d
Groups:\t%(group)d\x20
%(nstgid)sVmRSS:\t%(other)d kB
SigCgt:\t%(other)016x
CapInh:\t0000000000000000
CapPrm:\t%(capability)016x
CapEff:\t000001ffffffffff
NoNewPrivs:\t%(no_new_privs)d
Seccomp:\t%(seccomp)d
Seccomp_filters:\t%(filters)d
voluntary_ctxt_switches:\t%(other)d
"""
VALUES = {
    "name": "muontrap",
    "other": 1,
    "uid": 0,
    "gid": 0,
    "group": 4,
    "capability": 0,
    "no_new_privs": 0,
    "seccomp": 0,
    "filters": 0,
    "nstgid": "NStgid:\t1\n",
}


@given(pid=PIDS, name=COMM, state=st.sampled_from("RSDZTtXI"), parent=PIDS, start=st.integers(0, 2**63))
def test_stat(pid: int, name: bytes, state: str, parent: int, start: int) -> None:
    text = b"%d (%s) %s %d 1" % (pid, name, state.encode(), parent) + TAIL % start
    assert parse_stat(text) == (state, parent, start)


@pytest.mark.parametrize("name", [b") R 1 1", b"((", b"))", b"a b) Z 7 (", b""])
def test_a_name_can_not_forge_a_stat(name: bytes) -> None:
    assert parse_stat(b"5 (%s) S 42 1" % name + TAIL % 99) == ("S", 42, 99)


@given(text=st.binary(max_size=200))
def test_any_bytes_are_a_stat_or_an_error(text: bytes) -> None:
    for prefix in (b"", b"1 (a) S 2 3"):
        try:
            state, parent, start = parse_stat(prefix + text)
        except ProtocolError:
            continue
        assert (type(state), type(parent), type(start)) == (str, int, int)


def test_own_stat() -> None:
    with open("/proc/self/stat", "rb") as file:
        state, parent, start = parse_stat(file.read())
    assert (state, parent) == ("R", os.getppid())
    with open("/proc/uptime", "rb") as file:
        uptime = float(file.read().split()[0]) * os.sysconf("SC_CLK_TCK")
    assert 0 < start <= uptime + 1


@given(pids=st.lists(PIDS))
def test_children(pids: list[int]) -> None:
    """The kernel writes a space after each."""
    assert parse_children(b"".join(b"%d " % pid for pid in pids)) == pids


@given(value=st.integers(0, 2**64 - 1))
def test_soft_limit(value: int) -> None:
    assert parse_soft_limit(LIMITS % b"%d" % value, b"Max file locks") == value


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        (LIMITS % b"unlimited", b"Max file locks", None),
        (LIMITS % b"7", b"Max open files", 1024),
        (LIMITS % b"7", b"Max locked memory", 8388608),
        (LIMITS % b"7", b"Max cpu time", None),
        (LIMITS % b"7", b"Max nothing", None),
        (b"Max file locks", b"Max file locks", None),
        (b"", b"Max file locks", None),
    ],
)
def test_soft_limits(text: bytes, name: bytes, value: int | None) -> None:
    assert parse_soft_limit(text, name) == value


@given(last=PIDS)
def test_last_pid(last: int) -> None:
    assert parse_last_pid(b"0.20 0.18 0.12 1/80 %d\n" % last) == last


def status(**changes: object) -> bytes:
    return (STATUS % {**VALUES, **changes}).encode()


@pytest.mark.parametrize("part", ["uid", "gid", "group", "capability", "no_new_privs", "seccomp", "filters"])
def test_privileges_tell_every_part(part: str) -> None:
    assert privileges(status()) != privileges(status(**{part: 2}))


@given(other=st.integers(0, 2**32), name=st.sampled_from(["a", "Uid:", "Groups:\\nSeccomp:", "CapInh:"]))
def test_privileges_tell_nothing_else(other: int, name: str) -> None:
    assert privileges(status(other=other, name=name)) == privileges(status())


def test_privileges_of_a_kernel_without_pid_namespaces() -> None:
    """<kernel>/fs/proc/array.c: CONFIG_PID_NS."""
    assert privileges(status(nstgid="", other=5)) == privileges(status(nstgid="", other=6))


def test_of_a_status_that_is_cut_nothing_is_left_out_in_silence() -> None:
    """But for seccomp, which a kernel may not have."""
    whole = privileges(status())
    for size in range(len(status())):
        try:
            parts = privileges(status()[:size])
        except ProtocolError:
            continue
        assert parts[:-1] == whole[:-1]
        assert whole[-1].startswith(parts[-1])
        assert parts[-1].endswith(b"\n")


@pytest.mark.parametrize("label", [b"Uid", b"Gid", b"Groups", b"Cap", b"NoNewPrivs"])
def test_a_status_without_one_of_them_is_none(label: bytes) -> None:
    with pytest.raises(ProtocolError):
        privileges(b"\n".join(line for line in status().split(b"\n") if not line.startswith(label)))


@given(umask=st.integers(0, 0o777))
def test_umask(umask: int) -> None:
    assert parse_umask(status().replace(b"0022", b"%04o" % umask)) == umask


def test_the_umask_of_one_that_is_exiting() -> None:
    with pytest.raises(ProtocolError):
        parse_umask(b"Name:\tx\nState:\tZ (zombie)\n")
