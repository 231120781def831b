"""What a file in TOML says that a supervisor is to keep running: read, checked line by line, compared.

Keys are the names of the arguments that they become. What there is, and what texts mean, is in the tables
at the end; what values can be is known by the objects that are made of them, as a check.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import resource
import signal
from importlib import import_module

from muontrap.logic.children import Backoff, Child
from muontrap.logic.command import DEVNULL, STDOUT, Command, check_seconds
from muontrap.logic.limits import Limits
from muontrap.logic.supervision import Supervision
from muontrap.logic.toml_lines import find_lines
from muontrap.supervise.plan import Changes, Member, Plan, changes, needs_of
from muontrap.supervise.supervisor import Supervisor

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import ModuleType
    from typing import Any, TypeAlias

    from muontrap.logic.toml_lines import Path
    from muontrap.supervise.plan import Kind

    # Returns what the library takes; raises, or notes what is wrong further down and returns _WRONG.
    Converter: TypeAlias = Callable[["_Place", Any], Any]

__all__ = ("Changes", "ConfigError", "Member", "Plan", "changes", "load")

_WRONG = object()
_ERRORS = (ValueError, TypeError, LookupError)
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)", re.ASCII)
_UNITS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


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
        notes = _Notes(find_lines(text, toml.loads))
        plan = _plan(name, _Place(notes, (), "the file"), document)
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


# Reading.


class _Notes:
    """The problems so far, and where the keys are."""

    def __init__(self, lines: dict[Path, int]) -> None:
        self.problems: list[tuple[int, str]] = []
        self.lines = lines
        self.order = {path: number for number, path in enumerate(lines)}


class _Place:
    """A key of the document.

    Attributes:
        name: what messages call it.
    """

    def __init__(self, notes: _Notes, path: Path, name: str) -> None:
        self._notes = notes
        self._path = path
        self.name = name

    def below(self, key: str | int) -> _Place:
        """A key of this table, or an item of this array."""
        return _Place(self._notes, (*self._path, key), key if isinstance(key, str) else f"{self.name}[{key}]")

    @property
    def header(self) -> str:
        """The beginning of the headers of tables below it."""
        return "".join(f"{key}." for key in self._path)

    @property
    def order(self) -> int:
        """Where the document first mentions it, from the beginning."""
        return self._notes.order[self._path]

    @property
    def count(self) -> int:
        """How many problems there are so far, anywhere."""
        return len(self._notes.problems)

    def note(self, problem: Exception | str) -> None:
        """Remember that something is wrong here."""
        self._notes.problems.append((self._notes.lines.get(self._path, 1), _text(problem)))

    def take(self, value: Any, convert: Converter) -> Any:
        """Return what a value comes to, or note why it can't be, and return _WRONG."""
        try:
            return convert(self, value)
        except _ERRORS as error:
            self.note(error)
            return _WRONG

    def settle(self, values: dict[str, Any], make: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Note why nothing can be made of these values, each time without the one that was to blame."""
        while True:
            try:
                make(values)
                return values
            except _ERRORS as error:
                blamed = _blamed(values, make, _text(error))
                (self if blamed is None else self.below(blamed)).note(error)
                if blamed is None:
                    return values
                values = _without(values, blamed)


def _blamed(values: dict[str, Any], make: Callable[[dict[str, Any]], Any], message: str) -> str | None:
    """Return the last without which there would not be this error."""
    for key in reversed(values):
        try:
            make(_without(values, key))
        except _ERRORS as error:
            if _text(error) == message:
                continue
        return key
    return None


def _without(values: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _text(problem: Exception | str) -> str:
    """Return a message in the words of TOML."""
    if isinstance(problem, KeyError):  # whose own text is the representation of its message
        problem = str(problem.args[0])
    return re.sub(r"(?<!['\w])(True|False)(?!['\w])", lambda found: found[1].lower(), str(problem))


def _plan(path: str, at: _Place, document: dict[str, Any]) -> Plan:
    for key in document.keys() - {"supervisor", *_KINDS}:
        at.below(key).note(_unknown(key, ("supervisor", *_KINDS)))
    place = at.below("supervisor")
    settings = place.take(document.get("supervisor", {}), lambda at, table: _supervisor(at, table, _ROOT))
    settings = {} if settings is _WRONG else settings
    return Plan(path, settings, _members(at, document, settings.get("strategy", "one_for_one")))


def _supervisor(at: _Place, table: Any, keys: Mapping[str, Converter], name: str = "-") -> dict[str, Any]:
    values = _values(at, table, keys)
    return at.settle(values, lambda values: Supervisor(name=name, **values))


def _members(at: _Place, table: dict[str, Any], strategy: str) -> tuple[Member, ...]:
    """Return a supervisor's children, in the order of the file."""
    found: list[tuple[_Place, Kind, str, Any]] = []
    before = at.count
    for kind in _KINDS:
        place, tables = at.below(kind), table.get(kind, {})
        if isinstance(tables, dict):
            found += [(place.below(name), kind, name, value) for name, value in tables.items()]
        else:
            place.note(f"{kind} must be tables with names, such as [{kind}.NAME]")
    found.sort(key=lambda each: each[0].order)
    if not found and at.count == before:
        at.note(f"{at.name} has no children: a table such as [{at.header}daemon.NAME]")
    places: dict[str, _Place] = {}
    members: list[Member] = []
    for place, kind, name, value in found:
        if name in places:
            place.note(f"there are two children named {name!r}: names must be unique")
            continue
        places[name] = place
        members.append(_daemon(place, name, value) if kind == "daemon" else _group(place, name, value))
    _check_dependencies(members, places, strategy)
    return tuple(members)


def _daemon(at: _Place, name: str, table: Any) -> Member:
    name_to_try = _check_name(at, name)
    values = at.take(table, lambda at, table: _values(at, table, _DAEMON))
    if values is _WRONG:
        return Member("daemon", name, {}, ())
    if "command" not in table:
        at.note(f'daemon {name!r} has no command, such as ["nginx", "-g", "daemon off;"]')

    def make(values: dict[str, Any]) -> None:
        Member("daemon", name_to_try, {"command": ["-"], **values}, ()).build()

    return Member("daemon", name, at.settle(values, make), ())


def _group(at: _Place, name: str, table: Any) -> Member:
    name_to_try = _check_name(at, name)
    if not isinstance(table, dict):
        at.note(_no_table(at, table))
        return Member("group", name, {}, ())
    own = {key: value for key, value in table.items() if key not in _KINDS}
    values = _supervisor(at, own, _GROUP, name_to_try)
    return Member("group", name, values, _members(at, table, values.get("strategy", "one_for_one")))


def _check_name(at: _Place, name: str) -> str:
    """Return it, or one that can be used to check the rest."""
    if name and "/" not in name and name.isprintable():
        return name
    at.note(f"a name must be of printable characters, and without '/', not {name!r}")
    return "-"


def _check_dependencies(members: list[Member], places: dict[str, _Place], strategy: str) -> None:
    """See that all names are those of siblings, and that there is no circle."""
    needs: dict[str, Any] = {}
    for member in members:
        place = places[member.name].below("depends_on")
        for index, name in enumerate(needs_of(member)):
            if name not in places:
                place.below(index).note(
                    f"{member.name!r} depends on {name!r}, which is not beside it{_meant(name, places)}"
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
            blamed = _blamed(needs, make, _text(error))
            assert blamed is not None
            implied = ": with rest_for_one each depends on the one before" * (strategy == "rest_for_one")
            places[blamed].below("depends_on").note(f"{error}{implied}")
            needs = _without(needs, blamed)


def _values(at: _Place, table: Any, keys: Mapping[str, Converter]) -> dict[str, Any]:
    """Return what the keys of a table come to, without those that are wrong."""
    if not isinstance(table, dict):
        raise TypeError(_no_table(at, table))
    values = {}
    for key, value in table.items():
        place = at.below(key)
        if key not in keys:
            place.note(_unknown(key, keys))
            continue
        values[key] = place.take(value, keys[key])
    return {key: value for key, value in values.items() if value is not _WRONG}


def _unknown(key: str, keys: Iterable[str]) -> str:
    if key in _NOT_HERE and "command" in keys:
        return f"{key} can't be given in a file: {_NOT_HERE[key]}"
    return f"unknown key {key!r}{_meant(key, keys) or '; there are ' + ', '.join(keys)}"


def _meant(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f": is {near[0]!r} meant?" if near else ""


def _no_table(at: _Place, value: Any) -> str:
    return f"{at.name} must be a table, not {value!r}"


# Converters.


def _as_is(_: _Place, value: Any) -> Any:
    return value


def _string(at: _Place, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{at.name} must be a string, not {value!r}")
    return value


def _boolean(at: _Place, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{at.name} must be true or false, not {value!r}")
    return value


def _integer(least: int, most: int | None = None) -> Converter:
    def convert(at: _Place, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{at.name} must be an integer, not {value!r}")
        if value < least or (most is not None and value > most):
            bounds = f"{least} or more" if most is None else f"from {least} to {most}"
            raise ValueError(f"{at.name} must be {bounds}, not {value!r}")
        return value

    return convert


def _array(each: Converter) -> Converter:
    def convert(at: _Place, value: Any) -> Any:
        if not isinstance(value, list):
            raise TypeError(f"{at.name} must be an array, not {value!r}")
        items = [at.below(index).take(item, each) for index, item in enumerate(value)]
        return _WRONG if _WRONG in items else items

    return convert


def _table_of(keys: Mapping[str, Converter], make: Callable[[dict[str, Any]], Any]) -> Converter:
    def convert(at: _Place, value: Any) -> Any:
        before = at.count
        values = at.settle(_values(at, value, keys), make)
        return make(values) if at.count == before else _WRONG

    return convert


def _environment(each: Converter) -> Converter:
    def convert(at: _Place, value: Any) -> Any:
        if not isinstance(value, dict):  # not shown: variables are often secrets
            raise TypeError(f"{at.name} must be a table of strings")
        values = _values(at, value, dict.fromkeys(value, each))
        return values if values.keys() == value.keys() else _WRONG

    return convert


def _variable(at: _Place, value: Any) -> str:
    if not at.name or set(at.name) & {"=", "\0"}:
        raise ValueError(f"illegal environment variable name: {at.name!r}")
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f'{at.name} must be a string without NUL, such as "1"')
    return value


def _change(at: _Place, value: Any) -> str | None:
    return None if value is False else _variable(at, value)


def _command(at: _Place, value: Any) -> Any:
    if not isinstance(value, list):
        raise TypeError(
            f'{at.name} must be an array such as ["ls", "-l"], not {value!r}: no shell splits it; '
            '["sh", "-c", "..."] runs one'
        )
    return _array(_string)(at, value)


def _seconds(at: _Place, value: Any) -> float:
    given = value
    if isinstance(value, str):
        found = _DURATION.fullmatch(value)
        if not found:
            raise ValueError(f'{at.name} must be seconds, or a text such as "500ms", "1.5s", not {value!r}')
        given = float(found[1]) * _UNITS[found[2]]
    return check_seconds(at.name, given)


def _signal(at: _Place, value: Any) -> int:
    number = value
    if isinstance(value, str):
        number = signal.Signals.__members__.get(f"SIG{value.upper().removeprefix('SIG')}")
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 64:
        raise ValueError(f'{at.name} must be a signal such as "SIGINT" or 2, not {value!r}')
    return int(number)


def _mask(at: _Place, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not re.fullmatch("(0o)?[0-7]+", value):
        raise ValueError(f'{at.name} must be a text such as "0o022", or a number, not {value!r}')
    return int(value, 8)


def _level(at: _Place, value: Any) -> int:
    level = logging.getLevelName(value.upper()) if isinstance(value, str) else value
    if isinstance(level, bool) or not isinstance(level, int) or level < 0:
        raise ValueError(f'{at.name} must be a level such as "INFO" or 20, not {value!r}')
    return level


def _logger(at: _Place, value: Any) -> logging.Logger:
    return logging.getLogger(_string(at, value))


def _attributes(at: _Place, value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError(_no_table(at, value))
    return value


def _one_of(words: Mapping[str, Any]) -> Converter:
    def convert(at: _Place, value: Any) -> Any:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"{at.name} must be one of {', '.join(words)}, not {value!r}")
        return words[value]

    return convert


def _rlimit(at: _Place, value: Any) -> Any:
    pair = value if isinstance(value, list) else [value, value]
    limit = tuple(-1 if each == "unlimited" else each for each in pair)
    try:
        Command(["-"], rlimits={resource.RLIMIT_CPU: limit})  # type: ignore[dict-item]
    except (TypeError, ValueError) as error:
        raise ValueError(str(error).replace(f"rlimits[{resource.RLIMIT_CPU}]", at.name)) from None
    return limit


# What there is: key -> what a value comes to.

_KINDS: tuple[Kind, ...] = ("daemon", "group")
_RLIMITS = {
    name.removeprefix("RLIMIT_"): number
    for name, number in sorted(vars(resource).items())
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"  # NOFILE once more
}
_CHILD: dict[str, Converter] = {
    "restart": _as_is,
    "essential": _boolean,
    "depends_on": _array(_string),
    "backoff": _table_of(
        {
            "initial": _seconds,
            "factor": _as_is,
            "cap": _seconds,
            "jitter": _as_is,
            "reset_after": _seconds,
        },
        lambda values: Backoff(**values),
    ),
}
_ROOT: dict[str, Converter] = {
    "strategy": _as_is,
    "max_restarts": _integer(0),
    "max_seconds": _seconds,
    "on_give_up": _one_of({"stop_all": "stop_all", "ignore": "ignore"}),
}
_GROUP = {**_ROOT, **_CHILD}
_DAEMON: dict[str, Converter] = {
    "command": _command,
    **_CHILD,
    "success_exit_status": _array(_integer(0, 255)),
    "wait_for": _string,
    "ready": _string,
    "ready_timeout": _seconds,
    "watchdog": _seconds,
    "log_output": _level,
    "logger": _logger,
    "log_prefix": _string,
    "logger_metadata": _attributes,
    "recent_output": _integer(0),
    "executable": _string,
    "stdin": _one_of({"null": DEVNULL, "inherit": 0}),
    "stdout": _one_of({"null": DEVNULL, "inherit": 1}),
    "stderr": _one_of({"null": DEVNULL, "inherit": 2, "stdout": STDOUT}),
    "stdio_window": _as_is,
    "max_line": _as_is,
    "inactivity_timeout": _seconds,
    "encoding": _string,
    "errors": _string,
    "cwd": _string,
    "env": _environment(_variable),
    "env_update": _environment(_change),
    "user": _as_is,
    "group": _as_is,
    "extra_groups": _array(_as_is),
    "allow_root": _boolean,
    "umask": _mask,
    "start_new_session": _boolean,
    "kill_mode": _as_is,
    "delay_to_sigkill": _seconds,
    "stop_signal": _signal,
    "rlimits": _table_of(
        dict.fromkeys(_RLIMITS, _rlimit),
        lambda values: {_RLIMITS[name]: limit for name, limit in values.items()},
    ),
    "nice": _as_is,
    "cpu_affinity": _array(_as_is),
    "oom_score_adj": _as_is,
    "no_new_privs": _boolean,
    "pdeathsig": _signal,
    "cgroup": _as_is,
    "cgroup_base": _string,
    "cgroup_path": _string,
    "cgroup_controllers": _array(_string),
    "cgroup_sets": _array(_as_is),
    "limits": _table_of(dict.fromkeys(vars(Limits()), _as_is), lambda values: Limits(**values)),
    "require": _array(_as_is),
}
_NOT_HERE = {
    "args": "the program and its arguments are `command`",
    "bufsize": "it is for files in the program that calls",
    "exit_status_to_reason": "it is a function; `success_exit_status` lists what is a success",
    "foreground": "a daemon has no terminal",
    "log_transform": "it is a function",
    "name": "it is in the header, [daemon.NAME]",
    "pass_fds": "descriptors are of the program that calls",
    "preexec_fn": "it is a function",
    "shell": 'where one is meant, `command` is ["sh", "-c", "..."]',
    "text": "a daemon's output is always logged as text; see `encoding`",
}
