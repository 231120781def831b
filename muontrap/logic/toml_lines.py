"""On which line each key of a TOML document is, which `tomllib` does not tell."""

from __future__ import annotations

import re
from bisect import bisect_left

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    # Keys, and the indexes of items of arrays.
    Path: TypeAlias = tuple[str | int, ...]

_GAP = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_KEY = re.compile(r"""[ \t]*([A-Za-z0-9_-]+|"(?:[^"\\]|\\.)*"|'[^']*')[ \t]*(\.?)""")
# The last three quotes of a long string may have two before them that belong to it.
_SCALAR = re.compile(
    r'''"""(?:[^\\]|\\.)*?"{3,5}|\'\'\'.*?'{3,5}|"(?:[^"\\]|\\.)*"|'[^']*'|[^,\]}#\n]+''', re.DOTALL
)


def find_lines(text: str, loads: Callable[[str], dict[str, Any]]) -> dict[Path, int]:
    """Return path -> line, in the order in which the document first mentions them.

    A table's line is that of its header, where it has one.

    Args:
        text: a document that `loads` takes.
        loads: `tomllib.loads`.
    """
    return _Finder(text.replace("\r\n", "\n"), loads).lines


class _Finder:
    """Reads what is known to be right, and so looks only at what tells keys from values."""

    def __init__(self, text: str, loads: Callable[[str], dict[str, Any]]) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._loads = loads
        self._ends = [found.start() for found in re.finditer("\n", text)]
        self._lengths: dict[Path, int] = {}  # of arrays of tables, so far
        self._at = 0
        table: Path = ()
        while self._next():
            if self._next() == "[":
                table = self._header()
            else:
                self._pair(table)

    def _next(self) -> str:
        """Pass over spaces, ends of lines and comments; return the character there, "" at the end."""
        self._pass(_GAP)
        return self._text[self._at : self._at + 1]

    def _pass(self, pattern: re.Pattern[str]) -> re.Match[str]:
        found = pattern.match(self._text, self._at)
        assert found
        self._at = found.end()
        return found

    def _line(self) -> int:
        return bisect_left(self._ends, self._at) + 1

    def _header(self) -> Path:
        """Pass over [a.b] or [[a.b]]; return whose keys follow."""
        line, brackets = self._line(), 2 if self._text.startswith("[[", self._at) else 1
        self._at += brackets
        *above, last = self._keys()
        self._at += brackets
        path: Path = ()
        for key in above:
            path = (*path, key)
            self.lines.setdefault(path, line)
            if path in self._lengths:
                path = (*path, self._lengths[path] - 1)
        path = (*path, last)
        if brackets == 2:
            self.lines.setdefault(path, line)
            self._lengths[path] = self._lengths.get(path, 0) + 1
            path = (*path, self._lengths[path] - 1)
        self.lines[path] = line
        return path

    def _pair(self, path: Path) -> None:
        """Pass over a.b = value."""
        line = self._line()
        for key in self._keys():
            path = (*path, key)
            self.lines.setdefault(path, line)
        self._at += 1  # the equals sign
        self._value(path)

    def _keys(self) -> list[str]:
        keys = []
        while True:
            key, dot = self._pass(_KEY).groups()
            keys.append(next(iter(self._loads(f"{key} = 0"))))
            if not dot:
                return keys

    def _value(self, path: Path) -> None:
        first = self._next()
        if first not in ("[", "{"):
            self._pass(_SCALAR)
            return
        self._at += 1
        index = 0
        while self._next() not in ("]", "}"):
            if first == "{":
                self._pair(path)
            else:
                item = (*path, index)
                self.lines[item] = self._line()
                self._value(item)
                index += 1
            if self._next() == ",":
                self._at += 1
        self._at += 1
