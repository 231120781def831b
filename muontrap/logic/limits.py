"""What a command may use: one vocabulary, translated into files of cgroup v2 and of v1, and back.

All is in one table at the end, `_TABLE`: option -> controller, what it takes, how v2 spells it, and v1.
Meanings and bounds: <kernel>/Documentation/admin-guide/cgroup-v2.rst ("Controllers"), cgroup-v1/memory.rst,
cgroup-v1/cpusets.rst, cgroup-v1/blkio-controller.rst, cgroup-v1/pids.rst, scheduler/sched-bwc.rst and
block/bfq-iosched.rst.

An option is None where it is not set.  "max" where a size or a number is meant is that, too: a new group
has no limit.  Read back from files, what a new group has by itself is not set.
"""

from __future__ import annotations

from collections.abc import Mapping

from muontrap.errors import ProtocolError
from muontrap.logic.accounting import nested_keyed, number, number_v1

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, Literal, TypeAlias, TypedDict

    from typing_extensions import Unpack

    Size: TypeAlias = int | str | None
    CpuMax: TypeAlias = float | str | tuple[int | Literal["max"] | None, int] | None
    IoMax: TypeAlias = Mapping[str, Mapping[str, int | str]] | None
    Numbers: TypeAlias = str | Iterable[int] | None

    class LimitOptions(TypedDict, total=False):
        """Keyword options of `Limits`."""

        memory_max: Size
        memory_high: Size
        memory_low: Size
        memory_min: Size
        memory_swap_max: Size
        memory_oom_group: bool | None
        cpu_max: CpuMax
        cpu_weight: int | None
        cpu_idle: bool | None
        pids_max: int | Literal["max"] | None
        io_weight: int | None
        io_max: IoMax
        cpuset_cpus: Numbers
        cpuset_mems: Numbers

    Checker: TypeAlias = Callable[[str, Any], Any]
    Files: TypeAlias = Mapping[str, str]
    Rates: TypeAlias = dict[str, dict[str, int]]
    # (file, text), and where the machine may lack that file, (file, text, other file, its text)
    Writes: TypeAlias = list[tuple[str, ...]]

CPU_PERIOD = 100_000  # microseconds; the kernel's default

_LARGEST = 4 * 1024**6  # far above all memory, far below the numbers that mean "no limit" to v1
_LETTERS = "KMGTP"
_SUFFIXES = {"": 1, "b": 1} | {
    letter.lower() + tail: 1024**power
    for power, letter in enumerate(_LETTERS, 1)
    for tail in ("", "b", "i", "ib")
}
_MAX = ("max", "infinity")
_SIZE = "a number of bytes, or a text such as '256M' or 'max'"
_CPU_MAX = "a number of CPUs such as 0.5, or (microseconds or 'max', microseconds of the period)"


class Limits:
    """Checked and immutable. `docs/reference/options.md` explains each option.

    Attributes:
        memory_max, memory_high, memory_swap_max: bytes; given as a number or a text such as "256M".
        memory_low, memory_min: bytes that are protected from reclaim.
        memory_oom_group: whether the OOM killer takes the whole group.
        cpu_max: (microseconds of CPU or None for any, in each period of so many microseconds); given also
            as a number of CPUs, 0.5 or 2, or as the kernel's own text.
        cpu_weight, io_weight: a share among siblings, from 1 to 10000, of which 100 is usual.
        cpu_idle: whether it runs only where nothing else would.
        pids_max: how many processes and threads there may be at once.
        io_max: device "MAJ:MIN" -> rbps, wbps (bytes a second), riops, wiops (operations a second).
        cpuset_cpus, cpuset_mems: CPUs and memory nodes, "0-3,5"; given also as numbers.
    """

    memory_max: int | None
    memory_high: int | None
    memory_low: int | None
    memory_min: int | None
    memory_swap_max: int | None
    memory_oom_group: bool | None
    cpu_max: tuple[int | None, int] | None
    cpu_weight: int | None
    cpu_idle: bool | None
    pids_max: int | None
    io_weight: int | None
    io_max: Mapping[str, Mapping[str, int]] | None
    cpuset_cpus: str | None
    cpuset_mems: str | None

    def __init__(self, **options: Unpack[LimitOptions]) -> None:
        given: dict[str, Any] = dict(options)
        unknown = sorted(given.keys() - _TABLE.keys())
        if unknown:
            raise TypeError(f"unknown limit {unknown[0]!r}; there are {', '.join(_TABLE)}")
        checked = {
            name: None if value is None else _TABLE[name].check(name, value) for name, value in given.items()
        }
        self.__dict__.update(dict.fromkeys(_TABLE), **checked)
        self._check_together()

    def _check_together(self) -> None:
        if self.cpu_idle and self.cpu_weight is not None:
            raise ValueError(
                f"cpu_weight={self.cpu_weight} has no meaning with cpu_idle=True: leave one of them out"
            )

    def as_dict(self) -> dict[str, Any]:
        """Return the options that are set."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def replace(self, **options: Unpack[LimitOptions]) -> Limits:
        """Return the same limits but for these options."""
        changes = vars(Limits(**options))
        limits = _unchecked({**vars(self), **{name: changes[name] for name in options}})
        limits._check_together()
        return limits

    def beside(self, others: Limits) -> Limits:
        """Return these, and where they are not set, the others'."""
        return _unchecked({**vars(others), **self.as_dict()})

    def __bool__(self) -> bool:
        return bool(self.as_dict())

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} can't be changed: make another for {name}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Limits) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.as_dict().items())
        return f"{type(self).__name__}({options})"


class Setting:
    """A text to write into a file of a group.

    Attributes:
        option: what asks for it, such as "memory_max".
        controller, file, value: such as "memory", "memory.max", "268435456".
        instead: what to write where the machine has not this file; mostly None.
    """

    __slots__ = ("controller", "file", "instead", "option", "value")

    def __init__(self, option: str, controller: str, file: str, value: str, *instead: str) -> None:
        self.option: str = option
        self.controller: str = controller
        self.file: str = file
        self.value: str = value
        self.instead: Setting | None = Setting(option, controller, *instead) if instead else None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Setting) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        instead = f", {self.instead.file!r}, {self.instead.value!r}" if self.instead else ""
        return f"Setting({self.option!r}, {self.controller!r}, {self.file!r}, {self.value!r}{instead})"


def parse_size(name: str, value: object) -> int | None:
    """Return a number of bytes, None for "max" (or "infinity"): no limit.

    Args:
        name: of the option, for the error.
        value: a number of bytes, or a text: "268435456", "256M", "1.5G", "512 KiB".  K, M, G, T and P
            are powers of 1024, with B, i or iB after them or without, in either case.
    """
    if isinstance(value, str):
        text = value.strip().lower()
        if text in _MAX:
            return None
        try:
            size = _size_of(text)
        except (KeyError, ValueError):
            raise ValueError(f"{name} must be {_SIZE}, not {value!r}") from None
    elif hasattr(value, "__index__") and not isinstance(value, bool):
        size = value.__index__()
    else:
        raise TypeError(f"{name} must be {_SIZE}, not {value!r}")
    if not 0 <= size <= _LARGEST:
        raise ValueError(f"{name} must be from 0 to {format_size(_LARGEST)} or 'max', not {value!r}")
    return size


def format_size(size: int) -> str:
    """Return a size for people: "256 MiB", "1.5 GiB", "12 B"."""
    value, unit = float(size), "B"
    for letter in _LETTERS:
        if round(value, 1) < 1024:
            break
        value, unit = value / 1024, f"{letter}iB"
    return f"{value:.1f}".removesuffix(".0") + f" {unit}"


def settings_v2(limits: Limits) -> list[Setting]:
    """Return what to write into a v2 group, in order."""
    return _settings(limits, 2)


def settings_v1(limits: Limits) -> list[Setting]:
    """Return what to write into v1 groups, in order; nothing for `without_counterpart_v1`."""
    return _settings(limits, 1)


def without_counterpart_v1(limits: Limits) -> list[str]:
    """Return the options, of those that are set, that v1 can't enforce.

    memory_high is not v1's soft limit, which works only while the whole machine is short of memory;
    memory_low and memory_min are protections, which v1 has not.  v1 limits memory and swap together
    (memory.memsw.limit_in_bytes), so memory_swap_max needs memory_max.
    memory_oom_group is not among them: v1 has no file for it, but the guard can do it.
    """
    done = {setting.option for setting in settings_v1(limits)} | {"memory_oom_group"}
    return [name for name in limits.as_dict() if name not in done]


def controller_of(option: str, version: int) -> str:
    """Return the name of the controller that an option needs: v2's "io" is "blkio" in v1."""
    controller = _TABLE[option].controller
    return "blkio" if version == 1 and controller == "io" else controller


def limit_files(version: int) -> list[tuple[str, str]]:
    """Return (controller, file) of all that `from_files_v2` or `from_files_v1` looks at."""
    return [
        (controller_of(name, version), file)
        for name, option in _TABLE.items()
        for file in option.forms[version].files
    ]


def from_files_v2(files: Files) -> Limits:
    """Return what a v2 group's files say: name -> content, of those that there are.

    `ProtocolError` for what the kernel does not write.  A value that the kernel took from somebody
    else is not checked as an option is (0 in pids.max).
    """
    return _from_files(files, 2)


def from_files_v1(files: Files) -> Limits:
    """Return the same of v1 groups, from the files of all controllers together.

    What comes back is what the kernel made of it: memory in whole pages, io_weight above 100 to within
    11 (another scale).
    """
    return _from_files(files, 1)


def _settings(limits: Limits, version: int) -> list[Setting]:
    return [
        Setting(name, controller_of(name, version), *texts)
        for name, value in limits.as_dict().items()
        for texts in _TABLE[name].forms[version].write(value, limits)
    ]


def _from_files(files: Files, version: int) -> Limits:
    values = {}
    for name, option in _TABLE.items():
        form = option.forms[version]
        try:
            values[name] = form.read(files)
        except ValueError as error:
            raise ProtocolError(f"{' or '.join(form.files)}: {error}") from error
    return _unchecked(values)


def _unchecked(values: Mapping[str, Any]) -> Limits:
    limits = object.__new__(Limits)
    limits.__dict__.update(values)
    return limits


# Texts to values; ValueError for any other.


def _natural(text: str) -> int:
    """Digits and nothing else, where int() also takes signs, spaces, underscores and other scripts."""
    if not (text.isascii() and text.isdigit() and len(text) <= 40):
        raise ValueError(f"not a number: {text[:200]!r}")
    return int(text)


def _size_of(text: str) -> int:
    digits = text.rstrip("bikmgtp")
    factor = _SUFFIXES[text[len(digits) :]]
    whole, point, fraction = digits.rstrip().partition(".")
    if point and factor == 1:
        raise ValueError("a part of a byte")
    size: int = _natural(whole + fraction) * factor // 10 ** len(fraction)
    return size


def _cpu_max_of(text: str) -> tuple[int | None, int] | float | None:
    quota, _, period = text.strip().partition(" ")
    if period:
        return None if quota in _MAX else _natural(quota), _natural(period)
    return None if quota in _MAX else float(quota)


def _range(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    low = _natural(first)
    high = _natural(last) if dash else low
    if not low <= high <= _LAST:
        raise ValueError(f"not a range within 0-{_LAST}: {text[:200]!r}")
    return low, high


def _device(text: object) -> tuple[int, int]:
    """12 bits of major and 20 of minor number (<kernel>/include/linux/kdev_t.h), spelled in one way."""
    major, _, minor = text.partition(":") if isinstance(text, str) else ("", "", "")
    pair = _natural(major), _natural(minor)
    if pair[0] >> 12 or pair[1] >> 20 or text != f"{pair[0]}:{pair[1]}":
        raise ValueError(f"not a device: {text!r}")
    return pair


# The table's parts: what an option takes.  A checker gets the option's name and a value that is not None.


def _size(least: int = 0, note: str = "") -> Checker:
    def check(name: str, value: Any) -> int | None:
        size = parse_size(name, value)
        if size is not None and size < least:
            raise ValueError(f"{name} must be {least} or more{note}, not {value!r}")
        return size

    return check


def _protection(name: str, value: Any) -> int:
    size = parse_size(name, value)
    if size is None:
        raise ValueError(f"{name} must be a size, not {value!r}: to protect everything starves all others")
    return size


def _integer(low: int, high: int, note: str = "") -> Checker:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be an integer from {low} to {high}{note}, not {value!r}")
        result: int = value.__index__()
        if not low <= result <= high:
            raise ValueError(f"{name} must be from {low} to {high}{note}, not {value!r}")
        return result

    return check


def _or_max(check: Checker) -> Checker:
    return lambda name, value: None if isinstance(value, str) and value in _MAX else check(name, value)


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def _cpu_max(name: str, value: Any) -> tuple[int | None, int] | None:
    given = value
    if isinstance(value, str):
        try:
            given = _cpu_max_of(value)
        except ValueError:
            raise ValueError(f"{name} must be {_CPU_MAX}, not {value!r}") from None
        if given is None:
            return None
    if isinstance(given, (tuple, list)):
        if len(given) != 2:
            raise ValueError(f"{name} must be {_CPU_MAX}, not {value!r}")
        quota = None if given[0] is None else _QUOTA(f"the microseconds of {name}", given[0])
        return quota, _PERIOD(f"the period of {name}", given[1])
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        raise TypeError(f"{name} must be {_CPU_MAX}, not {value!r}")
    if not 0.01 <= given <= _LAST:
        raise ValueError(f"{name} must be from 0.01 to {_LAST} CPUs, not {value!r}")
    return round(given * CPU_PERIOD), CPU_PERIOD


def _io_max(name: str, value: Any) -> Rates | None:
    if not isinstance(value, Mapping) or not all(isinstance(rates, Mapping) for rates in value.values()):
        raise TypeError(f"{name} must be a mapping such as {{'8:0': {{'rbps': '1M'}}}}, not {value!r}")
    checked = {}
    for device, rates in value.items():
        try:
            _device(device)
        except ValueError:
            raise ValueError(
                f"{name} must be of devices 'MAJOR:MINOR' such as '8:0', not {device!r}"
            ) from None
        for key, rate in rates.items():
            if key not in _RATES:
                raise ValueError(f"{name}[{device!r}] must be of {', '.join(_RATES)}, not {key!r}")
            if rate is not None:
                checked[device, key] = _RATES[key](f"{name}[{device!r}][{key!r}]", rate)
    return _by_device(checked)


def _by_device(rates: Mapping[tuple[str, str], int | None]) -> Rates | None:
    """Return device -> key -> rate in the one order, without what has no limit."""
    devices: Rates = {}
    for device in sorted({device for device, _ in rates}, key=_device):
        known = {key: rate for key in _RATES if (rate := rates.get((device, key))) is not None}
        devices.update({device: known} if known else {})
    return devices or None


def _numbers(name: str, value: Any) -> str:
    """A list as the kernel writes it: sorted, neighbours as a range (cpuset(7), "List format")."""
    wanted = f"{name} must be a list such as '0-3,5' or [0, 1, 2, 3, 5]"
    if isinstance(value, str):
        try:
            ranges = [_range(part) for part in value.strip().split(",")]
        except ValueError as error:
            raise ValueError(f"{wanted}, not {value!r}: {error}") from None
    elif hasattr(value, "__iter__") and not isinstance(value, (bytes, Mapping)):
        ranges = [(_NUMBER(f"a number of {name}", item),) * 2 for item in value]
    else:
        raise TypeError(f"{wanted}, not {value!r}")
    if not ranges:
        raise ValueError(f"{wanted}, not empty")
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in merged)


# The table's parts: how a version spells an option.


class _Form:
    """How one version spells one option.

    Attributes:
        files: what it is spelled in.
        write: (value, all limits) -> what to write, in order.
        read: files -> value; None for what a new group has by itself, and where the file is missing.
    """

    __slots__ = ("files", "read", "write")

    def __init__(
        self, *files: str, write: Callable[[Any, Limits], Writes], read: Callable[[Files], Any]
    ) -> None:
        self.files: tuple[str, ...] = files
        self.write: Callable[[Any, Limits], Writes] = write
        self.read: Callable[[Files], Any] = read


def _bytes(text: str) -> bytes:
    return text.encode("ascii", "replace")


def _count(files: Files, file: str) -> int | None:
    """Return the number in a file, None for no limit and for no file."""
    return number_v1(_bytes(files[file]), file) if file in files else None


def _single(
    file: str,
    default: int | None = None,
    there: Callable[[int], int] = lambda value: value,
    back: Callable[[int], int] = lambda value: value,
) -> _Form:
    """A file with one number, on a scale of its own or not."""

    def read(files: Files) -> int | None:
        value = _count(files, file)
        return None if value is None or back(value) == default else back(value)

    return _Form(file, write=lambda value, _: [(file, str(there(value)))], read=read)


def _flag(file: str) -> _Form:
    return _Form(
        file,
        write=lambda value, _: [(file, str(int(value)))],
        read=lambda files: bool(_count(files, file)) or None,
    )


def _read_oom_group(files: Files) -> bool | None:
    # Where there is a limit, the host's own default is the whole group: then the kernel's is a choice.
    if _count(files, "memory.max") is None:
        return bool(_count(files, "memory.oom.group")) or None
    return bool(_count(files, "memory.oom.group")) if "memory.oom.group" in files else None


def _write_swap_v1(value: int, limits: Limits) -> Writes:
    # The kernel refuses it below memory.limit_in_bytes, which comes first: so the table's order is.
    return [] if limits.memory_max is None else [(_MEMSW_V1, str(limits.memory_max + value))]


def _read_swap_v1(files: Files) -> int | None:
    both, memory = _count(files, _MEMSW_V1), _count(files, _MEMORY_V1)
    return None if both is None or memory is None else max(0, both - memory)


def _write_cpu_max_v2(value: tuple[int | None, int], _: Limits) -> Writes:
    quota, period = value
    return [("cpu.max", f"{'max' if quota is None else quota} {period}")]


def _read_cpu_max_v2(files: Files) -> tuple[int | None, int] | None:
    quota, _, period = files.get("cpu.max", f"max {CPU_PERIOD}").partition(" ")
    value = number(_bytes(quota), "cpu.max"), _natural(period.rstrip("\n"))
    return None if value == (None, CPU_PERIOD) else value


def _write_cpu_max_v1(value: tuple[int | None, int], _: Limits) -> Writes:
    quota, period = value
    return [("cpu.cfs_period_us", str(period)), ("cpu.cfs_quota_us", "-1" if quota is None else str(quota))]


def _read_cpu_max_v1(files: Files) -> tuple[int | None, int] | None:
    quota, period = _count(files, "cpu.cfs_quota_us"), _count(files, "cpu.cfs_period_us")
    return None if period is None or (quota, period) == (None, CPU_PERIOD) else (quota, period)


def _unless_idle(form: _Form) -> _Form:
    """While cpu.idle is 1, the kernel shows a weight (0; in v1 3 shares) that nobody set."""
    return _Form(
        *form.files,
        write=form.write,
        read=lambda files: None if _count(files, "cpu.idle") else form.read(files),
    )


def _to_shares(weight: int) -> int:
    """Kernel: sched_weight_from_cgroup and sched_weight_to_cgroup, <kernel>/kernel/sched/sched.h."""
    return (weight * 1024 + 50) // 100


def _from_shares(shares: int) -> int:
    return min(max((shares * 100 + 512) // 1024, 1), 10000)


def _to_bfq(weight: int) -> int:
    """BFQ has 1 to 1000: what is above 100, the usual, is drawn together, as systemd does (BFQ_WEIGHT)."""
    return weight if weight <= 100 else 100 + (weight - 100) // 11


def _from_bfq(weight: int) -> int:
    return weight if weight <= 100 else 100 + (weight - 100) * 11


def _read_io_weight(files: Files) -> int | None:
    """The first line is "default 100"; devices with weights of their own may follow."""
    file = "io.weight" if "io.weight" in files else "io.bfq.weight"
    first = files.get(file, "default 100").partition("\n")[0]
    weight = _natural(first.removeprefix("default "))
    return None if weight == 100 else weight if file == "io.weight" else _from_bfq(weight)


def _write_io_max_v2(value: Rates, _: Limits) -> Writes:
    # A write for each device: the kernel reads one line of each.
    return [
        ("io.max", " ".join([device, *(f"{key}={rate}" for key, rate in rates.items())]))
        for device, rates in value.items()
    ]


def _read_io_max_v2(files: Files) -> Rates | None:
    devices = nested_keyed(_bytes(files.get("io.max", "")), "io.max")
    return _by_device(
        {
            (device, key): None if rate == float("inf") else int(rate)
            for device, rates in devices.items()
            for key, rate in rates.items()
        }
    )


def _write_io_max_v1(value: Rates, _: Limits) -> Writes:
    return [
        (_THROTTLE_V1[key], f"{device} {rate}")
        for device, rates in value.items()
        for key, rate in rates.items()
    ]


def _read_io_max_v1(files: Files) -> Rates | None:
    known = {}
    for key, file in _THROTTLE_V1.items():
        for line in files.get(file, "").splitlines():
            device, _, rate = line.partition(" ")
            known[device, key] = _natural(rate)
    return _by_device(known)


def _list(file: str) -> _Form:
    return _Form(
        file,
        write=lambda value, _: [(file, value)],
        read=lambda files: _numbers(file, text) if (text := files.get(file, "").strip()) else None,
    )


class _Option:
    __slots__ = ("check", "controller", "forms")

    def __init__(self, controller: str, check: Checker, v2: _Form, v1: _Form) -> None:
        self.controller: str = controller
        self.check: Checker = check
        self.forms: dict[int, _Form] = {2: v2, 1: v1}


_LAST = 2**16  # CPU or node: far above what any kernel is built for
_NUMBER = _integer(0, _LAST)
_MEMORY_V1 = "memory.limit_in_bytes"
_MEMSW_V1 = "memory.memsw.limit_in_bytes"
# The bounds of sched-bwc.rst, 1 ms and 1 s, and of <kernel>/kernel/sched/core.c, max_cfs_runtime.
_PERIOD = _integer(1000, 10**6)
_QUOTA = _or_max(_integer(1000, 2**44 - 1, " or 'max'"))
_WEIGHT = _integer(1, 10000)
_OPERATIONS = _or_max(_integer(1, 2**32 - 2, " or 'max'"))  # UINT_MAX means no limit
_BYTES = _size(1, " (the kernel takes no 0)")
_RATES = {"rbps": _BYTES, "wbps": _BYTES, "riops": _OPERATIONS, "wiops": _OPERATIONS}
_THROTTLE_V1 = {
    "rbps": "blkio.throttle.read_bps_device",
    "wbps": "blkio.throttle.write_bps_device",
    "riops": "blkio.throttle.read_iops_device",
    "wiops": "blkio.throttle.write_iops_device",
}
# The kernel rounds down to pages, and kills whoever is in a group that may have none.
_PAGE = _size(4096, " (a page), or the command dies at once (is a unit such as M missing?)")
# PID_MAX_LIMIT; and 0, which the kernel takes, is refused: the command itself is one.
_PIDS = _or_max(_integer(1, 2**22, " (the command itself is one) or 'max'"))
_NOTHING = _Form(write=lambda _value, _limits: [], read=lambda _files: None)

_TABLE = {
    "memory_max": _Option("memory", _PAGE, _single("memory.max"), _single(_MEMORY_V1)),
    "memory_high": _Option("memory", _size(), _single("memory.high"), _NOTHING),
    "memory_low": _Option("memory", _protection, _single("memory.low", 0), _NOTHING),
    "memory_min": _Option("memory", _protection, _single("memory.min", 0), _NOTHING),
    "memory_swap_max": _Option(
        "memory",
        _size(),
        _single("memory.swap.max"),
        _Form(_MEMSW_V1, write=_write_swap_v1, read=_read_swap_v1),
    ),
    "memory_oom_group": _Option(
        "memory",
        _boolean,
        _Form("memory.oom.group", write=_flag("memory.oom.group").write, read=_read_oom_group),
        _NOTHING,
    ),
    "cpu_max": _Option(
        "cpu",
        _cpu_max,
        _Form("cpu.max", write=_write_cpu_max_v2, read=_read_cpu_max_v2),
        _Form("cpu.cfs_period_us", "cpu.cfs_quota_us", write=_write_cpu_max_v1, read=_read_cpu_max_v1),
    ),
    "cpu_weight": _Option(
        "cpu",
        _WEIGHT,
        _unless_idle(_single("cpu.weight", 100)),
        _unless_idle(_single("cpu.shares", 100, _to_shares, _from_shares)),
    ),
    "cpu_idle": _Option("cpu", _boolean, _flag("cpu.idle"), _flag("cpu.idle")),
    "pids_max": _Option("pids", _PIDS, _single("pids.max"), _single("pids.max")),
    "io_weight": _Option(
        "io",
        _WEIGHT,
        # io.weight is of the cost model; a kernel may have BFQ's weight alone.
        _Form(
            "io.weight",
            "io.bfq.weight",
            write=lambda value, _: [
                ("io.weight", f"default {value}", "io.bfq.weight", f"default {_to_bfq(value)}")
            ],
            read=_read_io_weight,
        ),
        _single("blkio.bfq.weight", 100, _to_bfq, _from_bfq),
    ),
    "io_max": _Option(
        "io",
        _io_max,
        _Form("io.max", write=_write_io_max_v2, read=_read_io_max_v2),
        _Form(*_THROTTLE_V1.values(), write=_write_io_max_v1, read=_read_io_max_v1),
    ),
    "cpuset_cpus": _Option("cpuset", _numbers, _list("cpuset.cpus"), _list("cpuset.cpus")),
    "cpuset_mems": _Option("cpuset", _numbers, _list("cpuset.mems"), _list("cpuset.mems")),
}
