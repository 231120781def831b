"""`muontrap status`, `start`, `stop`, `restart`, `logs`: what a running tree is asked over its socket."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time

from muontrap.cli.report import BY_SIGNAL, fail, say
from muontrap.supervise.directory import (
    SOCKET,
    ControlError,
    check_directory,
    default_directory,
    only_directory,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from typing import Any

REFUSED = 2
_FAILED = 1
_WATCH_PAUSE = 1.0
_COLUMNS = ("name", "state", "pid", "uptime", "restarts", "memory", "cpu")


def control(arguments: argparse.Namespace) -> int:
    """Ask, and say what is answered; return the exit status."""
    try:
        directory = arguments.directory or (
            default_directory(arguments.name) if arguments.name else only_directory()
        )
        if arguments.subcommand == "status":
            return _status(directory, as_json=arguments.json, watch=arguments.watch)
        follow = arguments.subcommand == "logs" and arguments.follow
        return _change(directory, arguments.subcommand, arguments.child, follow=follow)
    except FileNotFoundError as error:
        say(f"no supervisor runs here: there is no {error.filename!r}")
    except OSError as error:
        say(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    return REFUSED


def _change(directory: str, what: str, name: str, *, follow: bool) -> int:
    answer = {}
    for answer in _ask(directory, {"do": what, "name": name, "follow": follow}):
        _show(answer.get("output", ""))
    if "error" in answer:
        say(answer["error"])
        return REFUSED
    if what in ("start", "restart") and answer["done"] == "stopped":
        why = answer["last_exit"]
        say(f"{name} has ended{f': {why}' if why else ''}")
        return _FAILED
    return 0


def _status(directory: str, *, as_json: bool, watch: bool) -> int:
    while True:
        for answer in _ask(directory, {"do": "status"}):
            if "error" in answer:
                say(answer["error"])
                return REFUSED
            page = json.dumps(answer["children"]) if as_json else "\n".join(_table(answer["children"]))
            clear = "\x1b[H\x1b[J" if watch and sys.stdout.isatty() else ""
            _show(f"{clear}{page}\n")
        if not watch:
            return 0
        time.sleep(_WATCH_PAUSE)


def _show(text: str) -> None:
    """Write to stdout, by which nothing is kept: a reader that goes away is no news at the exit."""
    data = text.encode(errors="surrogateescape")
    try:
        while data:
            data = data[os.write(1, data) :]
    except BrokenPipeError:
        raise SystemExit(BY_SIGNAL + signal.SIGPIPE) from None
    except OSError as error:
        raise SystemExit(fail(f"stdout: {error.strerror}")) from None


def _ask(directory: str, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    check_directory(directory)
    path = os.path.join(directory, SOCKET)
    answer: dict[str, Any] = {}
    with socket.socket(socket.AF_UNIX) as one:
        try:
            one.connect(path)
        except ConnectionRefusedError:
            raise ControlError(
                f"{path!r} is left over from a supervisor that is dead: nothing runs"
            ) from None
        except FileNotFoundError as error:
            error.filename = path
            raise
        except OSError as error:
            raise ControlError(f"{path!r}: {error.strerror or error}") from None
        try:
            one.sendall(json.dumps(request).encode() + b"\n")
            with one.makefile("rb") as answers:
                for line in answers:
                    answer = json.loads(line)
                    yield answer
        except (ConnectionError, json.JSONDecodeError):
            answer = {}
    if not answer.keys() & {"error", "children", "done"}:
        raise ControlError("the supervisor has ended, without an answer")


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
