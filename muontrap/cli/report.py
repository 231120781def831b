"""What the command line says on stderr, and the exit status that goes with it."""

from __future__ import annotations

import contextlib
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from muontrap.host.results import CompletedProcess
    from muontrap.logic.accounting import CgroupStatistics

# Exit statuses, as of env(1) and timeout(1); 128 + N is for signal N.
TIMED_OUT, FAILED, NOT_EXECUTABLE, NOT_FOUND, BY_SIGNAL = 124, 125, 126, 127, 128

# How the library's messages name what has another name here.
_NAMES_HERE = {
    "allow_root=True": "--allow-root",
    "group=": "--group",
    "require=": "--require ",
    "cgroup_sets": "--cgroup-set",
    "cgroup_controllers": "--cgroup-controller",
}
# A name that stands for itself, and is no part of a path; with its index, where it may be repeated.
_NAME = r"(?<![\w/.'-])(allow_root=True|group=|require=|[a-z]+(?:_[a-z]+)+)(\[\d+\])?(?![\w/])"


def report(result: CompletedProcess, layers: Sequence[str] | None) -> None:
    """Say what the user has to know, and the rest if asked for.

    Args:
        result: how the command ended.
        layers: what contained it; None where the rest is not asked for.
    """
    lines = [] if layers is None else list(_statistics(result, layers))
    if result.reason == "out-of-memory":
        lines.append(result.explanation)
    lines += [f"still running: {pid} (no permission to signal it)" for pid in result.not_permitted]
    lines += [f"still running: {pid} (does not die on SIGKILL)" for pid in result.unkillable]
    for line in lines:
        say(line)


def _statistics(result: CompletedProcess, layers: Sequence[str]) -> Iterator[str]:
    usage = result.usage
    code = result.returncode
    yield f"reason: {result.reason}"
    if code is not None:
        yield f"exit status: {code}" if code >= 0 else f"killed by: {_signal_name(-code)}"
    yield f"containment: {', '.join(layers)}"
    yield f"wall: {usage.wall:.3f} s"
    yield f"cpu: {usage.user:.3f} s user, {usage.system:.3f} s system"
    yield f"peak memory: {'too small to tell' if usage.max_rss is None else _mebibytes(usage.max_rss)}"
    if result.cgroup:
        for name, figures in _of_cgroup(result.cgroup):
            if figures:
                yield f"cgroup {name}: {', '.join(figures)}"
    for sent in result.signals_sent:
        yield f"sent: {_signal_name(sent.signal)} to {_processes(sent.count)} after {sent.when:.3f} s"


def _of_cgroup(figures: CgroupStatistics) -> Iterator[tuple[str, list[str]]]:
    """Yield what the whole command used; nothing of what its cgroup does not count."""
    memory = (("peak", figures.memory_peak), ("limit", figures.memory_limit))
    yield "memory", [f"{name} {_mebibytes(size)}" for name, size in memory if size is not None]
    yield "swap", [f"peak {_mebibytes(figures.memory_swap_peak)}"] if figures.memory_swap_peak else []
    yield "oom", [f"{_processes(figures.oom_kills)} killed"] if figures.oom_kills else []
    times = (("", figures.cpu_usage), (" user", figures.cpu_user), (" system", figures.cpu_system))
    cpu = [f"{seconds:.3f} s{name}" for name, seconds in times if seconds is not None]
    if figures.cpu_periods:
        throttled = f"throttled in {figures.cpu_throttled_periods} of {figures.cpu_periods} periods"
        cpu.append(f"{throttled} for {figures.cpu_throttled or 0:.3f} s")
    yield "cpu", cpu
    pids = [] if figures.pids_peak is None else [f"peak {figures.pids_peak}"]
    if figures.pids_max_events:
        pids.append(f"refused {figures.pids_max_events}")
    yield "processes", pids
    io = (("read", figures.io_read_bytes), ("written", figures.io_write_bytes))
    yield "io", [f"{_mebibytes(size)} {name}" for name, size in io if size is not None]


def exit_status(result: CompletedProcess) -> int:
    """Return our exit status for a command that ended so."""
    if result.reason == "timeout":
        return TIMED_OUT
    # In spite of `subprocess`'s annotation, None for what could not be ended.
    code: int | None = result.returncode
    if code is None:
        return FAILED
    return code if code >= 0 else BY_SIGNAL - code


def refused(error: OSError, program: str) -> int:
    """Say why there is no command; its exit status tells refusals of `execve` from all others."""
    in_execve = error.filename == program and error.strerror == os.strerror(error.errno or 0)
    status = fail(f"{error.filename!r}: {error.strerror}" if error.filename is not None else str(error))
    if not in_execve:
        return status
    return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def fail(message: str) -> int:
    """Say it; return the exit status for what is muontrap's own failure."""
    say(message)
    return FAILED


def say(message: str) -> None:
    """Write to stderr, which may be closed or full: that must not change the exit status."""
    with contextlib.suppress(OSError):
        os.write(2, f"muontrap: {message}\n".encode(errors="backslashreplace"))


def text(error: Exception) -> str:
    """Return an error's message, with options as they are called here."""
    import re

    from muontrap.cli.arguments import LIMITS

    def name_here(found: re.Match[str]) -> str:
        name = found[1]
        if name in _NAMES_HERE:
            return _NAMES_HERE[name]
        is_option = name in LIMITS or name in ("cgroup_base", "cgroup_path")
        return f"--{name.replace('_', '-')}" if is_option else found[0]

    # A KeyError's own text is the representation of its message.
    return re.sub(_NAME, name_here, str(error.args[0] if isinstance(error, KeyError) else error))


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:
        return f"signal {signum}"  # of the real-time ones, only two have a name


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"
