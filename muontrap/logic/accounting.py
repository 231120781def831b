"""What a cgroup's files say of its use: parsers, the figures of v2 and v1 alike, and what an OOM kill proves.

Formats and meanings: <kernel>/Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/*.rst.
"""

from __future__ import annotations

from muontrap.errors import ProtocolError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Literal, TypeVar

    Nested = Mapping[str, Mapping[str, float]]
    T = TypeVar("T")

_PRESSURES = ("cpu", "io", "irq", "memory")
# What to read, once the group is empty and before it is removed.  Not each kernel has each file:
# memory.peak is of 5.19, irq.pressure of 6.1, memory.swap.peak of 6.5.
FILES_V2: tuple[str, ...] = (
    *("memory.current", "memory.peak", "memory.swap.peak", "memory.max"),
    *("memory.events", "memory.events.local"),
    *("cpu.stat", "pids.current", "pids.peak", "pids.events", "io.stat"),
    *(f"{controller}.pressure" for controller in _PRESSURES),
)
FILES_V1: dict[str, tuple[str, ...]] = {
    "memory": (
        *("memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.limit_in_bytes"),
        *("memory.failcnt", "memory.memsw.failcnt", "memory.oom_control"),
    ),
    "cpu": ("cpu.stat",),
    "cpuacct": ("cpuacct.usage", "cpuacct.stat"),
    "pids": ("pids.current", "pids.peak", "pids.events"),
    "blkio": ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"),
}

# PAGE_COUNTER_MAX, v1's "no limit", is LONG_MAX rounded down to pages, of 64 KiB at most.
_UNLIMITED = 2**63 - 2**16
# 32-bit kernels have another, 8 TiB: a limit as good as none.
_V1_DIRECTIONS = {"Read": "r", "Write": "w", "Discard": "d"}  # Sync and Async count the same again


class CgroupStatistics:
    """What a cgroup used: all of the command, also what had died or was never waited for.

    An attribute is None where the kernel has no such figure, or the controller is not there.

    Attributes:
        memory_current, memory_peak: bytes, page cache included.
        memory_swap_peak: bytes of swap (v2 only).
        memory_limit: bytes, None also for no limit.
        oom_kills: processes of the group, and on v2 of groups below, killed by any OOM killer.
        oom_events: how often memory was to be refused for the group's own limit (v2 only).
        memory_events: counters of `memory.events`; of v1, "max" (`memory.failcnt` and
            `memory.memsw.failcnt`: the limit was met, which reclaiming may have cured) and "oom_kill".
        memory_events_local: of v2's `memory.events.local`, without groups below.
        cpu_usage, cpu_user, cpu_system: seconds.
        cpu_periods, cpu_throttled_periods: periods of `cpu_max` that ran, and that were throttled.
        cpu_throttled: seconds, summed over CPUs.
        pids_current, pids_peak: processes and threads.
        pids_max_events: how often a fork was refused for `pids_max`.
        io_read_bytes, io_write_bytes: summed over devices; a device-mapper device counts again what
            the disk below it counts.
        io: device "MAJ:MIN" -> rbytes, wbytes, rios, wios, dbytes, dios.
        pressure: controller -> "some" or "full" -> avg10, avg60, avg300 (percent of the time),
            total (microseconds).
    """

    memory_current: int | None
    memory_peak: int | None
    memory_swap_peak: int | None
    memory_limit: int | None
    oom_kills: int | None
    oom_events: int | None
    memory_events: Mapping[str, int] | None
    memory_events_local: Mapping[str, int] | None
    cpu_usage: float | None
    cpu_user: float | None
    cpu_system: float | None
    cpu_periods: int | None
    cpu_throttled_periods: int | None
    cpu_throttled: float | None
    pids_current: int | None
    pids_peak: int | None
    pids_max_events: int | None
    io_read_bytes: int | None
    io_write_bytes: int | None
    io: Nested | None
    pressure: Mapping[str, Nested] | None

    def __init__(self, **figures: object) -> None:
        unknown = figures.keys() - _FIGURES
        if unknown:
            raise TypeError(f"unknown figure {min(unknown)!r}")
        self.__dict__.update(dict.fromkeys(_FIGURES), **figures)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} can't be changed")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CgroupStatistics) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        known = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if value is not None)
        return f"{type(self).__name__}({known})"


_FIGURES = tuple(CgroupStatistics.__annotations__)


def number(text: bytes, name: str) -> int | None:
    """Return the number that a file is, None for "max". `name` is for the error, here and below."""
    word = text.strip()
    if word == b"max":
        return None
    return _count(word, name)


def number_v1(text: bytes, name: str) -> int | None:
    """Return the number that a v1 file is, None also for -1 and for the number that means no limit."""
    value = None if text.strip() == b"-1" else number(text, name)
    return None if value is None or value >= _UNLIMITED else value


def flat_keyed(text: bytes, name: str = "flat keyed file") -> dict[str, int]:
    """Return lines of a key and a number."""
    figures = {}
    for line in text.splitlines():
        key, _, value = line.strip().rpartition(b" ")
        figures[_key(key, name)] = _count(value, name)
    return figures


def nested_keyed(text: bytes, name: str = "nested keyed file") -> dict[str, dict[str, float]]:
    """Return lines of a key and pairs of key=number; a number is an int, a float, or inf for "max".

    Some kernels leave out the end of line after a device without figures (io.stat).
    """
    figures: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        inner = None
        for word in line.split():
            key, equals, value = word.partition(b"=")
            if not equals:
                inner = figures.setdefault(_key(key, name), {})
            elif inner is None:
                raise ProtocolError(f"{name}: a line without key: {line[:200]!r}")
            else:
                inner[_key(key, name)] = _decimal(value, name)
    return figures


def statistics_v2(files: Mapping[str, bytes]) -> CgroupStatistics:
    """Return the figures of a v2 group, from name -> content of those of `FILES_V2` that there are."""
    events = _parsed(files, "memory.events", flat_keyed)
    local = _parsed(files, "memory.events.local", flat_keyed)
    cpu = _parsed(files, "cpu.stat", flat_keyed) or {}
    io = _parsed(files, "io.stat", nested_keyed)
    pressures = {
        controller: nested_keyed(files[name], name)
        for controller in _PRESSURES
        if (name := f"{controller}.pressure") in files
    }
    return CgroupStatistics(
        memory_current=_parsed(files, "memory.current", number),
        memory_peak=_parsed(files, "memory.peak", number),
        memory_swap_peak=_parsed(files, "memory.swap.peak", number),
        memory_limit=_parsed(files, "memory.max", number),
        oom_kills=(events or local or {}).get("oom_kill"),
        oom_events=(local or events or {}).get("oom"),
        memory_events=events,
        memory_events_local=local,
        cpu_usage=_seconds(cpu.get("usage_usec"), 10**6),
        cpu_user=_seconds(cpu.get("user_usec"), 10**6),
        cpu_system=_seconds(cpu.get("system_usec"), 10**6),
        cpu_periods=cpu.get("nr_periods"),
        cpu_throttled_periods=cpu.get("nr_throttled"),
        cpu_throttled=_seconds(cpu.get("throttled_usec"), 10**6),
        **_pids(files),
        **_io(io),
        pressure=pressures or None,
    )


def statistics_v1(files: Mapping[str, bytes], hz: int) -> CgroupStatistics:
    """Return the same of v1 groups, from the files of all controllers together (`FILES_V1`).

    Args:
        files: name -> content.
        hz: ticks a second of `cpuacct.stat`, `os.sysconf("SC_CLK_TCK")`.
    """
    ticks = _parsed(files, "cpuacct.stat", flat_keyed) or {}
    cpu = _parsed(files, "cpu.stat", flat_keyed) or {}
    kills = (_parsed(files, "memory.oom_control", flat_keyed) or {}).get("oom_kill")
    met = [_parsed(files, name, number) for name in ("memory.failcnt", "memory.memsw.failcnt")]
    events = {} if met == [None, None] else {"max": sum(count or 0 for count in met)}
    events.update({} if kills is None else {"oom_kill": kills})
    return CgroupStatistics(
        memory_current=_parsed(files, "memory.usage_in_bytes", number),
        memory_peak=_parsed(files, "memory.max_usage_in_bytes", number),
        memory_limit=_parsed(files, "memory.limit_in_bytes", number_v1),
        oom_kills=kills,
        memory_events=events or None,
        cpu_usage=_seconds(_parsed(files, "cpuacct.usage", number), 10**9),
        cpu_user=_seconds(ticks.get("user"), hz),
        cpu_system=_seconds(ticks.get("system"), hz),
        cpu_periods=cpu.get("nr_periods"),
        cpu_throttled_periods=cpu.get("nr_throttled"),
        cpu_throttled=_seconds(cpu.get("throttled_time"), 10**9),
        **_pids(files),
        **_io(_io_v1(files)),
    )


def merge(first: CgroupStatistics, second: CgroupStatistics) -> CgroupStatistics:
    """Return the figures of a hybrid machine: those of the first, else those of the second."""
    figures = ((name, getattr(first, name), getattr(second, name)) for name in _FIGURES)
    return CgroupStatistics(**{name: two if one is None else one for name, one, two in figures})


def out_of_memory(
    after: CgroupStatistics, before: CgroupStatistics | None = None
) -> Literal["", "limit", "outside"]:
    """Tell whether an OOM killer took processes of the group, and for which limit.

    The evidence is what counters gained since `before`, or in a new group since it was made.

    Returns:
        "limit": for the group's own limit.  "outside": for a limit above the group, or because the
        machine's memory was at its end.  "": neither; on v2 also when all that was killed had met the
        limit of a group below, which the command made itself.
    """

    def gained(events: str, name: str) -> int:
        start = (getattr(before, events) if before else None) or {}
        end = getattr(after, events) or {}
        return int(end.get(name, 0) - start.get(name, 0))

    if gained("memory_events", "oom_kill") <= 0 and gained("memory_events_local", "oom_kill") <= 0:
        return ""
    if after.memory_events_local is None:
        # v1 has no counter of "oom"; and without the local file, v2's is the next best.
        met = gained("memory_events", "oom") or gained("memory_events", "max")
        return "limit" if met or (_is_at_limit(after) and not _is_at_limit(before)) else "outside"
    if gained("memory_events_local", "oom"):
        return "limit"
    below = gained("memory_events", "oom") and not gained("memory_events_local", "oom_kill")
    return "" if below else "outside"


def _is_at_limit(figures: CgroupStatistics | None) -> bool:
    """Tell whether memory was at its limit, of which v1 may not have counted anything (F44)."""
    peak, limit = (figures.memory_peak, figures.memory_limit) if figures else (None, None)
    return peak is not None and limit is not None and peak >= limit


def _parsed(files: Mapping[str, bytes], name: str, parse: Callable[[bytes, str], T]) -> T | None:
    return parse(files[name], name) if name in files else None


def _pids(files: Mapping[str, bytes]) -> dict[str, object]:
    """Both versions have the same files."""
    return {
        "pids_current": _parsed(files, "pids.current", number),
        "pids_peak": _parsed(files, "pids.peak", number),
        "pids_max_events": (_parsed(files, "pids.events", flat_keyed) or {}).get("max"),
    }


def _io(io: Nested | None) -> dict[str, object]:
    if io is None:
        return {}
    return {
        "io": io,
        "io_read_bytes": sum(device.get("rbytes", 0) for device in io.values()),
        "io_write_bytes": sum(device.get("wbytes", 0) for device in io.values()),
    }


def _io_v1(files: Mapping[str, bytes]) -> Nested | None:
    """Lines of device, direction and number, then a total of all."""
    figures: dict[str, dict[str, float]] = {}
    known = False
    for name, unit in zip(FILES_V1["blkio"], ("bytes", "ios"), strict=True):
        counts = _parsed(files, name, flat_keyed)
        known = known or counts is not None
        for key, count in (counts or {}).items():
            device, _, direction = key.partition(" ")
            if direction in _V1_DIRECTIONS:
                figures.setdefault(device, {})[_V1_DIRECTIONS[direction] + unit] = count
    return figures if known else None


def _seconds(value: int | None, per_second: int) -> float | None:
    return None if value is None else value / per_second


def _key(word: bytes, name: str) -> str:
    if not word or not word.isascii():
        raise ProtocolError(f"{name}: no key: {word[:200]!r}")
    return word.decode("ascii")


def _count(word: bytes, name: str) -> int:
    # 20 digits hold 64 bits; far longer ones are refused by int() itself, on some versions.
    if not word.isdigit() or len(word) > 20:
        raise ProtocolError(f"{name}: not a number: {word[:200]!r}")
    return int(word)


def _decimal(word: bytes, name: str) -> float:
    if word == b"max":
        return float("inf")
    whole, point, fraction = word.partition(b".")
    count = _count(whole + fraction, name)
    return float(word) if point else count
