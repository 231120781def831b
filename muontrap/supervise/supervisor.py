"""Supervisors: a tree of them, in one thread."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import random
import threading
import time
import weakref
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from muontrap.errors import SupervisorFailed
from muontrap.logic.command import check_seconds
from muontrap.logic.supervision import MAX_RESTARTS, MAX_SECONDS, Child, Supervision
from muontrap.supervise.daemon import Daemon, check_callable, check_child, check_type, names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Literal, TypeAlias, TypeVar

    from typing_extensions import Self

    from muontrap.host.link import Link
    from muontrap.logic.supervision import Backoff, Restart, Strategy
    from muontrap.supervise.daemon import DaemonStatistics

    T = TypeVar("T")
    GiveUp: TypeAlias = "Literal['stop_all', 'ignore'] | Callable[[str, str], Literal['stop_all', 'ignore']]"

_log = logging.getLogger("muontrap.supervisor")
_LEVELS = {"exited": logging.WARNING, "gave-up": logging.ERROR}


class SupervisorEvent:
    """Something that happened in a tree.

    Attributes:
        kind: "started", "ready", "exited", "restarted" or "gave-up".
        name: whose: names from below the root on, with slashes between.
        why: why it exited, or was given up; else "".
        when: seconds since the epoch.
    """

    def __init__(self, kind: str, name: str, why: str) -> None:
        self.kind: str = kind
        self.name: str = name
        self.why: str = why
        self.when: float = time.time()

    def __repr__(self) -> str:
        return f"<SupervisorEvent {self.name} {self.kind}{self.why and f': {self.why}'}>"


class Supervisor:
    """Keeps its children running: daemons, and other supervisors.

    One thread serves the whole tree.  All methods may be called from any other thread; from that one
    (in `on_event`, say) those that do not wait.

    Args:
        children: in the order of their start.
        name: unique among its siblings.
        strategy: who else is restarted when a child fails: "one_for_one" (nobody), "one_for_all", or
            "rest_for_one" (those after it).
        max_restarts, max_seconds: restart intensity: one restart more in that time is too much.
        on_give_up: what happens then: "stop_all" ends the supervisor, which has failed; "ignore" leaves
            that child down; or a function of the child's name and the story that returns one of these.
        on_event: called with each `SupervisorEvent` of the tree, in its thread.
        restart, essential, depends_on, backoff: as for a `Daemon`, where it is a child itself.
    """

    def __init__(
        self,
        children: Iterable[Daemon | Supervisor] = (),
        *,
        name: str = "supervisor",
        strategy: Strategy = "one_for_one",
        max_restarts: int = MAX_RESTARTS,
        max_seconds: float = MAX_SECONDS,
        on_give_up: GiveUp = "stop_all",
        on_event: Callable[[SupervisorEvent], object] | None = None,
        restart: Restart = "permanent",
        essential: bool = False,
        depends_on: Sequence[str] = (),
        backoff: Backoff | None = None,
    ) -> None:
        if on_give_up not in ("stop_all", "ignore") and not callable(on_give_up):
            raise ValueError(f"on_give_up must be 'stop_all', 'ignore' or callable, not {on_give_up!r}")
        check_child(name, backoff)
        check_type("max_restarts", max_restarts, int, "a number")
        check_type("max_seconds", max_seconds, (int, float), "a number")
        check_callable("on_event", on_event)
        self.name: str = name
        self.supervisor: Supervisor | None = None
        self._strategy = strategy
        self._max_restarts = max_restarts
        self._max_seconds = max_seconds
        self._give_up = on_give_up
        self._on_event = on_event
        self._restart = restart
        self._essential = essential
        self._depends_on = names("depends_on", depends_on)
        self._backoff = backoff
        self._child_state: Child = self._new_child()
        self._members: dict[str, Daemon | Supervisor] = {}
        self._tree: _Tree | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False
        self._is_up = False
        self._was_ready: set[str] = set()  # since the start
        self._dead: weakref.WeakSet[Link] = weakref.WeakSet()  # guards whose death was counted
        self._waiters: list[tuple[Callable[[], bool], Future[None]]] = []
        try:
            for member in children:
                self._adopt(member)
            self._machine = self._new_machine()
        except BaseException:
            for member in self._members.values():
                member.supervisor = None
            raise

    def start(self, timeout: float | None = None) -> None:
        """Start all children; return when they are ready, or at their end.

        Args:
            timeout: seconds to wait; None for no limit.  What was started goes on.

        Raises:
            SupervisorFailed: it gave up.
            TimeoutError: it takes longer.
            ValueError: it was started already, or is another's child.
        """
        if self.supervisor:
            raise ValueError(f"{self.name!r} is started by its supervisor, {self.supervisor.name!r}")
        if self._tree and not self._tree.is_over:
            self._tree.check_here()
            raise ValueError(f"{self.name!r} is running")
        seconds = _seconds(timeout)
        self._tree = tree = _Tree(self)
        waits = tree.call(self._start_root)
        self._wait_for(waits, seconds)
        self._raise_failure(tree)

    def stop(self) -> None:
        """Stop all children in reverse order, each with its grace, those at the same time that can be.

        It returns when nothing is left; from the tree's own thread, at once.
        """
        if self.supervisor:
            self.supervisor.stop_child(self.name)
        elif self._tree:
            try:
                self._tree.call(self._stop_all)
            except NotRunning:
                pass
            self._tree.join()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the root has ended; False if that took longer.

        Args:
            timeout: seconds; None for no limit.

        Raises:
            SupervisorFailed: it gave up, or an essential child has failed.
            RuntimeError: this is the tree's own thread, which would wait for itself.
        """
        tree = self._running()
        if tree.is_here:
            raise RuntimeError(f"{self.name!r} can't be waited for by the thread that serves it")
        if not tree.ended.wait(_seconds(timeout)):
            return False
        tree.join()
        self._raise_failure(tree)
        return True

    def __enter__(self) -> Self:
        try:
            self.start()
        except ValueError:
            raise  # it runs already, and goes on
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if error is None and self._tree:
            self._raise_failure(self._tree)

    def child(self, name: str) -> Daemon | Supervisor:
        """Return a child, or one further down: "group/web".

        Raises:
            KeyError: there is none.
        """
        owner, last = self._owner_of(name)
        return owner._members[last]

    def which_children(self) -> list[DaemonStatistics]:
        """Return the statistics of all daemons of the tree; their names are those for `child`."""
        found = []
        for name, member in list(self._members.items()):
            if isinstance(member, Daemon):
                found.append(member.statistics())
            else:
                below = member.which_children()
                for each in below:
                    each.name = f"{name}/{each.name}"
                found += below
        return found

    def start_child(self, name: str, timeout: float | None = None) -> None:
        """Start a child that is stopped; return when it is ready, or at its end."""
        self._change(name, Supervision.start_child, timeout)

    def stop_child(self, name: str, timeout: float | None = None) -> None:
        """Stop a child; return when nothing of it is left. It stays down until it is started again."""
        self._change(name, Supervision.stop_child, timeout)

    def restart(self, name: str, timeout: float | None = None) -> None:
        """Stop a child, and start it again; return when it is ready, or at its end."""
        self._change(name, Supervision.restart_child, timeout)

    def add(self, child: Daemon | Supervisor) -> None:
        """Take one more child, behind the others, and start it, if this supervisor runs.

        Raises:
            ValueError: its name is taken, or it depends on nobody, or is another's child.
        """
        if self._tree is None or self._tree.is_over:
            self._adopt(child)
            self._machine = self._try(self._new_machine, child)
        else:
            self._tree.call(self._add, child)

    def remove(self, name: str, timeout: float | None = None) -> None:
        """Stop a child, and forget it.

        Raises:
            ValueError: others depend on it.
        """
        owner, last = self._owner_of(name)
        seconds = _seconds(timeout)
        if owner._tree and not owner._tree.is_over:
            self._wait_for(owner._tree.call(owner._remove, last), seconds)
        else:
            owner._machine.remove(last)
            owner._let_go_of(last)

    def events(self) -> Iterator[SupervisorEvent]:
        """Return an iterator over what happens from now on, until the tree has ended."""
        tree = self._running()
        listener: queue.SimpleQueue[SupervisorEvent | None] = queue.SimpleQueue()
        try:
            tree.call(tree.listen, listener)
        except NotRunning:
            listener.put(None)
        return iter(listener.get, None)

    def __repr__(self) -> str:
        return f"<Supervisor {self.name!r} of {', '.join(self._members) or 'nobody'}>"

    # What follows, up to the next remark, is for the thread of the tree.

    def _begin(self, owner: Supervisor) -> None:
        """Start, as a child."""
        self._tree = owner._tree
        self._machine = self._new_machine()
        self._is_up = self._is_due = False
        self._was_ready = set()
        owner._has_started(self.name)
        self._machine.start()
        self._due()

    def _end(self) -> None:
        """Stop, as a child."""
        self._stop_all()

    @property
    def _loop(self) -> asyncio.AbstractEventLoop:
        """The event loop of the tree."""
        assert self._tree is not None
        return self._tree.loop

    def _has_started(self, name: str) -> None:
        """A child runs."""
        self._tell("restarted" if self._machine.children[name].restarts else "started", name)

    def _has_become_ready(self, name: str) -> None:
        """A child is of use, unless it is to end by now."""
        if self._machine.children[name].state != "starting":
            return
        self._machine.ready(name, time.monotonic())
        self._was_ready.add(name)
        self._tell("ready", name)
        self._due()

    def _has_exited(self, name: str, failure: str, why: str = "", dead: Link | None = None) -> None:
        """A child has ended; `why`, if that is no failure.

        The death of its guard is one failure, however many children had that guard.
        """
        counted = dead is None or dead not in self._dead
        if dead is not None:
            self._dead.add(dead)
        self._tell("exited", name, why or failure)
        child = self._machine.children[name]
        self._machine.exited(name, failure, time.monotonic(), is_counted=counted)
        if child.ending == "failed" and child.restart != "temporary":
            self._tell("gave-up", name, failure)
        if child.is_removed:
            self._let_go_of(name)
        self._due()

    def _start_root(self) -> Future[None]:
        self._machine = self._new_machine()
        self._is_up = self._is_due = False
        self._was_ready = set()
        self._machine.start()
        self._due()
        return self._until(lambda: self._is_up)

    def _stop_all(self) -> None:
        self._machine.stop()
        self._due()

    def _due(self) -> None:
        """Look at what is to be done, once, soon."""
        if not self._is_due and self._tree:
            self._is_due = True
            self._tree.loop.call_soon(self._step)

    def _step(self) -> None:
        self._is_due = False
        machine, tree = self._machine, self._tree
        assert tree is not None
        for action, name in machine.actions(time.monotonic()):
            if action == "start":
                self._members[name]._begin(self)
            else:
                self._members[name]._end()
        if self._timer:
            self._timer.cancel()
        deadline = machine.deadline
        self._timer = None
        if deadline is not None:
            self._timer = tree.loop.call_later(max(0.0, deadline - time.monotonic()), self._due)
        self._look_up(tree)

    def _look_up(self, tree: _Tree) -> None:
        """Say what has become true."""
        machine = self._machine
        # One that comes and goes counts as well: else with a few of these it would never be so.
        were_up = (name in self._was_ready or child.is_settled for name, child in machine.children.items())
        is_up = not machine.is_ending and (machine.is_settled or all(were_up))
        if not self._is_up and (is_up or machine.outcome is not None):
            self._is_up = True
            if self.supervisor and machine.outcome is None:
                self.supervisor._has_become_ready(self.name)
        waiting, self._waiters = self._waiters, []
        for condition, future in waiting:
            if machine.outcome is not None or condition():
                future.set_result(None)
            else:
                self._waiters.append((condition, future))
        if machine.outcome is not None:
            if not self.supervisor:
                tree.end(machine.outcome, list(machine.story))
            elif self._child_state.is_there:
                why = "stopped" if self._child_state.state == "stopping" else "success"
                self.supervisor._has_exited(self.name, machine.outcome, machine.outcome or why)

    def _until(self, condition: Callable[[], bool]) -> Future[None]:
        future: Future[None] = Future()
        if self._machine.outcome is None:
            self._waiters.append((condition, future))
            self._due()
        else:
            future.set_result(None)
        return future

    def _add(self, child: Daemon | Supervisor) -> None:
        self._adopt(child)
        if self._machine.outcome is not None:  # a group that is stopped, or at its end
            self._machine = self._try(self._new_machine, child)
            return
        self._try(lambda: self._machine.add(child._child_state), child)
        self._due()

    def _ask(self, act: Callable[[Supervision, str], None], name: str) -> Future[None]:
        child = self._machine.children[name]
        act(self._machine, name)
        return self._until(lambda: child.is_settled)

    def _remove(self, name: str) -> Future[None]:
        child = self._machine.children[name]
        gone = self._ask(Supervision.remove, name)
        if not child.is_there:
            self._let_go_of(name)
        return gone

    def _tell(self, kind: str, name: str, why: str = "") -> None:
        path = [name]
        owner = self
        while owner.supervisor:
            path.append(owner.name)
            owner = owner.supervisor
        event = SupervisorEvent(kind, "/".join(reversed(path)), why)
        level = logging.INFO if why in ("success", "stopped") else _LEVELS.get(kind, logging.INFO)
        _log.log(level, "%s %s%s", event.name, kind, why and f": {why}")
        assert self._tree is not None
        for listener in self._tree.listeners:
            listener.put(event)
        if owner._on_event:
            try:
                owner._on_event(event)
            except Exception:
                _log.exception("on_event has failed on %r", event)

    def _decide(self, name: str) -> bool:
        """Whether all is to be stopped, as a child is given up."""
        answer: object = self._give_up
        if callable(self._give_up):
            try:
                answer = self._give_up(name, "\n".join(self._machine.story))
            except Exception:
                _log.exception("on_give_up has failed, told of %s: all is stopped", name)
        return answer != "ignore"

    # For any thread.

    def _new_child(self) -> Child:
        """Return how the machine of its supervisor sees it, at the beginning."""
        return Child(
            self.name,
            self._restart,
            depends_on=self._depends_on,
            essential=self._essential,
            backoff=self._backoff,
        )

    def _new_machine(self) -> Supervision:
        for member in self._members.values():
            member._child_state = member._new_child()
        return Supervision(
            [member._child_state for member in self._members.values()],
            strategy=self._strategy,
            max_restarts=self._max_restarts,
            max_seconds=self._max_seconds,
            on_give_up=self._decide,
            chance=random.random,
        )

    def _adopt(self, member: Daemon | Supervisor) -> None:
        if not isinstance(member, (Daemon, Supervisor)):
            raise TypeError(f"a child must be a Daemon or a Supervisor, not {member!r}")
        if member.supervisor:
            raise ValueError(f"{member.name!r} has a supervisor already: {member.supervisor.name!r}")
        if member.name in self._members:
            raise ValueError(f"there are two children named {member.name!r}: names must be unique")
        member.supervisor = self
        self._members[member.name] = member

    def _try(self, act: Callable[[], T], child: Daemon | Supervisor) -> T:
        """Do what may refuse a child that has been adopted."""
        try:
            return act()
        except BaseException:
            del self._members[child.name]
            child.supervisor = None
            raise

    def _let_go_of(self, name: str) -> None:
        """A child was removed."""
        self._members.pop(name).supervisor = None

    def _owner_of(self, path: str) -> tuple[Supervisor, str]:
        owner: Daemon | Supervisor | None = self
        *above, last = path.split("/")
        for name in above:
            owner = owner._members.get(name) if isinstance(owner, Supervisor) else None
        if not isinstance(owner, Supervisor) or last not in owner._members:
            raise KeyError(f"there is no child {path!r}")
        return owner, last

    def _change(self, path: str, act: Callable[[Supervision, str], None], timeout: float | None) -> None:
        owner, name = self._owner_of(path)
        tree, seconds = owner._running(), _seconds(timeout)
        self._wait_for(tree.call(owner._ask, act, name), seconds)

    def _wait_for(self, future: Future[None], seconds: float | None) -> None:
        if self._tree and self._tree.is_here:
            return
        try:
            future.result(seconds)
        except FutureTimeout:  # in Python 3.10, another than the builtin
            raise TimeoutError(f"{self.name!r} takes longer than {seconds:g} s") from None

    def _wait_until_up(self) -> None:
        """Wait until all children are ready, or at their end."""
        self._running().call(self._until, lambda: self._is_up).result()

    def _running(self) -> _Tree:
        tree = self.supervisor._running() if self.supervisor else self._tree
        if tree is None:
            raise ValueError(f"{self.name!r} was not started")
        tree.check_here()
        return tree

    def _raise_failure(self, tree: _Tree) -> None:
        if tree.failure:
            raise SupervisorFailed(f"{self.name}: {tree.failure}", tuple(tree.story))


def _seconds(timeout: float | None) -> float | None:
    return None if timeout is None else check_seconds("timeout", timeout)


class NotRunning(ValueError):
    """The tree has ended: there is nobody to ask."""


class _Tree:
    """The thread of a root and of all below it."""

    def __init__(self, root: Supervisor) -> None:
        self.loop = asyncio.new_event_loop()
        # Of no use to who debugs a loop of his own: a guard's start takes longer than it likes to see.
        self.loop.set_debug(False)
        self.listeners: list[queue.SimpleQueue[SupervisorEvent | None]] = []
        self.ended = threading.Event()
        self.failure = ""
        self.story: list[str] = []
        self._pid = os.getpid()
        self._name = root.name
        self._lock = threading.Lock()
        self._has_ended = False
        self._is_ending = False  # nobody is called any more; under the lock
        self.thread = threading.Thread(target=self._serve, name=f"muontrap-{root.name}", daemon=True)
        self.thread.start()

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is left."""
        return self.ended.is_set()

    @property
    def is_here(self) -> bool:
        """Whether this is its thread."""
        return threading.current_thread() is self.thread

    def check_here(self) -> None:
        """Raise if this is a forked child's copy."""
        if os.getpid() != self._pid:
            raise ValueError(f"{self._name!r} belongs to the process that this one was forked from")

    def call(self, function: Callable[..., T], *args: object) -> T:
        """Call in the tree's thread, and return what that returns.

        Raises:
            NotRunning: it has ended.
        """
        self.check_here()
        if self.is_here:
            return function(*args)
        answer: Future[T] = Future()

        def act() -> None:
            try:
                answer.set_result(function(*args))
            except BaseException as error:
                answer.set_exception(error)

        with self._lock:
            if self._is_ending:
                raise NotRunning(f"{self._name!r} is not running")
            self.loop.call_soon_threadsafe(act)
        return answer.result()

    def listen(self, listener: queue.SimpleQueue[SupervisorEvent | None]) -> None:
        """Tell one more of what happens."""
        self.listeners.append(listener)
        if self._has_ended:
            listener.put(None)

    def end(self, failure: str, story: list[str]) -> None:
        """The root has ended."""
        self._has_ended = True
        self.failure, self.story = failure, story
        for listener in self.listeners:
            listener.put(None)
        self.loop.stop()

    def join(self) -> None:
        """Wait for the thread, unless this is it."""
        if not self.is_here:
            self.thread.join()

    def _serve(self) -> None:
        try:
            self.loop.run_forever()
            with self._lock:
                self._is_ending = True
            self.loop.run_until_complete(self._finish())
        finally:
            self.ended.set()
            self.loop.close()

    async def _finish(self) -> None:
        """Answer those who have asked meanwhile, and end what is on its way."""
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
