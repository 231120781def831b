"""`muontrap status`, `start`, `stop`, `restart`, `logs`: what a running tree is asked over its socket."""

from __future__ import annotations

import json
import os
import socket
import sys
import time

from muontrap.cli.report import say
from muontrap.supervise.control import SOCKET, ControlError, check_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

REFUSED = 2
_FAILED = 1
_WATCH_PAUSE = 1.0
_COLUMNS = ("name", "state", "pid", "uptime", "restarts", "memory", "cpu")


def control(what: str, directory: str, name: str, *, follow: bool = False) -> int:
    """Ask for a change, or for logs; return the exit status."""
    try:
        for answer in _ask(directory, {"do": what, "name": name, "follow": follow}):
            if "error" in answer:
                say(answer["error"])
                return REFUSED
            sys.stdout.write(answer.get("output", ""))
            sys.stdout.flush()
            if what in ("start", "restart") and answer.get("done") == "stopped":
                say(f"{name} has ended: muontrap logs {name}")
                return _FAILED
    except (ControlError, OSError) as error:
        return _unreachable(error)
    return 0


def status(directory: str, *, as_json: bool, watch: bool) -> int:
    """Show the children; return the exit status."""
    while True:
        try:
            answer = next(_ask(directory, {"do": "status"}))
        except (ControlError, OSError, StopIteration) as error:
            return _unreachable(error)
        page = json.dumps(answer["children"]) if as_json else "\n".join(_table(answer["children"]))
        clear = "\x1b[H\x1b[J" if watch and sys.stdout.isatty() else ""
        print(f"{clear}{page}", flush=True)
        if not watch:
            return 0
        time.sleep(_WATCH_PAUSE)


def _ask(directory: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    check_directory(directory)
    path = os.path.join(directory, SOCKET)
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(path)
        except ConnectionRefusedError:
            raise ControlError(
                f"{path!r} is left over from a supervisor that is dead: nothing runs"
            ) from None
        one.sendall(json.dumps(request).encode() + b"\n")
        with one.makefile("rb") as answers:
            yield from map(json.loads, answers)


def _unreachable(error: Exception) -> int:
    if isinstance(error, FileNotFoundError):
        say(
            f"no supervisor runs here: there is no {error.filename!r}"
            if error.filename
            else "no supervisor runs here"
        )
    else:
        say(str(error) or "the supervisor has ended")
    return REFUSED


def _table(children: list[dict[str, Any]]) -> Iterator[str]:
    rows = [_COLUMNS, *(tuple(_cell(name, child[name]) for name in _COLUMNS) for child in children)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "-"
    if name == "uptime":
        return f"{int(value) // 3600}:{int(value) // 60 % 60:02}:{int(value) % 60:02}"
    if name == "memory":
        return f"{value / 2**20:.1f} MiB"
    return f"{value:.2f} s" if name == "cpu" else str(value)
