"""How much of a command's output may be read, and kept: the flow-control window, the cap, inactivity."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    CapPolicy: TypeAlias = Literal["stop", "drop"]

CAP_POLICIES = ("stop", "drop")


class Window:
    """Bytes that were read and not yet handled, of all streams that share it: never more than `size`.

    One who holds back the last bytes until more come may do so: any room, a single byte too, is to
    be read into.
    """

    __slots__ = ("size", "unhandled")

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"a window must be 1 byte or more, not {size!r}")
        self.size: int = size
        self.unhandled: int = 0

    @property
    def room(self) -> int:
        """How many bytes may be read now. With 0 reading stops, and the command will block in write."""
        return self.size - self.unhandled

    def took(self, count: int) -> None:
        """Note that so many bytes were read, 0 or more."""
        if not 0 <= count <= self.room:
            raise ValueError(f"{count} bytes were read with room for {self.room}")
        self.unhandled += count

    def handled(self, count: int) -> bool:
        """Note that so many bytes were handled; tell whether reading had stopped and is to go on."""
        if not 0 < count <= self.unhandled:
            raise ValueError(f"can't acknowledge {count} bytes of {self.unhandled} that are unhandled")
        had_stopped = self.unhandled == self.size
        self.unhandled -= count
        return had_stopped


class Cap:
    """The first `most` bytes of an output are kept, the rest is dropped and counted.

    Attributes:
        dropped: bytes that were not kept. With "stop", that is what came before the command's end.
    """

    __slots__ = ("_policy", "_room", "dropped")

    def __init__(self, most: int, policy: CapPolicy) -> None:
        if most < 0:
            raise ValueError(f"max_output must be 0 bytes or more, not {most!r}")
        if policy not in CAP_POLICIES:
            raise ValueError(f"max_output_policy must be one of {', '.join(CAP_POLICIES)}, not {policy!r}")
        self._policy = policy
        self._room = most
        self.dropped: int = 0

    @property
    def is_exceeded(self) -> bool:
        """Whether more than `most` bytes came."""
        return self.dropped > 0

    @property
    def must_stop(self) -> bool:
        """Whether the command is to be stopped for it."""
        return self.is_exceeded and self._policy == "stop"

    def take(self, data: bytes) -> bytes:
        """Return what is to be kept of these bytes, the next of the output."""
        kept = data[: self._room]
        self._room -= len(kept)
        self.dropped += len(data) - len(kept)
        return kept


class Inactivity:
    """A deadline that each output moves. Times are seconds of any one monotonic clock.

    Attributes:
        deadline: None while paused.
    """

    __slots__ = ("_seconds", "deadline")

    def __init__(self, seconds: float, now: float) -> None:
        if not seconds > 0:
            raise ValueError(f"a time of inactivity must be more than 0 s, not {seconds!r}")
        self._seconds = seconds
        self.deadline: float | None
        self.restart(now)

    def restart(self, now: float) -> None:
        """Note that output came, or that reading goes on."""
        self.deadline = now + self._seconds

    def pause(self) -> None:
        """Note that reading stopped, the window being full: who blocks in write is not inactive."""
        self.deadline = None

    def is_late(self, now: float) -> bool:
        """Tell whether the command wrote nothing for too long."""
        return self.deadline is not None and now >= self.deadline
