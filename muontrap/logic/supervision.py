"""Who of a supervisor's children is to run, and when: restart types, strategies, intensity, backoff.

A machine without I/O and without a clock.  It is told what happened (`started`, `ready`, `exited` ...)
and then, by `actions`, says what to do: start or stop a child.  What it says it takes for done.

What states a child has, says `children.py`.

Order: a child starts when all that it depends on are ready, or have finished for good, as a job that is
done.  With "rest_for_one" all before it that are to run are ready besides; with that and "one_for_all"
nobody starts while somebody is stopped.  A child stops when all that depend on it, and stop too, have
ended; those also that depend on it by way of others.
"""

from __future__ import annotations

from collections import deque
from graphlib import CycleError, TopologicalSorter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Literal, TypeAlias

    from muontrap.logic.children import Child, State

    Strategy: TypeAlias = Literal["one_for_one", "one_for_all", "rest_for_one"]

STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")
# As OTP has them.
MAX_RESTARTS, MAX_SECONDS = 3, 5.0
_STORY = 20


class Supervision:
    """The children of one supervisor. Times are seconds of any one monotonic clock.

    Args:
        children: in the order of their start.
        strategy: which others are restarted with a child that has failed.
        max_restarts, max_seconds: restart intensity: one more in that time is too much.
        on_give_up: what then happens, told the child's name: True stops all and fails, False leaves
            that child down.  An essential child at its end stops all in any case.
        chance: returns a random number from 0 to 1.

    Attributes:
        outcome: None, until all has ended: then "" if that was asked for or a success, else what failed.
        story: the last failures, each as a line.
    """

    def __init__(
        self,
        children: Sequence[Child],
        *,
        strategy: Strategy = "one_for_one",
        max_restarts: int = MAX_RESTARTS,
        max_seconds: float = MAX_SECONDS,
        on_give_up: Callable[[str], bool] = lambda _: True,
        chance: Callable[[], float] = lambda: 0.0,
    ) -> None:
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy must be one of {', '.join(STRATEGIES)}, not {strategy!r}")
        if max_restarts < 0:
            raise ValueError(f"max_restarts must be 0 or more, not {max_restarts!r}")
        if not max_seconds > 0:
            raise ValueError(f"max_seconds must be more than 0 s, not {max_seconds!r}")
        self._strategy = strategy
        self._max_restarts = max_restarts
        self._max_seconds = max_seconds
        self._on_give_up = on_give_up
        self._chance = chance
        self._times: deque[float] = deque()  # of restarts, not older than max_seconds
        self._is_ending = False
        self._failure = ""
        self._entered = 0  # so far
        self._starting = 0  # children of that state
        self._moving: set[Child] = set()  # those to be looked at, and perhaps some more
        self.children: dict[str, Child] = {}
        self.outcome: str | None = None
        self.story: deque[str] = deque(maxlen=_STORY)
        for child in children:
            self._enter(child)
        self._check()

    @property
    def deadline(self) -> float | None:
        """When `actions`, which has just been asked, will have more without an event; None for never."""
        times = [child._at for child in self._startable()]
        return min(times, default=None)

    @property
    def is_ending(self) -> bool:
        """Whether all children are to end, or have."""
        return self._is_ending

    @property
    def is_settled(self) -> bool:
        """Whether no child is on its way up or down, as one is not that waits for what is down."""
        is_on_its_way = self._starting or any(child.is_there for child in self._moving if child._goes)
        return not is_on_its_way and not self._startable()

    def start(self) -> None:
        """Let all children run."""
        for child in self.children.values():
            if child.state == "stopped":
                self.start_child(child.name)

    def stop(self, failure: str = "") -> None:
        """Let all children end, and then the supervisor; with a failure, if there is one."""
        self._is_ending = True
        self._failure = self._failure or failure
        for child in self.children.values():
            self._let_down(child)
            self._moving.add(child)

    def ready(self, name: str, now: float) -> None:
        """A child that was starting is of use."""
        child = self.children[name]
        if child.state == "starting":
            child.state, child._ready_since = "ready", now
            self._starting -= 1

    def exited(self, name: str, failure: str, now: float, *, is_counted: bool = True) -> None:
        """A child has ended, or could not be started; `failure` says why, "" for a success.

        One that is not counted is restarted whatever the intensity: another was counted for the same.
        """
        child = self.children[name]
        if not child.is_there:
            return
        was = child.state
        child.state = "stopped"
        self._starting -= was == "starting"
        self._moving.add(child)
        if now - child._ready_since >= child.backoff.reset_after:
            child._forgive()
        if child.is_removed:
            self._forget(child)
            return
        if not child._goes:
            self._fail_or_finish(child, was, failure, now, is_counted=is_counted)
            return
        if child._starts_again:
            child.state = "waiting"
        child._starts_again = False

    def start_child(self, name: str) -> None:
        """Start a child that is stopped, at once if it waits for its time; its backoff begins anew."""
        child = self.children[name]
        if self._is_ending:
            raise ValueError("the supervisor is ending")
        if child.is_removed:
            raise ValueError(f"child {name!r} is removed")
        if child.state == "stopping":
            child._starts_again = True
        elif not child.is_there:
            child.state = "waiting"
        child.ending, child._at = "", 0.0
        child._forgive()
        self._moving.add(child)

    def stop_child(self, name: str) -> None:
        """Stop a child; it stays so, whatever its siblings do, until it is started or restarted."""
        child = self.children[name]
        self._let_down(child)
        child.ending = "stopped"
        self._moving.add(child)

    def restart_child(self, name: str) -> None:
        """Stop a child, and start it again: that is no failure, and not counted."""
        child = self.children[name]
        self.start_child(name)
        child._starts_again = child.is_there

    def add(self, child: Child) -> None:
        """Take one more child, behind the others, and let it run."""
        if self._is_ending:
            raise ValueError("the supervisor is ending")
        self._enter(child)
        child.is_removed = False
        try:
            self._check()
        except ValueError:
            del self.children[child.name]
            raise
        self.start_child(child.name)

    def remove(self, name: str) -> None:
        """Forget a child on which no other depends, as soon as it is stopped."""
        child = self.children[name]
        heirs = [other.name for other in self.children.values() if name in other.depends_on]
        if heirs:
            raise ValueError(f"child {name!r} is what {', '.join(heirs)} depends on")
        self._let_down(child)
        self._moving.add(child)
        child.is_removed = True
        if not child.is_there:
            self._forget(child)

    def blocker(self, name: str) -> str | None:
        """Return who is down that a child needs to start, itself or by way of others that wait."""
        waiting, seen = [name], {name}
        while waiting:
            for needed in self.children[waiting.pop()].depends_on:
                child = self.children[needed]
                if child.state == "stopped" and not child.is_of_use:
                    return needed
                if child.state == "waiting" and needed not in seen:
                    seen.add(needed)
                    waiting.append(needed)
        return None

    def actions(self, now: float) -> list[tuple[Literal["start", "stop"], str]]:
        """Return what is to be done now, in order."""
        self._moving = {child for child in self._moving if child._is_moving}
        todo: list[tuple[Literal["start", "stop"], str]]
        todo = [("stop", child.name) for child in self._stoppable()]
        for child in self._startable():
            if now >= child._at:
                child.state, child._ready_since = "starting", float("inf")
                self._starting += 1
                todo.append(("start", child.name))
        if self._is_ending and self.outcome is None and not any(child.is_there for child in self._moving):
            self.outcome = self._failure
        return todo

    def _stoppable(self) -> list[Child]:
        """Return those that are to stop now, and take them for stopping."""
        found: list[Child] = []
        held: set[str] = set()  # one that goes depends on these
        going = [child for child in self._moving if child.is_there]
        for child in sorted(going, key=_rank, reverse=True):
            if child.state != "stopping" and child.name not in held:
                self._starting -= child.state == "starting"
                child.state = "stopping"
                found.append(child)
            needed = [child.name]
            while needed:
                new = [name for name in self._needs[needed.pop()] if name not in held]
                held.update(new)
                needed += new
        return found

    def _forget(self, child: Child) -> None:
        del self.children[child.name]
        self._moving.discard(child)
        self._check()

    def _enter(self, child: Child) -> None:
        if child.name in self.children:
            raise ValueError(f"there are two children named {child.name!r}: names must be unique")
        self._entered += 1
        child._position = self._entered
        self.children[child.name] = child

    def _startable(self) -> list[Child]:
        """Return those that may start as soon as it is time."""
        moving = self._moving
        if self._strategy != "one_for_one" and any(child.is_there and child._goes for child in moving):
            return []
        waiting = sorted((child for child in moving if child.state == "waiting"), key=_position)
        if waiting and self._strategy == "rest_for_one":
            first = next(child for child in self.children.values() if child.state in ("waiting", "starting"))
            waiting = [first] if first is waiting[0] else []
        return [child for child in waiting if all(self.children[name].is_of_use for name in child.depends_on)]

    def _check(self) -> None:
        """See who depends on whom; raise for a dependency on nobody, or a circle."""
        needs: dict[str, tuple[str, ...]] = {}
        before: tuple[str, ...] = ()
        for child in self.children.values():
            for name in child.depends_on:
                if name not in self.children or self.children[name].is_removed:
                    raise ValueError(f"{child.name!r} depends on {name!r}, which is no child")
            needs[child.name] = (*child.depends_on, *before) if before else child.depends_on
            before = (child.name,) if self._strategy == "rest_for_one" else ()
        try:
            order = [*TopologicalSorter(needs).static_order()]
        except CycleError as error:
            path = " -> ".join(reversed(error.args[1]))
            besides = " (rest_for_one: each on the one before it)" if before else ""
            raise ValueError(f"children depend on each other in a circle: {path}{besides}") from None
        self._needs = needs
        for rank, name in enumerate(order):
            self.children[name]._rank = rank

    def _followers(self, child: Child) -> list[Child]:
        """Return those that are restarted with it."""
        others = [other for other in self.children.values() if other is not child]
        if self._strategy == "one_for_all":
            return others
        return others[list(self.children).index(child.name) :] if self._strategy == "rest_for_one" else []

    def _let_down(self, child: Child) -> None:
        child._starts_again = False
        if not child.ending:
            child.ending = "stopped"
        if child.state == "waiting":
            child.state = "stopped"

    def _count(self, child: Child, was: State) -> None:
        if was == "starting":
            child.start_failures += 1
            child._start_failures_in_a_row += 1
        else:
            child.failures += 1
            child._failures_in_a_row += 1

    def _fail_or_finish(
        self, child: Child, was: State, failure: str, now: float, *, is_counted: bool
    ) -> None:
        """Do with a child that has ended by itself what its restart type says."""
        is_restarted = child.restart == "permanent" or (child.restart == "transient" and failure)
        if failure or is_restarted:
            self._count(child, was)
            self.story.append(f"{child.name}: {failure or 'ended without a failure'}")
        if is_restarted:
            self._restart(child, was, failure, now, is_counted=is_counted)
        else:
            child.ending = "failed" if failure else "finished"
        if child.ending and child.essential:
            self.stop(f"essential child {child.name} has ended: {failure}" if failure else "")

    def _restart(self, child: Child, was: State, failure: str, now: float, *, is_counted: bool) -> None:
        """Start it again, and whom the strategy adds; or give up."""
        while self._times and self._times[0] <= now - self._max_seconds:
            self._times.popleft()
        if is_counted:
            if len(self._times) >= self._max_restarts:
                self._give_up(child, failure)
                return
            self._times.append(now)
        child.restarts += 1
        child.state = "waiting"
        in_a_row = child._start_failures_in_a_row if was == "starting" else child._failures_in_a_row
        child._at = now + child.backoff.wait(in_a_row, self._chance())
        for other in self._followers(child):
            self._restart_too(other, child._at)

    def _give_up(self, child: Child, failure: str) -> None:
        child.ending = "failed"
        why = f"{child.name}: more than {self._max_restarts} restarts in {self._max_seconds:g} s"
        self.story.append(f"{why}: given up")
        if child.essential or self._on_give_up(child.name):
            self.stop(f"{why}, last: {failure or 'a success'}")

    def _restart_too(self, other: Child, at: float) -> None:
        """Restart one with another that has failed."""
        self._moving.add(other)
        if other.is_there and other.ending != "stopped":
            if other.restart == "temporary":
                self._let_down(other)
            else:
                other._starts_again, other._at = True, at
        elif other.ending == "finished" and other.restart != "temporary":
            other.state, other.ending, other._at = "waiting", "", at


def _position(child: Child) -> int:
    return child._position


def _rank(child: Child) -> int:
    return child._rank
