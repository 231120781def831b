"""What is to be kept running, as a file describes it: to be built, or compared with what there is.

Pure values, so that one process can read a file and another run what it says.
"""

from __future__ import annotations

from graphlib import TopologicalSorter

from muontrap.supervise.daemon import Daemon
from muontrap.supervise.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, Literal, TypeAlias

    from muontrap.supervise.events import SupervisorEvent

    Kind: TypeAlias = Literal["daemon", "group"]


class Member:
    """A daemon, or a group of them: a supervisor.

    Attributes:
        kind: "daemon" or "group".
        name: as in the header of its table.
        values: arguments by name, as the library takes them; of a daemon also `command`.
        members: of a group, in the order of the file.
    """

    def __init__(self, kind: Kind, name: str, values: dict[str, Any], members: tuple[Member, ...]) -> None:
        self.kind: Kind = kind
        self.name: str = name
        self.values: dict[str, Any] = values
        self.members: tuple[Member, ...] = members

    def build(self) -> Daemon | Supervisor:
        """Make what it describes."""
        if self.kind == "group":
            return Supervisor([each.build() for each in self.members], name=self.name, **self.values)
        options = dict(self.values)
        return Daemon(options.pop("command"), name=self.name, **options)

    def daemons(self) -> Iterator[str]:
        """Yield the names of the daemons, as `Supervisor.child` takes them."""
        if self.kind == "daemon":
            yield self.name
        for each in self.members:
            yield from (f"{self.name}/{name}" for name in each.daemons())

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name!r}>"


class Plan:
    """What a file says, all of it checked.

    Attributes:
        path: of the file.
        settings: arguments of the supervisor, by name.
        members: its children, in the order of the file.
    """

    def __init__(self, path: str, settings: dict[str, Any], members: tuple[Member, ...]) -> None:
        self.path: str = path
        self.settings: dict[str, Any] = settings
        self.members: tuple[Member, ...] = members

    @property
    def daemons(self) -> list[str]:
        """The names of all daemons, as `Supervisor.child` takes them."""
        return [name for member in self.members for name in member.daemons()]

    def build(self, on_event: Callable[[SupervisorEvent], object] | None = None) -> Supervisor:
        """Make the supervisor, with all its children."""
        children = [member.build() for member in self.members]
        return Supervisor(children, on_event=on_event, **self.settings)

    def build_child(self, path: str) -> Daemon | Supervisor:
        """Make one of the children, or one further down: "group/web".

        Raises:
            KeyError: there is none.
        """
        members = self.members
        found = None
        for name in path.split("/"):
            found = next((member for member in members if member.name == name), None)
            if found is None:
                raise KeyError(f"there is no child {path!r}")
            members = found.members
        assert found is not None
        return found.build()

    def __repr__(self) -> str:
        return f"<Plan of {self.path!r}: {', '.join(self.daemons)}>"


class Changes:
    """What makes of a supervisor as one file had it one as another has it: first `remove`, then `add`.

    Attributes:
        remove: paths for `Supervisor.remove`, in an order in which nobody is removed that another depends on.
        add: paths for `Plan.build_child`, in an order in which nobody is added before whom it depends on.
        replace: those that are in both.
        needs_restart: names of the root's own settings that are others: those can't be changed while it runs.
    """

    def __init__(
        self, remove: Iterable[str] = (), add: Iterable[str] = (), needs_restart: Iterable[str] = ()
    ) -> None:
        self.remove: tuple[str, ...] = tuple(remove)
        self.add: tuple[str, ...] = tuple(add)
        self.replace: tuple[str, ...] = tuple(name for name in self.add if name in self.remove)
        self.needs_restart: tuple[str, ...] = tuple(needs_restart)

    def __bool__(self) -> bool:
        return bool(self.remove or self.add or self.needs_restart)

    def __repr__(self) -> str:
        return f"Changes(remove={self.remove}, add={self.add}, needs_restart={self.needs_restart})"


def changes(old: Plan, new: Plan) -> Changes:
    """Return what is to be done that a supervisor built of `old` is as `new` says.

    A daemon or group is replaced if its own keys have changed; if it depends on one that is replaced; and
    with "rest_for_one", if its place has changed, or one before it is replaced or added.
    """
    settings = old.settings.keys() | new.settings.keys()
    needs_restart = [key for key in sorted(settings) if old.settings.get(key) != new.settings.get(key)]
    ordered = "rest_for_one" in (old.settings.get("strategy"), new.settings.get("strategy"))
    remove, add = _differences("", old.members, new.members, ordered)
    return Changes(remove, add, needs_restart)


def _differences(
    prefix: str, old: tuple[Member, ...], new: tuple[Member, ...], ordered: bool
) -> tuple[list[str], list[str]]:
    before = {member.name: member for member in old}
    kept = [
        each.name
        for each in new
        if each.name in before
        and (each.kind, each.values) == (before[each.name].kind, before[each.name].values)
    ]
    while kept != (still := _still_kept(kept, old, new, ordered)):
        kept = still
    remove = [prefix + name for name in reversed(_needed_first(old, ordered)) if name not in kept]
    add = [prefix + name for name in _needed_first(new, ordered) if name not in kept]
    for member in new:
        if member.name in kept:
            below = member.values.get("strategy") == "rest_for_one"
            path = f"{prefix}{member.name}/"
            removed, added = _differences(path, before[member.name].members, member.members, below)
            remove, add = [*remove, *removed], [*add, *added]
    return remove, add


def _still_kept(
    kept: list[str], old: tuple[Member, ...], new: tuple[Member, ...], ordered: bool
) -> list[str]:
    """Return those whose dependencies are kept too; if the order counts, none behind one that is not.

    What is added comes behind all that are there.
    """
    still = [each.name for each in new if each.name in kept and set(needs_of(each)) <= set(kept)]
    if not ordered:
        return still
    place = {member.name: number for number, member in enumerate(old)}
    same = 0
    while same < len(still) and new[same].name == still[same]:
        if same and place[still[same]] < place[still[same - 1]]:
            break
        same += 1
    return still[:same]


def _needed_first(members: tuple[Member, ...], ordered: bool) -> list[str]:
    if ordered:  # whom one depends on is before it, or there would be a circle
        return [member.name for member in members]
    return list(TopologicalSorter({member.name: needs_of(member) for member in members}).static_order())


def needs_of(member: Member) -> tuple[str, ...]:
    """Return the names of those that one depends on."""
    return tuple(member.values.get("depends_on", ()))
