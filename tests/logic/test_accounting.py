"""What cgroup files say: figures of both versions, what is missing, and what proves an OOM kill."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muontrap.errors import ProtocolError
from muontrap.logic.accounting import (
    FILES_V1,
    FILES_V2,
    CgroupStatistics,
    flat_keyed,
    merge,
    nested_keyed,
    number,
    number_v1,
    out_of_memory,
    statistics_v1,
    statistics_v2,
)

COUNTS = st.integers(0, 2**64 - 1)
KEYS = st.text("abcdefghijklmnopqrstuvwxyz_.", min_size=1, max_size=12)
ALL_V1 = [name for names in FILES_V1.values() for name in names]
V2 = {
    "memory.current": b"4096\n",
    "memory.peak": b"268435456\n",
    "memory.swap.peak": b"12288\n",
    "memory.max": b"268435456\n",
    "memory.events": b"low 1\nhigh 2\nmax 31\noom 4\noom_kill 5\noom_group_kill 1\n",
    "memory.events.local": b"low 0\nhigh 0\nmax 30\noom 3\noom_kill 2\noom_group_kill 1\n",
    "cpu.stat": b"usage_usec 3500000\nuser_usec 2500000\nsystem_usec 1000000\nnice_usec 0\n"
    b"core_sched.force_idle_usec 0\nnr_periods 70\nnr_throttled 35\nthrottled_usec 1750000\n"
    b"nr_bursts 0\nburst_usec 0\n",
    "pids.current": b"3\n",
    "pids.peak": b"64\n",
    "pids.events": b"max 7\n",
    "io.stat": b"8:16 rbytes=100 wbytes=20 rios=3 wios=4 dbytes=5 dios=6\n8:0 rbytes=1000 wbytes=200\n",
    "cpu.pressure": b"some avg10=12.50 avg60=0.14 avg300=0.02 total=45017361\n",
    "memory.pressure": b"some avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
    b"full avg10=0.00 avg60=0.00 avg300=0.00 total=2\n",
}
V1 = {
    "memory.usage_in_bytes": b"4096\n",
    "memory.max_usage_in_bytes": b"268435456\n",
    "memory.limit_in_bytes": b"268435456\n",
    "memory.failcnt": b"30\n",
    "memory.memsw.failcnt": b"1\n",
    "memory.oom_control": b"oom_kill_disable 0\nunder_oom 0\noom_kill 5\n",
    "cpu.stat": b"nr_periods 70\nnr_throttled 35\nthrottled_time 1750000000\nnr_bursts 0\nburst_time 0\n",
    "cpuacct.usage": b"3500000000\n",
    "cpuacct.stat": b"user 250\nsystem 100\n",
    "pids.current": b"3\n",
    "pids.peak": b"64\n",
    "pids.events": b"max 7\n",
    "blkio.throttle.io_service_bytes_recursive": b"8:16 Read 100\n8:16 Write 20\n8:16 Sync 120\n"
    b"8:16 Async 0\n8:16 Discard 5\n8:16 Total 125\n8:0 Read 1000\n8:0 Write 200\nTotal 1325\n",
    "blkio.throttle.io_serviced_recursive": b"8:16 Read 3\n8:16 Write 4\n8:16 Discard 6\nTotal 13\n",
}
SAME = {
    "memory_current": 4096,
    "memory_peak": 268435456,
    "memory_limit": 268435456,
    "oom_kills": 5,
    "cpu_usage": 3.5,
    "cpu_user": 2.5,
    "cpu_system": 1.0,
    "cpu_periods": 70,
    "cpu_throttled_periods": 35,
    "cpu_throttled": 1.75,
    "pids_current": 3,
    "pids_peak": 64,
    "pids_max_events": 7,
    "io_read_bytes": 1100,
    "io_write_bytes": 220,
    "io": {
        "8:16": {"rbytes": 100, "wbytes": 20, "rios": 3, "wios": 4, "dbytes": 5, "dios": 6},
        "8:0": {"rbytes": 1000, "wbytes": 200},
    },
}
Read = Callable[[Mapping[str, bytes]], CgroupStatistics]


def v1(files: Mapping[str, bytes]) -> CgroupStatistics:
    return statistics_v1(files, 100)


def test_v2() -> None:
    """Each file of the list is used, and each figure known."""
    assert V2.keys() == set(FILES_V2) - {"io.pressure", "irq.pressure"}
    idle = {"avg10": 0.0, "avg60": 0.0, "avg300": 0.0}
    assert statistics_v2(V2) == CgroupStatistics(
        **SAME,
        memory_swap_peak=12288,
        oom_events=3,
        memory_events={"low": 1, "high": 2, "max": 31, "oom": 4, "oom_kill": 5, "oom_group_kill": 1},
        memory_events_local={"low": 0, "high": 0, "max": 30, "oom": 3, "oom_kill": 2, "oom_group_kill": 1},
        pressure={
            "cpu": {"some": {"avg10": 12.5, "avg60": 0.14, "avg300": 0.02, "total": 45017361}},
            "memory": {"some": {**idle, "total": 1}, "full": {**idle, "total": 2}},
        },
    )
    assert None not in vars(statistics_v2(V2)).values()


def test_v1() -> None:
    assert V1.keys() == set(ALL_V1)
    assert statistics_v1(V1, 100) == CgroupStatistics(**SAME, memory_events={"max": 31, "oom_kill": 5})
    assert statistics_v1(V1, 1000).cpu_user == 0.25


@pytest.mark.parametrize(("read", "files"), [(statistics_v2, V2), (v1, V1)])
def test_nothing_is_known_of_what_is_missing(read: Read, files: Mapping[str, bytes]) -> None:
    assert read({}) == read({"cgroup.events": b"populated 0\n"}) == CgroupStatistics()
    for name in files:
        others = {key: text for key, text in files.items() if key != name}
        assert read(others) != read(files), f"{name} is not used"


@pytest.mark.parametrize(
    ("read", "name"), [*((statistics_v2, n) for n in FILES_V2), *((v1, n) for n in ALL_V1)]
)
@pytest.mark.parametrize("text", [b"a=1\n", b"some avg10=x\n", b"\xff 1\n"])
def test_an_error_names_the_file(read: Read, name: str, text: bytes) -> None:
    with pytest.raises(ProtocolError, match=name.replace(".", r"\.")):
        read({name: text})


def test_no_limit() -> None:
    assert statistics_v2({"memory.max": b"max\n"}).memory_limit is None
    assert statistics_v1({"memory.limit_in_bytes": b"9223372036854771712\n"}, 100).memory_limit is None


def test_oom_figures_without_one_of_the_files() -> None:
    both = ["memory.events", "memory.events.local"]
    alone = [statistics_v2({name: V2[name]}) for name in both]
    assert [(one.oom_kills, one.oom_events) for one in alone] == [(5, 4), (2, 3)]


@given(value=COUNTS)
def test_number(value: int) -> None:
    text = b"%d\n" % value
    assert number(text, "f") == value
    assert number(b"max\n", "f") is None
    expected = None if value >= 2**63 - 2**16 or value == 8796093018112 else value
    assert number_v1(text, "f") == expected


@pytest.mark.parametrize("page", [4096, 16384, 65536])
def test_v1_without_limit(page: int) -> None:
    """PAGE_COUNTER_MAX, <kernel>/include/linux/page_counter.h; and 32-bit kernels."""
    assert number_v1(b"%d\n" % ((2**63 - 1) // page * page), "f") is None
    assert number_v1(b"%d\n" % (2**63 - 2**16 - 1), "f") == 2**63 - 2**16 - 1
    assert number_v1(b"-1\n", "f") is None


@pytest.mark.parametrize("text", [b"", b"-2", b"+1", b"1_0", b"1 2", b"1.0", b"\xd9\xa3", b"9" * 21, b"x"])
def test_no_number(text: bytes) -> None:
    for parse in (number, number_v1):
        with pytest.raises(ProtocolError, match="some file"):
            parse(text, "some file")


@given(figures=st.dictionaries(KEYS, COUNTS))
def test_flat_keyed(figures: dict[str, int]) -> None:
    assert (
        flat_keyed(b"".join(b"%s %d\n" % (key.encode(), value) for key, value in figures.items())) == figures
    )


DECIMALS = st.integers(0, 10**6).map(lambda hundredths: hundredths / 100)


@given(figures=st.dictionaries(KEYS, st.dictionaries(KEYS, COUNTS | DECIMALS)), chance=st.booleans())
def test_nested_keyed(figures: dict[str, dict[str, float]], chance: bool) -> None:
    def line(key: str, inner: dict[str, float]) -> str:
        pairs = [
            f" {name}={value:.2f}" if isinstance(value, float) else f" {name}={value}"
            for name, value in inner.items()
        ]
        return key + "".join(pairs) + ("\n" if inner or chance else " ")

    text = "".join(line(key, inner) for key, inner in figures.items()).encode()
    parsed = nested_keyed(text)
    assert parsed == figures
    for key, inner in figures.items():
        assert [type(value) for value in parsed[key].values()] == [type(value) for value in inner.values()]


def test_nested_max_and_a_lost_end_of_line() -> None:
    assert nested_keyed(b"7:0 8:0 rbps=max wiops=3\n") == {
        "7:0": {},
        "8:0": {"rbps": float("inf"), "wiops": 3},
    }


@pytest.mark.parametrize("text", [b"a=1", b"k a=", b"k a=.", b"k a=1.2.3", b"k a=-1", b"k =1", b"k a=1e3"])
def test_malformed_nested(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="the file"):
        nested_keyed(text, "the file")


@given(text=st.binary(max_size=100))
def test_any_bytes_are_figures_or_an_error(text: bytes) -> None:
    for parse in (flat_keyed, nested_keyed, number, number_v1):
        try:
            parse(text, "f")
        except ProtocolError:
            continue


def test_merge_takes_the_first_that_is_known() -> None:
    first = CgroupStatistics(cpu_usage=0.0, pids_peak=1)
    second = CgroupStatistics(cpu_usage=2.0, memory_peak=3)
    assert merge(first, second) == CgroupStatistics(cpu_usage=0.0, pids_peak=1, memory_peak=3)


def test_statistics_are_a_value() -> None:
    one = statistics_v2(V2)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert one != statistics_v2({})
    assert repr(CgroupStatistics(pids_peak=3)) == "CgroupStatistics(pids_peak=3)"
    with pytest.raises(AttributeError, match="can't be changed"):
        one.pids_peak = 3
    with pytest.raises(TypeError, match="unknown figure 'memory'"):
        CgroupStatistics(memory=3)


def events(*, oom: int = 0, kill: int = 0, local_oom: int = 0, local_kill: int = 0) -> CgroupStatistics:
    return statistics_v2(
        {
            "memory.events": b"max 9\noom %d\noom_kill %d\n" % (oom, kill),
            "memory.events.local": b"max 9\noom %d\noom_kill %d\n" % (local_oom, local_kill),
        }
    )


def peak(size: int) -> dict[str, bytes]:
    return {"memory.max_usage_in_bytes": b"%d\n" % size, "memory.limit_in_bytes": b"4096\n"}


@pytest.mark.parametrize(
    ("statistics", "verdict"),
    [
        (CgroupStatistics(), ""),
        (events(), ""),
        (events(oom=3, local_oom=3), ""),  # allocations failed, nobody was killed
        (events(oom=1, kill=1, local_oom=1, local_kill=1), "limit"),
        (events(oom=1, kill=1, local_oom=1), "limit"),  # the victim was in a group below
        (events(kill=1, local_kill=1), "outside"),
        (events(kill=1), "outside"),  # of the whole machine, the victim in a group below
        (events(oom=1, kill=1), ""),  # all of it below: the command's own affair
        (events(oom=1, kill=2, local_kill=1), "outside"),
        (statistics_v2({"memory.events": b"oom 1\noom_kill 1\n"}), "limit"),
        (statistics_v2({"memory.events": b"oom 0\noom_kill 1\n"}), "outside"),
        (v1({"memory.oom_control": b"oom_kill 0\n", "memory.failcnt": b"7\n"}), ""),
        (v1({"memory.oom_control": b"oom_kill 1\n", "memory.failcnt": b"7\n"}), "limit"),
        (v1({"memory.oom_control": b"oom_kill 1\n", "memory.memsw.failcnt": b"7\n"}), "limit"),
        (v1({"memory.oom_control": b"oom_kill 1\n", "memory.failcnt": b"0\n"}), "outside"),
        (v1({"memory.oom_control": b"oom_kill 1\n"}), "outside"),
        (v1({"memory.oom_control": b"oom_kill 1\n", "memory.failcnt": b"0\n"} | peak(4096)), "limit"),
        (v1({"memory.oom_control": b"oom_kill 1\n", "memory.failcnt": b"0\n"} | peak(4095)), "outside"),
    ],
)
def test_out_of_memory(statistics: CgroupStatistics, verdict: str) -> None:
    assert out_of_memory(statistics) == verdict
    assert out_of_memory(statistics, CgroupStatistics()) == verdict
    assert out_of_memory(statistics, statistics) == "", "what was before proves nothing"


def test_out_of_memory_since() -> None:
    before = events(oom=2, kill=2, local_oom=2, local_kill=2)
    after = events(oom=2, kill=3, local_oom=2, local_kill=3)
    assert out_of_memory(after) == "limit"
    assert out_of_memory(after, before) == "outside"


def test_out_of_memory_of_a_group_that_was_at_its_limit_before() -> None:
    before = v1({"memory.oom_control": b"oom_kill 1\n", "memory.failcnt": b"0\n"} | peak(4096))
    after = v1({"memory.oom_control": b"oom_kill 2\n", "memory.failcnt": b"0\n"} | peak(4096))
    assert out_of_memory(after, before) == "outside"
