"""A supervisor as its tree's thread has it: does what the machine says, and tells it what happened."""

from __future__ import annotations

import os
import time
import weakref

from muontrap.logic.supervision import Supervision
from muontrap.supervise import log
from muontrap.supervise.events import SupervisorEvent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Literal, TypeAlias

    from muontrap.host.link import Link
    from muontrap.logic.children import Child
    from muontrap.logic.supervision import Strategy
    from muontrap.supervise.daemon import Daemon
    from muontrap.supervise.loop import Loop, Timer
    from muontrap.supervise.supervisor import Supervisor
    from muontrap.supervise.tree import Tree

    Then: TypeAlias = Callable[[], object]
    GiveUp: TypeAlias = "Literal['stop_all', 'ignore'] | Callable[[str, str], Literal['stop_all', 'ignore']]"

_LEVELS = {"exited": log.WARNING, "gave-up": log.ERROR}


class Branch:
    """One machine, and the members that it starts and stops.

    While there is a tree, all of this is for its thread.

    Args:
        owner: the supervisor that this is.
        strategy, max_restarts, max_seconds, give_up, on_event: its arguments.

    Attributes:
        members: daemons and supervisors by name.
        machine: decides; one for each start.
        tree: of the last start, None before.
    """

    def __init__(
        self,
        owner: Supervisor,
        *,
        strategy: Strategy,
        max_restarts: int,
        max_seconds: float,
        give_up: GiveUp,
        on_event: Callable[[SupervisorEvent], object] | None,
    ) -> None:
        self.members: dict[str, Daemon | Supervisor] = {}
        self.tree: Tree | None = None
        self._owner = owner
        self._strategy = strategy
        self._max_restarts = max_restarts
        self._max_seconds = max_seconds
        self._give_up = give_up
        self._on_event = on_event
        self._timer: Timer | None = None
        self._is_due = False
        self._is_up = False
        self._late: set[str] = set()  # those that were not ready yet, until it is up
        self._dead: weakref.WeakSet[Link] = weakref.WeakSet()  # guards whose death was counted
        self._waiters: list[tuple[Callable[[], object], Then]] = []
        self.machine: Supervision = self._new_machine()

    @property
    def loop(self) -> Loop:
        """The loop of the tree."""
        assert self.tree is not None
        return self.tree.loop

    # Who the members are.

    def adopt(self, members: Iterable[Daemon | Supervisor]) -> None:
        """Take some more, all or none, before the start."""
        entered: list[str] = []
        try:
            for member in members:
                self._enter(member)
                entered.append(member.name)
            self._renew()
        except BaseException:
            for name in entered:
                self.let_go_of(name)
            raise

    def add(self, member: Daemon | Supervisor) -> None:
        """Take one more, and start it; one that is stopped, or at its end, starts it the next time."""
        if self.machine.outcome is not None or not self._has_begun:
            self.adopt([member])
            return
        self._enter(member)
        try:
            self.machine.add(member._child_state)
        except BaseException:
            self.let_go_of(member.name)
            raise
        self._late.add(member.name)
        self._due()

    def remove(self, name: str, then: Then) -> None:
        """Stop one, and forget it; say so."""
        child = self.machine.children[name]
        self.machine.remove(name)
        if not child.is_there:
            self.let_go_of(name)
        self._until(lambda: child.is_settled, then)

    def let_go_of(self, name: str) -> None:
        """Forget one that was removed."""
        self.members.pop(name).supervisor = None
        self._late.discard(name)

    def _enter(self, member: Daemon | Supervisor) -> None:
        if member.supervisor:
            raise ValueError(f"{member.name!r} has a supervisor already: {member.supervisor.name!r}")
        if member.name in self.members:
            raise ValueError(f"there are two children named {member.name!r}: names must be unique")
        member.supervisor = self._owner
        self.members[member.name] = member

    def _renew(self) -> None:
        self.machine = self._new_machine()

    def _new_machine(self) -> Supervision:
        for member in self.members.values():
            member._child_state = member._new_child()
        return Supervision(
            [member._child_state for member in self.members.values()],
            strategy=self._strategy,
            max_restarts=self._max_restarts,
            max_seconds=self._max_seconds,
            on_give_up=self._decide,
            chance=_chance,
        )

    # What others ask for.

    def begin(self, tree: Tree) -> None:
        """Start all."""
        self.tree = tree
        self._renew()
        self._is_up = self._is_due = False
        self._late = set(self.members)
        above = self._above
        if above:
            above.has_started(self._owner.name)
        self.machine.start()
        self._due()

    def stop(self) -> None:
        """Stop all."""
        self.machine.stop()
        self._due()

    def start_child(self, name: str, then: Then) -> None:
        """Start one that is stopped; say when it is done, or never will be."""
        self._check_can_start(name)
        self._ask(Supervision.start_child, name, then)

    def stop_child(self, name: str, then: Then) -> None:
        """Stop one; say when it is done."""
        self._ask(Supervision.stop_child, name, then)

    def restart_child(self, name: str, then: Then) -> None:
        """Stop one, and start it again; say when it is done, or never will be."""
        self._check_can_start(name)
        self._ask(Supervision.restart_child, name, then)

    def when_up(self, then: Then) -> None:
        """Say when all have been ready once, or are down for good; or at the end."""
        self._until(lambda: self._is_up, then)

    def _check_can_start(self, name: str) -> None:
        if self._above and not self._owner._child_state.is_there:
            raise ValueError(f"group {self._owner.name!r} is down: start that before")
        missing = self.machine.blocker(name)
        if missing and not self.machine.is_ending:
            raise ValueError(f"{name!r} depends on {missing!r}, which is down: start that before")

    def _ask(self, act: Callable[[Supervision, str], None], name: str, then: Then) -> None:
        machine, child = self.machine, self.machine.children[name]
        act(machine, name)
        self._until(lambda: child.is_settled or (child.state == "waiting" and machine.blocker(name)), then)

    def _until(self, condition: Callable[[], object], then: Then) -> None:
        if self.machine.outcome is not None:
            then()
            return
        if condition():
            then()
        else:
            self._waiters.append((condition, then))
        self._due()

    # What members tell.

    def has_started(self, name: str) -> None:
        """One runs."""
        self._tell("restarted" if self.machine.children[name].restarts else "started", name)

    def has_become_ready(self, name: str) -> None:
        """One is of use, unless it is to end by now."""
        if self.machine.children[name].state != "starting":
            return
        self.machine.ready(name, time.monotonic())
        self._late.discard(name)
        self._tell("ready", name)
        self._answer()  # now, for it may be over when `_step` comes
        self._due()

    def has_exited(self, name: str, failure: str, why: str = "", dead: Link | None = None) -> None:
        """One has ended; `why`, if that is no failure.

        The death of its guard is one failure, however many had that guard.
        """
        counted = dead is None or dead not in self._dead
        if dead is not None:
            self._dead.add(dead)
        self._tell("exited", name, why or failure)
        child = self.machine.children[name]
        self.machine.exited(name, failure, time.monotonic(), is_counted=counted)
        if child.ending == "failed" and child.restart != "temporary":
            self._tell("gave-up", name, failure)
        member = self.members.get(name)  # another, if who was told has removed and replaced it
        if child.is_removed and member and member._child_state is child:
            self.let_go_of(name)
        self._due()

    # What comes of it.

    @property
    def _has_begun(self) -> bool:
        """Whether it has a tree that lives; one that waits for its turn has not."""
        return self.tree is not None and not self.tree.is_over

    @property
    def _above(self) -> Branch | None:
        return self._owner.supervisor._branch if self._owner.supervisor else None

    def _due(self) -> None:
        """Look at what is to be done, once, soon."""
        if not self._is_due and self._has_begun:
            self._is_due = True
            self.loop.soon(self._step)

    def _step(self) -> None:
        self._is_due = False
        loop = self.loop
        for action, name in self.machine.actions(time.monotonic()):
            if action == "start":
                self.members[name]._begin(self)
            else:
                self.members[name]._end()
        loop.cancel(self._timer)
        deadline = self.machine.deadline
        self._timer = None
        if deadline is not None:
            self._timer = loop.later(deadline - time.monotonic(), self._due)
        self._look_up()

    def _look_up(self) -> None:
        """Say what has become true."""
        machine = self.machine
        if not self._is_up and (machine.outcome is not None or self._has_come_up()):
            self._is_up = True
            self._late = set()
            if self._above and machine.outcome is None:
                self._above.has_become_ready(self._owner.name)
        self._answer()
        if machine.outcome is not None:
            self._has_ended(machine.outcome)

    def _answer(self) -> None:
        """Tell those who wait for what is so now, and all of them at the end."""
        waiting, self._waiters = self._waiters, []
        for condition, then in waiting:
            if self.machine.outcome is not None or condition():
                then()
            else:
                self._waiters.append((condition, then))

    def _has_come_up(self) -> bool:
        """Whether all were ready or are down; those too that come and go, or it might never be so."""
        machine = self.machine
        if machine.is_ending:
            return False
        return all(machine.children[name].is_settled for name in self._late) or machine.is_settled

    def _has_ended(self, outcome: str) -> None:
        child: Child = self._owner._child_state
        if not self._above:
            assert self.tree is not None
            self.tree.end(outcome, list(self.machine.story))
        elif child.is_there:
            why = "stopped" if child.state == "stopping" else "success"
            self._above.has_exited(self._owner.name, outcome, outcome or why)

    def _tell(self, kind: str, name: str, why: str = "") -> None:
        path, root = [name], self
        while root._above:
            path.append(root._owner.name)
            root = root._above
        event = SupervisorEvent(kind, "/".join(reversed(path)), why)
        level = log.INFO if why in ("success", "stopped") else _LEVELS.get(kind, log.INFO)
        log.write(level, "%s %s%s", event.name, kind, why and f": {why}")
        assert self.tree is not None
        for listener in self.tree.listeners:
            listener.put(event)
        if root._on_event:
            try:
                root._on_event(event)
            except BaseException as error:
                log.failure(error, "on_event has failed on %r", event)

    def _decide(self, name: str) -> bool:
        """Whether all is to be stopped, as one is given up."""
        answer: object = self._give_up
        if callable(self._give_up):
            try:
                answer = self._give_up(name, "\n".join(self.machine.story))
            except BaseException as error:
                log.failure(error, "on_give_up has failed, told of %s: all is stopped", name)
        return answer != "ignore"


def _chance() -> float:
    """Return a random number from 0 to 1. For `random`, there would be a module more."""
    return int.from_bytes(os.urandom(4), "big") / 2**32
