"""How a command ended: subprocess's classes, with why, with what was sent, and with what was used."""

from __future__ import annotations

import subprocess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Literal

    from muontrap.host.cgroups import Placing
    from muontrap.logic.accounting import CgroupStatistics
    from muontrap.logic.wire import Ended

    Reason = Literal[
        "exited", "signal", "timeout", "stopped", "host-gone", "out-of-memory", "max-output", "inactivity"
    ]


class _Values:
    """Immutable attributes, compared and shown together."""

    def __init__(self, **values: object) -> None:
        self.__dict__.update(values)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} can't be changed")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self) -> int:
        return hash(tuple(self.__dict__.values()))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"
        )


class SignalSent(_Values):
    """A signal that muontrap sent to a command.

    Attributes:
        signal: its number.
        when: seconds after the launch, of the first of them.
        count: to how many processes.
    """

    signal: int
    when: float
    count: int


class Usage(_Values):
    """What a command used. See getrusage(2).

    All but `wall` is of the main process and of the descendants that were waited for.

    Attributes:
        wall: seconds from the launch until nothing was left.
        user: seconds of CPU in user mode.
        system: seconds of CPU in the kernel.
        max_rss: bytes of the largest process's peak memory.  None for a small command: the kernel
            begins that figure at what the guard had, which is no figure of the command.
        minor_faults, major_faults, blocks_read, blocks_written, voluntary_switches,
            involuntary_switches: counts.
    """

    wall: float
    user: float
    system: float
    max_rss: int | None
    minor_faults: int
    major_faults: int
    blocks_read: int
    blocks_written: int
    voluntary_switches: int
    involuntary_switches: int


class CompletedProcess(subprocess.CompletedProcess["Any"]):
    """A command of which nothing is left, but for the pids that it says.

    Attributes:
        args, returncode, stdout, stderr: as `subprocess` has them.  `returncode` is None when the main
            process could not be ended; see `unkillable` and `not_permitted`.
        reason: why it ended: "exited" or "signal" by itself; "timeout", "stopped" or "host-gone"
            when muontrap had begun to end it before its main process died; "out-of-memory" when the
            kernel killed it for its memory limit, as counted in `cgroup`; "inactivity" when it was ended
            for `inactivity_timeout`, "max-output" for `max_output`, or wrote more than that.
        dropped: bytes of output that `max_output` left out.
        signals_sent: what muontrap sent, in order (`SignalSent`).
        usage: what it used (`Usage`).
        cgroup: what its cgroup had counted at the end (`CgroupStatistics`), None without one.
        not_permitted: pids of processes that this user may not signal, left running.
        unkillable: pids of processes that did not die on SIGKILL (uninterruptible sleep).
    """

    reason: Reason
    dropped: int = 0
    cgroup: CgroupStatistics | None = None
    not_permitted: tuple[int, ...]
    unkillable: tuple[int, ...]

    returncode: int | None  # type: ignore[assignment]

    def __init__(self, args: Any, ended: Ended, placing: Placing | None = None) -> None:
        returncode = _returncode(ended.status)
        super().__init__(args, returncode, None, None)  # type: ignore[arg-type]
        by_itself = "signal" if returncode is not None and returncode < 0 else "exited"
        self.reason = ended.reason.decode("ascii") or by_itself  # type: ignore[assignment]
        if placing and ended.cgroup:
            self.cgroup, killed = placing.outcome(ended.cgroup)
            if killed == "limit" and self.reason == "signal" and returncode == -_SIGKILL:
                self.reason = "out-of-memory"
        self._ended = ended
        self.not_permitted = tuple(ended.not_permitted)
        self.unkillable = tuple(ended.unkillable)

    def check_returncode(self) -> None:
        """Raise `CalledProcessError` if the return code is not 0, or its output was the reason of its end."""
        if self.returncode != 0 or self.reason in _OUTPUT:
            raise CalledProcessError(self)

    # These two are made when they are asked for: most who run a command do not.

    @property
    def signals_sent(self) -> tuple[SignalSent, ...]:
        """What muontrap sent, in order."""
        return tuple(
            SignalSent(signal=int(number), when=when, count=int(count))
            for number, when, count in zip(*[iter(self._ended.sent)] * 3, strict=True)
        )

    @property
    def usage(self) -> Usage:
        """What the command used."""
        figures = {name: getattr(self._ended, name) for name in Usage.__annotations__}
        peak = self._ended.max_rss
        return Usage(**(figures | {"max_rss": peak * 1024 if peak >= 0 else None}))

    @property
    def explanation(self) -> str:
        """Why it ended, for people: "out of memory (limit 256 MiB, peak 256 MiB)"."""
        if self.reason == "out-of-memory" and self.cgroup:
            from muontrap.logic.limits import format_size

            sizes = (("limit", self.cgroup.memory_limit), ("peak", self.cgroup.memory_peak))
            known = ", ".join(f"{name} {format_size(size)}" for name, size in sizes if size is not None)
            return f"out of memory ({known})"
        return _OUTPUT.get(self.reason, self.reason)

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, reason={self.reason!r})"


class CalledProcessError(subprocess.CalledProcessError):
    """Raised by `check=True` and `check_returncode`: for a return code that is not 0, or for the output.

    Attributes:
        result: the `CompletedProcess`.
    """

    returncode: int | None  # type: ignore[assignment]

    def __init__(self, result: CompletedProcess) -> None:
        super().__init__(result.returncode or 0, result.args, result.stdout, result.stderr)
        self.returncode = result.returncode
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.result,)

    def __str__(self) -> str:
        if self.returncode is None:
            left = ", ".join(map(str, self.result.unkillable + self.result.not_permitted))
            return f"Command {self.cmd!r} could not be ended: still running are {left}."
        if self.result.explanation != self.result.reason:
            return f"Command {self.cmd!r} ended: {self.result.explanation}."
        return super().__str__()


class TimeoutExpired(subprocess.TimeoutExpired):
    """Raised when a time is over; with `run`, the command has been ended by then.

    Attributes:
        cmd, timeout, output, stdout, stderr: as `subprocess` has them, with what was read so far.
        result: the `CompletedProcess`; None when the command still runs (`Process.wait`,
            `Process.communicate`), or was still dying when `run` had to return.
    """

    def __init__(
        self,
        cmd: Any,
        timeout: float,
        output: Any = None,
        stderr: Any = None,
        result: CompletedProcess | None = None,
    ) -> None:
        super().__init__(cmd, timeout, output, stderr)
        self.result = result

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.cmd, self.timeout, self.output, self.stderr, self.result)


_SIGKILL = 9
_OUTPUT = {"inactivity": "no output for inactivity_timeout", "max-output": "more output than max_output"}


def _returncode(status: int) -> int | None:
    """Return a waitpid(2) status as `subprocess` does: negative for a signal."""
    if status < 0:
        return None
    return -(status & 0x7F) if status & 0x7F else status >> 8
