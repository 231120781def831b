"""One vocabulary: what it takes and refuses, both translations, and back."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muontrap.errors import ProtocolError
from muontrap.logic.limits import (
    Limits,
    Setting,
    controller_of,
    format_size,
    from_files_v1,
    from_files_v2,
    limit_files,
    parse_size,
    settings_v1,
    settings_v2,
    without_counterpart_v1,
)

M = 1024**2
# Whole pages, as the kernel makes of them.
SIZES = st.integers(1, 2**50).map(lambda pages: pages * 4096)
DEVICES = st.builds("{}:{}".format, st.integers(0, 4095), st.integers(0, 2**20 - 1))
BPS = st.integers(1, 2**62)
IOPS = st.integers(1, 2**32 - 2)
RATES = st.fixed_dictionaries({}, optional={"rbps": BPS, "wbps": BPS, "riops": IOPS, "wiops": IOPS})
LISTS = st.lists(st.integers(0, 300), min_size=1, max_size=20)
WEIGHTS = st.integers(1, 10000).filter(lambda weight: weight != 100)
# Nothing that a new group has by itself, but for what the host's own default makes a choice.
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "memory_max": SIZES,
    "memory_high": SIZES | st.just(0),
    "memory_low": SIZES,
    "memory_min": SIZES,
    "memory_swap_max": SIZES | st.just(0),
    "memory_oom_group": st.booleans(),
    "cpu_max": st.tuples(st.integers(1000, 2**44 - 1), st.integers(1000, 10**6))
    | st.floats(0.01, 1000)
    | st.tuples(st.just("max"), st.integers(1000, 10**6).filter(lambda period: period != 100_000)),
    "cpu_weight": WEIGHTS,
    "cpu_idle": st.just(True),
    "pids_max": st.integers(1, 2**22),
    "io_weight": WEIGHTS,
    "io_max": st.dictionaries(DEVICES, RATES, max_size=4),
    "cpuset_cpus": LISTS,
    "cpuset_mems": LISTS,
}


def build(options: dict[str, Any]) -> Limits:
    if options.get("cpu_idle"):
        options.pop("cpu_weight", None)
    return Limits(**options)


LIMITS = st.fixed_dictionaries({}, optional=OPTIONS).map(build)


def files_of(settings: list[Setting], *, bfq: bool = False) -> dict[str, str]:
    """Show what was written as the kernel does, in a group that was new."""
    files = {"memory.oom.group": "0\n", "cpu.max": "max 100000\n", "cpu.weight": "100\n", "cpu.idle": "0\n"}
    files.update({"memory.max": "max\n", "memory.low": "0\n", "memory.min": "0\n", "pids.max": "max\n"})
    files.update({"memory.high": "max\n", "memory.swap.max": "max\n", "cpuset.cpus": "\n"})
    files.update({"memory.limit_in_bytes": "9223372036854771712\n", "cpu.cfs_quota_us": "-1\n"})
    files.update({"memory.memsw.limit_in_bytes": "9223372036854771712\n", "cpu.cfs_period_us": "100000\n"})
    files.update({"cpu.shares": "1024\n", "blkio.bfq.weight": "100\n", "io.max": ""})
    files["io.bfq.weight" if bfq else "io.weight"] = "default 100\n"
    for setting in settings:
        one = setting.instead if bfq and setting.instead else setting
        by_device = one.file == "io.max" or one.file.startswith("blkio.throttle")
        files[one.file] = (files.get(one.file, "") if by_device else "") + one.value + "\n"
    if files["cpu.idle"] == "1\n":
        files.update({"cpu.weight": "0\n", "cpu.shares": "3\n"})
    return files


@given(limits=LIMITS)
def test_v2_and_back(limits: Limits) -> None:
    back = from_files_v2(files_of(settings_v2(limits)))
    # The kernel's default is a choice where there is a limit, for the host's own default is another.
    whole = bool(limits.memory_oom_group) if limits.memory_max else limits.memory_oom_group or None
    expected = limits.replace(memory_oom_group=whole)
    assert back == expected
    assert repr(back) == repr(expected)


@given(limits=LIMITS)
def test_v1_and_back(limits: Limits) -> None:
    lost: dict[str, Any] = dict.fromkeys([*without_counterpart_v1(limits), "memory_oom_group"])
    back = from_files_v1(files_of(settings_v1(limits)))
    assert back.replace(io_weight=None) == limits.replace(**lost).replace(io_weight=None)
    assert _near(back.io_weight, limits.io_weight)


@given(limits=LIMITS)
def test_v2_with_bfq_alone_and_back(limits: Limits) -> None:
    back = from_files_v2(files_of(settings_v2(limits), bfq=True))
    assert _near(back.io_weight, limits.io_weight)


def _near(back: int | None, weight: int | None) -> bool:
    """BFQ has 1 to 1000; up to 110 is its usual 100."""
    if weight is None or 100 <= weight < 111:
        return back is None
    return back == weight if weight < 100 else back is not None and 0 <= weight - back < 11


@given(limits=LIMITS)
def test_each_option_of_each_version_is_written_or_named(limits: Limits) -> None:
    assert {setting.option for setting in settings_v2(limits)} == limits.as_dict().keys()
    done = {setting.option for setting in settings_v1(limits)}
    assert done.isdisjoint(without_counterpart_v1(limits))
    assert {*done, *without_counterpart_v1(limits)} | {"memory_oom_group"} >= limits.as_dict().keys()
    for version, settings in ((1, settings_v1(limits)), (2, settings_v2(limits))):
        for one in settings:
            assert (one.controller, one.file) in limit_files(version)
            assert one.controller == controller_of(one.option, version)
            assert one.instead is None or (one.controller, one.instead.file) in limit_files(version)


@given(limits=LIMITS)
def test_the_repr_makes_the_same(limits: Limits) -> None:
    same = eval(repr(limits))
    assert same == limits
    assert hash(same) == hash(limits)
    assert bool(limits) == bool(limits.as_dict())
    assert pickle.loads(pickle.dumps(limits)) == copy.deepcopy(limits) == limits


EXAMPLES: list[tuple[dict[str, Any], list[tuple[str, str, str]], list[tuple[str, str, str]]]] = [
    (
        {"memory_max": "256M", "memory_swap_max": "1M"},
        [("memory", "memory.max", "268435456"), ("memory", "memory.swap.max", "1048576")],
        [
            ("memory", "memory.limit_in_bytes", "268435456"),
            ("memory", "memory.memsw.limit_in_bytes", "269484032"),
        ],
    ),
    ({"memory_high": 0}, [("memory", "memory.high", "0")], []),
    ({"memory_low": "1K"}, [("memory", "memory.low", "1024")], []),
    ({"memory_min": 7}, [("memory", "memory.min", "7")], []),
    ({"memory_swap_max": 0}, [("memory", "memory.swap.max", "0")], []),
    ({"memory_oom_group": True}, [("memory", "memory.oom.group", "1")], []),
    (
        {"cpu_max": 0.5},
        [("cpu", "cpu.max", "50000 100000")],
        [("cpu", "cpu.cfs_period_us", "100000"), ("cpu", "cpu.cfs_quota_us", "50000")],
    ),
    (
        {"cpu_max": ("max", 5000)},
        [("cpu", "cpu.max", "max 5000")],
        [("cpu", "cpu.cfs_period_us", "5000"), ("cpu", "cpu.cfs_quota_us", "-1")],
    ),
    ({"cpu_weight": 1}, [("cpu", "cpu.weight", "1")], [("cpu", "cpu.shares", "10")]),
    ({"cpu_weight": 100}, [("cpu", "cpu.weight", "100")], [("cpu", "cpu.shares", "1024")]),
    ({"cpu_weight": 10000}, [("cpu", "cpu.weight", "10000")], [("cpu", "cpu.shares", "102400")]),
    ({"cpu_idle": True}, [("cpu", "cpu.idle", "1")], [("cpu", "cpu.idle", "1")]),
    ({"cpu_idle": False}, [("cpu", "cpu.idle", "0")], [("cpu", "cpu.idle", "0")]),
    ({"pids_max": 64}, [("pids", "pids.max", "64")], [("pids", "pids.max", "64")]),
    (
        {"io_weight": 10000},
        [("io", "io.weight", "default 10000")],
        [("blkio", "blkio.bfq.weight", "1000")],
    ),
    (
        {"io_max": {"8:16": {"wiops": 120, "rbps": "2M"}, "8:0": {"wbps": 1, "riops": 2, "rbps": "max"}}},
        [("io", "io.max", "8:0 wbps=1 riops=2"), ("io", "io.max", "8:16 rbps=2097152 wiops=120")],
        [
            ("blkio", "blkio.throttle.write_bps_device", "8:0 1"),
            ("blkio", "blkio.throttle.read_iops_device", "8:0 2"),
            ("blkio", "blkio.throttle.read_bps_device", "8:16 2097152"),
            ("blkio", "blkio.throttle.write_iops_device", "8:16 120"),
        ],
    ),
    (
        {"cpuset_cpus": "3,0-1", "cpuset_mems": [0]},
        [("cpuset", "cpuset.cpus", "0-1,3"), ("cpuset", "cpuset.mems", "0")],
        [("cpuset", "cpuset.cpus", "0-1,3"), ("cpuset", "cpuset.mems", "0")],
    ),
]


@pytest.mark.parametrize(("options", "v2", "v1"), EXAMPLES)
def test_settings(
    options: dict[str, Any], v2: list[tuple[str, str, str]], v1: list[tuple[str, str, str]]
) -> None:
    for translate, expected in ((settings_v2, v2), (settings_v1, v1)):
        assert [(one.controller, one.file, one.value) for one in translate(Limits(**options))] == expected


def test_the_order_is_the_tables() -> None:
    """memory.memsw.limit_in_bytes below memory.limit_in_bytes is refused: the latter has to be first."""
    limits = Limits(memory_swap_max=0, memory_max=4096)
    assert [one.file for one in settings_v1(limits)] == [
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
    ]
    assert settings_v1(limits.replace(memory_max="1M"))[0].file == "memory.limit_in_bytes"


def test_where_a_file_may_be_missing() -> None:
    (one,) = settings_v2(Limits(io_weight=200))
    assert one == Setting("io_weight", "io", "io.weight", "default 200", "io.bfq.weight", "default 109")
    assert one.instead == Setting("io_weight", "io", "io.bfq.weight", "default 109")
    assert len({one, *settings_v2(Limits(io_weight=200)), one.instead}) == 2


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"memory_high": 1, "memory_low": 2, "memory_min": 3}, ["memory_high", "memory_low", "memory_min"]),
        ({"memory_swap_max": 0}, ["memory_swap_max"]),
        ({"memory_swap_max": 0, "memory_max": "1G"}, []),
        ({"memory_oom_group": True, "cpu_idle": True}, []),
        ({}, []),
    ],
)
def test_without_counterpart(options: dict[str, Any], names: list[str]) -> None:
    assert without_counterpart_v1(Limits(**options)) == names


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("0", 0), ("4096", 4096), ("1K", 1024), ("256M", 256 * M), ("1G", 1024 * M), ("1T", M * M)),
        *(("2P", 2 * 1024**5), ("512 KiB", 512 * 1024), ("3kb", 3072), ("1Mi", M), (" 7 B ", 7), ("7b", 7)),
        *(("1.5G", 1536 * M), ("0.1K", 102), ("1.0000000001M", M), ("0.5P", 2**49)),
        *(("max", None), ("Infinity", None), (5, 5), (True + 4, 5)),
    ],
)
def test_sizes(text: object, size: int | None) -> None:
    assert parse_size("memory_max", text) == size


NO_SIZES = (
    "",
    "M",
    "1X",
    "1MM",
    "1 0M",
    "1.5",
    "1.M.",
    "-1",
    "+1",
    "1_0",
    "٣",
    "1e3",
    "1iB2",
    "0x10",
    ".",
    "K1",
)


@pytest.mark.parametrize("text", [*NO_SIZES, "4097P", -1, 2**62 + 1, "9" * 5000])
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError, match=r"memory_high must be .*'max'.*not ") as caught:
        Limits(memory_high=text)  # type: ignore[arg-type]
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("value", [True, 1.5, b"1M", [1]])
def test_no_types_of_sizes(value: object) -> None:
    with pytest.raises(TypeError, match=r"memory_high must be a number of bytes.*not "):
        Limits(memory_high=value)  # type: ignore[arg-type]


@given(size=st.integers(0, 2**62))
def test_format_size_is_near_and_can_be_taken_back(size: int) -> None:
    text = format_size(size)
    assert parse_size("size", text) == pytest.approx(size, rel=0.06)
    assert len(text) <= 10


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (M - 1, "1 MiB")),
        *((256 * M, "256 MiB"), (1000 * M, "1000 MiB"), (2**62, "4096 PiB")),
    ],
)
def test_format_size(size: int, text: str) -> None:
    assert format_size(size) == text


REFUSED: list[tuple[type[Exception], dict[str, Any], str]] = [
    (TypeError, {"memory": 1}, "unknown limit 'memory'; there are memory_max, memory_high"),
    (ValueError, {"memory_max": 4095}, "memory_max must be 4096 or more"),
    (ValueError, {"memory_low": "max"}, "memory_low must be a size, not 'max'"),
    (ValueError, {"memory_min": "infinity"}, "memory_min must be a size, not 'infinity'"),
    (TypeError, {"memory_oom_group": 1}, "memory_oom_group must be True or False, not 1"),
    (TypeError, {"cpu_idle": "yes"}, "cpu_idle must be True or False, not 'yes'"),
    (ValueError, {"cpu_max": 0.009}, "cpu_max must be from 0.01 to 65536 CPUs, not 0.009"),
    (ValueError, {"cpu_max": float("inf")}, "cpu_max must be from 0.01"),
    (ValueError, {"cpu_max": "nan"}, "cpu_max must be from 0.01"),
    (ValueError, {"cpu_max": "half"}, "cpu_max must be a number of CPUs.* not 'half'"),
    (ValueError, {"cpu_max": (1000,)}, r"cpu_max must be a number of CPUs.* not \(1000,\)"),
    (TypeError, {"cpu_max": True}, "cpu_max must be a number of CPUs.* not True"),
    (TypeError, {"cpu_max": {}}, "cpu_max must be a number of CPUs.* not {}"),
    (ValueError, {"cpu_max": (999, 1000)}, "the microseconds of cpu_max must be from 1000 .* 'max', not 999"),
    (ValueError, {"cpu_max": (2**44, 1000)}, "the microseconds of cpu_max must be .*, not 17592186044416"),
    (ValueError, {"cpu_max": (1000, 999)}, "the period of cpu_max must be from 1000 to 1000000, not 999"),
    (ValueError, {"cpu_max": "1000 1000001"}, "the period of cpu_max must be from 1000 to 1000000"),
    (TypeError, {"cpu_max": (1000, "max")}, "the period of cpu_max must be an integer"),
    (ValueError, {"cpu_weight": 0}, "cpu_weight must be from 1 to 10000, not 0"),
    (ValueError, {"cpu_weight": 10001}, "cpu_weight must be from 1 to 10000, not 10001"),
    (TypeError, {"io_weight": "100"}, "io_weight must be an integer from 1 to 10000, not '100'"),
    (ValueError, {"cpu_weight": 7, "cpu_idle": True}, "cpu_weight=7 has no meaning with cpu_idle=True"),
    (ValueError, {"pids_max": 0}, r"pids_max must be from 1 to 4194304 \(the command itself is one\)"),
    (ValueError, {"pids_max": 2**22 + 1}, "pids_max must be from 1 to 4194304.* not 4194305"),
    (TypeError, {"pids_max": False}, "pids_max must be an integer.* not False"),
    (TypeError, {"io_max": "8:0"}, "io_max must be a mapping such as"),
    (TypeError, {"io_max": {"8:0": 1}}, "io_max must be a mapping such as"),
    (ValueError, {"io_max": {"sda": {}}}, "io_max must be of devices 'MAJOR:MINOR' .* not 'sda'"),
    (ValueError, {"io_max": {"08:0": {}}}, "io_max must be of devices .* not '08:0'"),
    (ValueError, {"io_max": {"4096:0": {}}}, "io_max must be of devices"),
    (ValueError, {"io_max": {"0:1048576": {}}}, "io_max must be of devices"),
    (ValueError, {"io_max": {"1:2:3": {}}}, "io_max must be of devices"),
    (ValueError, {"io_max": {8: {}}}, "io_max must be of devices .* not 8"),
    (ValueError, {"io_max": {"8:0": {"bps": 1}}}, r"io_max\['8:0'\] must be of rbps, .*, not 'bps'"),
    (ValueError, {"io_max": {"8:0": {"rbps": 0}}}, r"io_max\['8:0'\]\['rbps'\] must be 1 or more"),
    (ValueError, {"io_max": {"8:0": {"wiops": 2**32 - 1}}}, r"\['wiops'\] must be from 1 to 4294967294"),
    (ValueError, {"cpuset_cpus": ""}, "cpuset_cpus must be a list such as '0-3,5'"),
    (ValueError, {"cpuset_cpus": []}, "cpuset_cpus must be a list such as .* not empty"),
    (ValueError, {"cpuset_cpus": "5-3"}, "cpuset_cpus must be a list such as .* not '5-3'"),
    (ValueError, {"cpuset_cpus": "0-65537"}, "cpuset_cpus must be a list .* within 0-65536"),
    (ValueError, {"cpuset_cpus": "0,,1"}, "cpuset_cpus must be a list"),
    (ValueError, {"cpuset_mems": "1-2-3"}, "cpuset_mems must be a list"),
    (ValueError, {"cpuset_mems": "0\n1"}, "cpuset_mems must be a list"),
    (ValueError, {"cpuset_mems": [-1]}, "a number of cpuset_mems must be from 0 to 65536, not -1"),
    (TypeError, {"cpuset_mems": ["0"]}, "a number of cpuset_mems must be an integer"),
    (TypeError, {"cpuset_mems": 0}, "cpuset_mems must be a list such as .* not 0"),
    (TypeError, {"cpuset_mems": b"0"}, "cpuset_mems must be a list such as .* not b'0'"),
]


@pytest.mark.parametrize(("error", "options", "message"), REFUSED)
def test_refused(error: type[Exception], options: dict[str, Any], message: str) -> None:
    with pytest.raises(error, match=message):
        Limits(**options)


@pytest.mark.parametrize(
    ("given_as", "kept"),
    [
        *((2, (200_000, 100_000)), (0.01, (1000, 100_000)), ("0.5", (50_000, 100_000))),
        *(([5000, 7000], (5000, 7000)), ((None, 7000), (None, 7000)), (("max", 7000), (None, 7000))),
        *(("5000 7000", (5000, 7000)), ("max 7000", (None, 7000)), ("max", None), (None, None)),
        (65536, (6_553_600_000, 100_000)),
    ],
)
def test_cpu_max(given_as: Any, kept: tuple[int | None, int] | None) -> None:
    assert Limits(cpu_max=given_as).cpu_max == kept


@pytest.mark.parametrize(
    ("given_as", "kept"),
    [
        *(("0", "0"), ("0-3,5", "0-3,5"), ("5,3-4,0", "0,3-5"), ("0-9,2-3,11", "0-9,11")),
        *(("0,1", "0-1"), ([3, 1, 2, 2], "1-3"), (range(4), "0-3"), ({65536}, "65536"), (" 1\n", "1")),
    ],
)
def test_lists(given_as: Any, kept: str) -> None:
    assert Limits(cpuset_cpus=given_as).cpuset_cpus == kept


@given(numbers=LISTS)
def test_a_list_names_all_and_nothing_else(numbers: list[int]) -> None:
    text = Limits(cpuset_cpus=numbers).cpuset_cpus
    assert text is not None
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    assert found == sorted(set(numbers))
    assert Limits(cpuset_cpus=text).cpuset_cpus == text


def test_no_limit_is_not_set() -> None:
    limits = Limits(
        memory_max="max", memory_high="infinity", pids_max="max", cpu_max="max", io_max={}, cpu_idle=None
    )
    assert limits == Limits()
    assert not limits
    assert Limits(io_max={"8:0": {"rbps": "max", "riops": None}}) == Limits()  # type: ignore[dict-item]
    assert Limits(memory_high=0)
    assert repr(limits) == "Limits()"


def test_immutable_and_replaced() -> None:
    limits = Limits(memory_max="1M", cpu_weight=5)
    with pytest.raises(AttributeError, match="can't be changed"):
        limits.memory_max = 5
    assert limits.replace(cpu_weight=None, pids_max=3) == Limits(memory_max=M, pids_max=3)
    assert limits == Limits(memory_max=M, cpu_weight=5)
    with pytest.raises(ValueError, match="cpu_weight=5 has no meaning"):
        limits.replace(cpu_idle=True)
    with pytest.raises(TypeError, match="unknown limit"):
        limits.replace(other=1)  # type: ignore[call-arg]


def test_a_new_group_has_no_limits() -> None:
    for read in (from_files_v1, from_files_v2):
        assert read(files_of([])) == Limits()
        assert read({}) == Limits()


def test_a_choice_to_kill_one_process_alone_comes_back() -> None:
    files = {"memory.max": "4096\n", "memory.oom.group": "0\n"}
    assert from_files_v2(files) == Limits(memory_max=4096, memory_oom_group=False)
    assert from_files_v2({"memory.oom.group": "0\n"}) == Limits()
    assert from_files_v2({"memory.max": "4096\n"}) == Limits(memory_max=4096)


def test_what_somebody_else_wrote_is_shown() -> None:
    found = from_files_v2({"pids.max": "0\n", "memory.max": "0\n"})
    assert (found.pids_max, found.memory_max) == (0, 0)
    assert found.replace(memory_oom_group=True).pids_max == 0
    assert [one.value for one in settings_v2(found)] == ["0", "0"]


def test_swap_of_v1_is_what_is_above_memory() -> None:
    both = {"memory.limit_in_bytes": "8192\n", "memory.memsw.limit_in_bytes": "8192\n"}
    assert from_files_v1(both) == Limits(memory_max=8192, memory_swap_max=0)
    unlimited = {**both, "memory.limit_in_bytes": "9223372036854771712\n"}
    assert from_files_v1(unlimited) == Limits()
    assert from_files_v1({"cpu.shares": "2\n"}) == Limits(cpu_weight=1)
    assert from_files_v1({"cpu.shares": "262144\n"}) == Limits(cpu_weight=10000)


MALFORMED: list[tuple[Callable[[dict[str, str]], Limits], str, str]] = [
    *((from_files_v2, "memory.max", text) for text in ("", "x", "4 5", "-5", "\u0663", "\udcff")),
    *((from_files_v2, "cpu.max", text) for text in ("", "max", "max max", "1 2 3", "x 1")),
    *((from_files_v2, "io.max", text) for text in ("rbps=1", "sda rbps=1", "8:0 rbps=x")),
    *((from_files_v2, "io.weight", text) for text in ("", "default", "default x")),
    *((from_files_v2, "cpuset.cpus", text) for text in ("x", "3-1")),
    *((from_files_v1, "blkio.throttle.read_bps_device", text) for text in ("8:0", "x 1", "8:0 x")),
    (from_files_v1, "cpu.cfs_period_us", "x"),
]


@pytest.mark.parametrize(("read", "file", "text"), MALFORMED)
def test_what_the_kernel_does_not_write(
    read: Callable[[dict[str, str]], Limits], file: str, text: str
) -> None:
    with pytest.raises(ProtocolError, match=file.replace(".", r"\.")):
        read({file: text})


def test_weights_of_devices_are_passed_over() -> None:
    assert from_files_v2({"io.weight": "default 50\n8:16 200\n"}) == Limits(io_weight=50)
    assert from_files_v2({"io.bfq.weight": "50\n"}) == Limits(io_weight=50)


def test_files_and_controllers() -> None:
    assert ("memory", "memory.max") in limit_files(2)
    assert ("io", "io.bfq.weight") in limit_files(2)
    assert ("blkio", "blkio.throttle.read_bps_device") in limit_files(1)
    assert controller_of("io_max", 1) == "blkio"
    assert controller_of("io_max", 2) == "io"
    assert controller_of("cpu_weight", 1) == "cpu"
