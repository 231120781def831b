"""What a file in TOML says that a supervisor is to keep running: read, and checked line by line."""

from __future__ import annotations

import os
import re
from importlib import import_module

from muontrap.logic.children import Child
from muontrap.logic.supervision import Supervision
from muontrap.logic.toml_lines import find_lines
from muontrap.supervise.keys import DAEMON, GROUP, KINDS, ROOT
from muontrap.supervise.places import (
    WRONG,
    Notes,
    Place,
    blamed_for,
    meant,
    no_table,
    text_of,
    unknown,
    values_of,
    without,
)
from muontrap.supervise.plan import Changes, Member, Plan, changes, needs_of
from muontrap.supervise.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import ModuleType
    from typing import Any

    from muontrap.supervise.places import Converter
    from muontrap.supervise.plan import Kind

__all__ = ("Changes", "ConfigError", "Member", "Plan", "changes", "load")


class ConfigError(ValueError):
    """Raised for a file that can't be read, or is not right.

    Attributes:
        path: of the file.
        problems: all of them, as (line, message), in the order of the lines.
    """

    def __init__(self, path: str, problems: Iterable[tuple[int, str]]) -> None:
        self.path: str = path
        self.problems: tuple[tuple[int, str], ...] = tuple(sorted(problems))
        super().__init__(path, self.problems)

    def __str__(self) -> str:
        return "\n".join(f"{self.path}:{line}: {message}" for line, message in self.problems)


def load(path: str | os.PathLike[str]) -> Plan:
    """Read a file, and check all of it. Nothing is started.

    Raises:
        ConfigError: it can't be read, or is not right.
        ImportError: this is Python 3.10, and tomli is not installed.
    """
    name, toml = os.fspath(path), _toml()
    try:
        with open(path, "rb") as file:
            data = file.read()
        text = data.decode()
    except OSError as error:
        raise ConfigError(name, [(1, f"can't be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(name, [(line, f"not UTF-8: byte 0x{data[error.start]:02x}")]) from None
    try:
        document = _document(name, text, toml)
        notes = Notes(find_lines(text, toml.loads))
        plan = _plan(name, Place(notes, (), "the file"), document)
    except RecursionError:
        raise ConfigError(name, [(1, "arrays or tables are nested too deep")]) from None
    if notes.problems:
        raise ConfigError(name, notes.problems)
    return plan


def _toml() -> ModuleType:
    for name in ("tomllib", "tomli"):
        try:
            return import_module(name)
        except ModuleNotFoundError:
            pass
    raise ImportError("Python 3.10 can't read TOML by itself: pip install 'muontrap[supervise]'")


def _document(name: str, text: str, toml: ModuleType) -> dict[str, Any]:
    try:
        document: dict[str, Any] = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise ConfigError(name, [_place_of(str(error), text)]) from None
    except ValueError:
        # The one thing that the readers of TOML leave to `int`, which does not say where.
        long = re.search(r"[0-9_]{4000,}", text)
        line = text.count("\n", 0, long.start() if long else 0) + 1
        raise ConfigError(name, [(line, "a number has too many digits")]) from None
    return document


def _place_of(message: str, text: str) -> tuple[int, str]:
    """Return the line, and what is wrong there, of what `tomllib` says."""
    what, _, where = message.removesuffix(")").rpartition(" (at ")
    line = re.match(r"line (\d+)", where)
    return int(line[1]) if line else text.rstrip("\n").count("\n") + 1, what


def _plan(path: str, at: Place, document: dict[str, Any]) -> Plan:
    for key in document.keys() - {"supervisor", *KINDS}:
        at.below(key).note(unknown(key, ("supervisor", *KINDS)))
    place = at.below("supervisor")
    settings = place.take(document.get("supervisor", {}), lambda at, table: _supervisor(at, table, ROOT))
    settings = {} if settings is WRONG else settings
    return Plan(path, settings, _members(at, document, settings.get("strategy", "one_for_one")))


def _supervisor(at: Place, table: Any, keys: Mapping[str, Converter], name: str = "-") -> dict[str, Any]:
    values = values_of(at, table, keys)
    return at.settle(values, lambda values: Supervisor(name=name, **values))


def _members(at: Place, table: dict[str, Any], strategy: str) -> tuple[Member, ...]:
    """Return a supervisor's children, in the order of the file."""
    found: list[tuple[Place, Kind, str, Any]] = []
    before = at.count
    for kind in KINDS:
        place, tables = at.below(kind), table.get(kind, {})
        if isinstance(tables, dict):
            found += [(place.below(name), kind, name, value) for name, value in tables.items()]
        else:
            place.note(f"{kind} must be tables with names, such as [{kind}.NAME]")
    found.sort(key=lambda each: each[0].order)
    if not found and at.count == before:
        at.note(f"{at.name} has no children: a table such as [{at.header}daemon.NAME]")
    places: dict[str, Place] = {}
    members: list[Member] = []
    for place, kind, name, value in found:
        if name in places:
            place.note(f"there are two children named {name!r}: names must be unique")
            continue
        places[name] = place
        members.append(_daemon(place, name, value) if kind == "daemon" else _group(place, name, value))
    _check_dependencies(members, places, strategy)
    return tuple(members)


def _daemon(at: Place, name: str, table: Any) -> Member:
    name_to_try = _check_name(at, name)
    values = at.take(table, lambda at, table: values_of(at, table, DAEMON))
    if values is WRONG:
        return Member("daemon", name, {}, ())
    if "command" not in table:
        at.note(f'daemon {name!r} has no command, such as ["nginx", "-g", "daemon off;"]')

    def make(values: dict[str, Any]) -> None:
        Member("daemon", name_to_try, {"command": ["-"], **values}, ()).build()

    return Member("daemon", name, at.settle(values, make), ())


def _group(at: Place, name: str, table: Any) -> Member:
    name_to_try = _check_name(at, name)
    if not isinstance(table, dict):
        at.note(no_table(at, table))
        return Member("group", name, {}, ())
    own = {key: value for key, value in table.items() if key not in KINDS}
    values = _supervisor(at, own, GROUP, name_to_try)
    return Member("group", name, values, _members(at, table, values.get("strategy", "one_for_one")))


def _check_name(at: Place, name: str) -> str:
    """Return it, or one that can be used to check the rest."""
    if name and "/" not in name and name.isprintable():
        return name
    at.note(f"a name must be of printable characters, and without '/', not {name!r}")
    return "-"


def _check_dependencies(members: list[Member], places: dict[str, Place], strategy: str) -> None:
    """See that all names are those of siblings, and that there is no circle."""
    needs: dict[str, Any] = {}
    for member in members:
        place = places[member.name].below("depends_on")
        for index, name in enumerate(needs_of(member)):
            if name not in places:
                place.below(index).note(
                    f"{member.name!r} depends on {name!r}, which is not beside it{meant(name, places)}"
                )
        if "depends_on" in member.values:
            needs[member.name] = [name for name in needs_of(member) if name and name in places]

    def make(needs: dict[str, Any]) -> None:
        children = [Child(name, depends_on=needs.get(name, ())) for name in places if name]
        Supervision(children, strategy=strategy)  # type: ignore[arg-type]

    while True:
        try:
            make(needs)
            return
        except ValueError as error:
            blamed = blamed_for(needs, make, text_of(error))
            assert blamed is not None
            implied = ": with rest_for_one each depends on the one before" * (strategy == "rest_for_one")
            places[blamed].below("depends_on").note(f"{error}{implied}")
            needs = without(needs, blamed)
