"""Where a document says something, and what is wrong there: each problem is noted with its line."""

from __future__ import annotations

import difflib
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeAlias

    from muontrap.logic.toml_lines import Path

    # Returns what the library takes; raises, or notes what is wrong further down and returns WRONG.
    Converter: TypeAlias = Callable[["Place", Any], Any]

WRONG = object()  # in place of a value that is
ERRORS = (ValueError, TypeError, LookupError)
NOT_HERE = {
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


class Notes:
    """The problems so far, and where the keys are.

    Attributes:
        problems: as (line, message).
        lines: of keys.
        order: in which the document has them.
    """

    def __init__(self, lines: dict[Path, int]) -> None:
        self.problems: list[tuple[int, str]] = []
        self.lines: dict[Path, int] = lines
        self.order: dict[Path, int] = {path: number for number, path in enumerate(lines)}


class Place:
    """A key of the document.

    Attributes:
        name: what messages call it.
    """

    def __init__(self, notes: Notes, path: Path, name: str) -> None:
        self._notes = notes
        self._path = path
        self.name: str = name

    def below(self, key: str | int) -> Place:
        """A key of this table, or an item of this array."""
        return Place(self._notes, (*self._path, key), key if isinstance(key, str) else f"{self.name}[{key}]")

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
        self._notes.problems.append((self._notes.lines.get(self._path, 1), text_of(problem)))

    def take(self, value: Any, convert: Converter) -> Any:
        """Return what a value comes to, or note why it can't be, and return WRONG."""
        try:
            return convert(self, value)
        except ERRORS as error:
            self.note(error)
            return WRONG

    def settle(self, values: dict[str, Any], make: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """Note why nothing can be made of these values, each time without the one that was to blame."""
        while True:
            try:
                make(values)
                return values
            except ERRORS as error:
                blamed = blamed_for(values, make, text_of(error))
                (self if blamed is None else self.below(blamed)).note(error)
                if blamed is None:
                    return values
                values = without(values, blamed)


def blamed_for(values: dict[str, Any], make: Callable[[dict[str, Any]], Any], message: str) -> str | None:
    """Return the last without which there would not be this error."""
    for key in reversed(values):
        try:
            make(without(values, key))
        except ERRORS as error:
            if text_of(error) == message:
                continue
        return key
    return None


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    """Return all but one."""
    return {name: value for name, value in values.items() if name != key}


def text_of(problem: Exception | str) -> str:
    """Return a message in the words of TOML."""
    if isinstance(problem, KeyError):  # whose own text is the representation of its message
        problem = str(problem.args[0])
    text = re.sub(r"^args(?=\[| is empty)", "command", str(problem))
    return re.sub(r"(?<!['\w])(True|False)(?!['\w])", lambda found: found[1].lower(), text)


def values_of(at: Place, table: Any, keys: Mapping[str, Converter]) -> dict[str, Any]:
    """Return what the keys of a table come to, without those that are wrong."""
    if not isinstance(table, dict):
        raise TypeError(no_table(at, table))
    values = {}
    for key, value in table.items():
        place = at.below(key)
        if key not in keys:
            place.note(unknown(key, keys))
            continue
        values[key] = place.take(value, keys[key])
    return {key: value for key, value in values.items() if value is not WRONG}


def unknown(key: str, keys: Iterable[str]) -> str:
    """Return what is said of a key that there is not."""
    if key in NOT_HERE and "command" in keys:
        return f"{key} can't be given in a file: {NOT_HERE[key]}"
    return f"unknown key {key!r}{meant(key, keys) or '; there are ' + ', '.join(keys)}"


def meant(name: str, names: Iterable[str]) -> str:
    """Return a question for one that is much like it, if there is one."""
    near = difflib.get_close_matches(name, names, 1)
    return f": is {near[0]!r} meant?" if near else ""


def no_table(at: Place, value: Any) -> str:
    """Return what is said of a value that ought to be a table."""
    return f"{at.name} must be a table, not {value!r}"
