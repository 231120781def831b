"""What a supervisor is told of each child, and what became of it.

A child is

    stopped     not there: not wanted, or at its end for good (`Child.ending` says which)
    waiting     wanted, and not there yet: for its time, for those that it depends on, for a group's stop
    starting    there, and not ready yet
    ready       there, and of use to those that depend on it
    stopping    asked to end
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal, TypeAlias

    Restart: TypeAlias = Literal["permanent", "transient", "temporary"]
    State: TypeAlias = Literal["stopped", "waiting", "starting", "ready", "stopping"]
    Ending: TypeAlias = Literal["", "finished", "failed", "stopped"]

RESTARTS = ("permanent", "transient", "temporary")


class Backoff:
    """How long to wait before a restart: longer after each failure in a row.

    Args:
        initial: seconds before the first restart.
        factor: by which each wait is longer than the one before, 1 or more.
        cap: seconds, the longest wait, jitter apart.
        jitter: a part of the wait, 0 to 1, by which it is lengthened at most, at random.
        reset_after: seconds that a child is ready after which its next failure is a first one.

    Failures to start, and those of a child that was ready, are two rows.
    """

    def __init__(
        self,
        initial: float = 0.1,
        factor: float = 2.0,
        cap: float = 30.0,
        jitter: float = 0.1,
        reset_after: float = 10.0,
    ) -> None:
        for name, value, least in (
            ("initial", initial, 0),
            ("factor", factor, 1),
            ("cap", cap, 0),
            ("jitter", jitter, 0),
            ("reset_after", reset_after, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} of a backoff must be a number, not {value!r}")
            if not least <= value < float("inf"):
                raise ValueError(f"{name} of a backoff must be {least} or more, not {value!r}")
        if jitter > 1:
            raise ValueError(f"jitter of a backoff must be from 0 to 1, not {jitter!r}")
        self.initial: float = initial
        self.factor: float = factor
        self.cap: float = cap
        self.jitter: float = jitter
        self.reset_after: float = reset_after

    def wait(self, failures: int, chance: float) -> float:
        """Return the seconds before the restart after so many failures in a row; `chance` is 0 to 1."""
        try:
            grown = self.initial * float(self.factor) ** (failures - 1)
        except OverflowError:
            grown = self.cap if self.initial else 0.0
        return min(grown, self.cap) * (1 + self.jitter * chance)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Backoff) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"Backoff({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


_BACKOFF = Backoff()


class Child:
    """One of the children, as it is asked for, and what became of it.

    Attributes:
        state: see the module.
        ending: why one that is stopped will not start by itself: "finished", "failed", or "stopped" by
            somebody; else "".
        restarts: how often it was started again after it had ended by itself.
        start_failures, failures: how often it ended before it was ready, and later.
    """

    __slots__ = (
        *("_at", "_failures_in_a_row", "_position", "_rank", "_ready_since", "_start_failures_in_a_row"),
        *("_starts_again", "backoff", "depends_on", "ending", "essential", "failures", "is_removed", "name"),
        *("restart", "restarts", "start_failures", "state"),
    )

    def __init__(
        self,
        name: str,
        restart: Restart = "permanent",
        *,
        depends_on: Iterable[str] = (),
        essential: bool = False,
        backoff: Backoff | None = None,
    ) -> None:
        if not name:
            raise ValueError("a child needs a name")
        if restart not in RESTARTS:
            raise ValueError(f"restart of {name!r} must be one of {', '.join(RESTARTS)}, not {restart!r}")
        if isinstance(depends_on, str):
            raise TypeError(f"depends_on of {name!r} must be a list of names, not {depends_on!r}")
        self.name: str = name
        self.restart: Restart = restart
        self.depends_on: tuple[str, ...] = tuple(depends_on)
        self.essential: bool = essential
        self.backoff: Backoff = backoff or _BACKOFF
        self.state: State = "stopped"
        self.ending: Ending = ""
        self.restarts: int = 0
        self.start_failures: int = 0
        self.failures: int = 0
        self.is_removed: bool = False
        self._start_failures_in_a_row = self._failures_in_a_row = 0
        self._ready_since = float("inf")
        self._at = 0.0  # not to be started before
        self._starts_again = False  # when it has ended, if it is stopping or to be stopped
        self._position = 0  # among its siblings
        self._rank = 0  # in the order of starts

    @property
    def is_of_use(self) -> bool:
        """Whether those that depend on it may start."""
        return self.ending == "finished" or (self.state == "ready" and not self._goes)

    @property
    def is_settled(self) -> bool:
        """Whether it is where it is to be: of use, or down."""
        return self.is_of_use or self.state == "stopped"

    @property
    def _goes(self) -> bool:
        """Whether it is not to be there any longer."""
        return self._starts_again or self.ending == "stopped"

    @property
    def is_there(self) -> bool:
        """Whether something of it may be running."""
        return self.state in ("starting", "ready", "stopping")

    @property
    def _is_moving(self) -> bool:
        """Whether there is something to be done with it, now or later."""
        return self.state == "waiting" or (self.is_there and self._goes)

    def _forgive(self) -> None:
        """Let its next failure be a first one."""
        self._start_failures_in_a_row = self._failures_in_a_row = 0
