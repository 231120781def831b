"""Supervisors, as programs have them."""

from __future__ import annotations

import os
import threading

from muontrap.errors import SupervisorFailed
from muontrap.logic.children import Child
from muontrap.logic.command import check_seconds
from muontrap.logic.supervision import MAX_RESTARTS, MAX_SECONDS
from muontrap.supervise.branch import Branch
from muontrap.supervise.checks import check_callable, check_child, check_type, names
from muontrap.supervise.daemon import Daemon
from muontrap.supervise.events import Events
from muontrap.supervise.tree import Answer, NotRunning, Tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from typing_extensions import Self

    from muontrap.logic.children import Backoff, Restart
    from muontrap.logic.supervision import Strategy
    from muontrap.supervise.branch import GiveUp, Then
    from muontrap.supervise.daemon import DaemonStatistics
    from muontrap.supervise.events import SupervisorEvent

_starting = threading.RLock()


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
        check_child(name, essential, backoff)
        check_type("max_restarts", max_restarts, int, "a number")
        check_type("max_seconds", max_seconds, (int, float), "a number")
        check_callable("on_event", on_event)
        self.name: str = name
        self.supervisor: Supervisor | None = None
        self._restart = restart
        self._essential = essential
        self._depends_on = names("depends_on", depends_on)
        self._backoff = backoff
        self._child_state: Child = self._new_child()
        self._branch = Branch(
            self,
            strategy=strategy,
            max_restarts=max_restarts,
            max_seconds=max_seconds,
            give_up=on_give_up,
            on_event=on_event,
        )
        self._branch.adopt([_checked(child) for child in children])

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
        seconds = _seconds(timeout)
        with _starting:
            if self._tree and not self._tree.is_over:
                self._tree.check_here()
                raise ValueError(f"{self.name!r} is running")
            self._branch.tree = tree = Tree(self.name, self._branch.begin)
        try:
            self._ask(tree, self._branch.when_up, timeout=seconds)
        except NotRunning:
            tree.join()  # that was quick
        self._raise_failure(tree)

    def stop(self) -> None:
        """Stop all children in reverse order, each with its grace, those at the same time that can be.

        It returns when nothing is left; from the tree's own thread, at once.
        """
        if self.supervisor:
            self.supervisor.stop_child(self.name)
        elif tree := self._tree:  # another thread may start it again, with another
            try:
                tree.call(self._branch.stop)
            except NotRunning:
                pass
            tree.join()

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
        return owner._branch.members[last]

    def which_children(self) -> list[DaemonStatistics]:
        """Return the statistics of all daemons of the tree; their names are those for `child`."""
        found = []
        for name, member in list(self._branch.members.items()):
            if isinstance(member, Daemon):
                found.append(member.statistics())
            else:
                below = member.which_children()
                for each in below:
                    each.name = f"{name}/{each.name}"
                found += below
        return found

    def start_child(self, name: str, timeout: float | None = None) -> None:
        """Start a child that is stopped; return when it is ready, or at its end.

        Raises:
            ValueError: it depends on one that is down.
        """
        self._change(name, Branch.start_child, timeout)

    def stop_child(self, name: str, timeout: float | None = None) -> None:
        """Stop a child; return when nothing of it is left. It stays down until it is started again."""
        self._change(name, Branch.stop_child, timeout)

    def restart(self, name: str, timeout: float | None = None) -> None:
        """Stop a child, and start it again; return when it is ready, or at its end.

        Raises:
            ValueError: it depends on one that is down.
        """
        self._change(name, Branch.restart_child, timeout)

    def add(self, child: Daemon | Supervisor) -> None:
        """Take one more child, behind the others, and start it, if this supervisor runs.

        Raises:
            ValueError: its name is taken, or it depends on nobody, or is another's child.
        """
        _checked(child)
        with _starting:
            tree = self._root_tree
            if tree is None or tree.is_over:
                self._branch.adopt([child])
                return
        tree.call(self._branch.add, child)

    def remove(self, name: str, timeout: float | None = None) -> None:
        """Stop a child, and forget it.

        Raises:
            ValueError: others depend on it.
        """
        owner, last = self._owner_of(name)
        seconds = _seconds(timeout)
        with _starting:
            tree = owner._root_tree
            if tree is None or tree.is_over:
                owner._branch.machine.remove(last)
                owner._branch.let_go_of(last)
                return
        self._ask(tree, owner._branch.remove, last, timeout=seconds)

    def events(self) -> Iterator[SupervisorEvent]:
        """Return an iterator over what happens from now on, until the tree has ended."""
        tree, listener = self._running(), Events()
        try:
            tree.call(tree.listen, listener)
        except NotRunning:
            listener.put(None)
        return listener

    def __repr__(self) -> str:
        return f"<Supervisor {self.name!r} of {', '.join(self._branch.members) or 'nobody'}>"

    # What follows is for the tree.

    def _begin(self, above: Branch) -> None:
        """Start, as a child, in the thread of the tree."""
        assert above.tree is not None
        self._branch.begin(above.tree)

    def _end(self) -> None:
        """Stop, as a child."""
        self._branch.stop()

    def _new_child(self) -> Child:
        """Return how the machine of its supervisor sees it, at the beginning."""
        return Child(
            self.name,
            self._restart,
            depends_on=self._depends_on,
            essential=self._essential,
            backoff=self._backoff,
        )

    def _owner_of(self, path: str) -> tuple[Supervisor, str]:
        check_type("name", path, str, "a string")
        owner: Daemon | Supervisor | None = self
        *above, last = path.split("/")
        for name in above:
            owner = owner._branch.members.get(name) if isinstance(owner, Supervisor) else None
        if not isinstance(owner, Supervisor) or last not in owner._branch.members:
            raise KeyError(f"there is no child {path!r}")
        return owner, last

    @property
    def _tree(self) -> Tree | None:
        return self._branch.tree

    @property
    def _root_tree(self) -> Tree | None:
        """The tree that this is in, or will be when its turn has come."""
        return self.supervisor._root_tree if self.supervisor else self._tree

    def _change(self, path: str, act: Callable[[Branch, str, Then], None], timeout: float | None) -> None:
        owner, name = self._owner_of(path)
        tree, seconds = owner._running(), _seconds(timeout)
        self._ask(tree, act, owner._branch, name, timeout=seconds)

    def _ask(self, tree: Tree, act: Callable[..., None], *arguments: object, timeout: float | None) -> None:
        """Have something done in the tree, and wait until it is, unless that would be for oneself."""
        done = Answer()
        tree.call(act, *arguments, done.give)
        if not tree.is_here and not done.wait(timeout):
            raise TimeoutError(f"{self.name!r} takes longer than {timeout:g} s")

    def _running(self) -> Tree:
        tree = self._root_tree
        if tree is None:
            raise ValueError(f"{self.name!r} was not started")
        tree.check_here()
        return tree

    def _raise_failure(self, tree: Tree) -> None:
        if tree.failure:
            raise SupervisorFailed(f"{self.name}: {tree.failure}", tuple(tree.story))


def _seconds(timeout: float | None) -> float | None:
    return None if timeout is None else min(check_seconds("timeout", timeout), threading.TIMEOUT_MAX)


def _checked(member: Daemon | Supervisor) -> Daemon | Supervisor:
    if not isinstance(member, (Daemon, Supervisor)):
        raise TypeError(f"a child must be a Daemon or a Supervisor, not {member!r}")
    return member


def _renew_in_child() -> None:
    """In a forked child, nobody may be there to release it."""
    global _starting
    _starting = threading.RLock()


os.register_at_fork(after_in_child=_renew_in_child)
