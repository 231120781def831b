"""Each way that there is to read a command's output, for the host programs of the tests."""

from __future__ import annotations

import logging
import queue
import random
import tempfile
import threading
from collections.abc import Callable
from typing import Any

import muontrap

OF_LINES = ("list", "callable", "logger")
INTO = (*OF_LINES, "binary-file", "text-file")
RUN_INTO, LAUNCH_INTO = ([f"{how}-{what}" for what in INTO] for how in ("run", "launch"))
KEPT = ("run", "run-text", "communicate")
WAYS = (
    *(*KEPT, "file", "chunks", "lines", "lines-text", "ends", "ends-text", "callback", "explicit-ack"),
    *(*RUN_INTO, *LAUNCH_INTO),
)


def gives_lines(way: str) -> bool:
    return way.startswith("lines") or way.endswith(OF_LINES)


class Reading:
    """A command to be read in one way, until its end; `take` gets (name of the stream, bytes).

    Lines come with the end that they had, and the last one of a stream with one that it may not have
    had.
    """

    def __init__(
        self, way: str, line: list[str], options: dict[str, Any], take: Callable[[str, bytes], object],
        timeout: float | None = None,
    ) -> None:  # fmt: skip
        self.way = way
        self.how, _, self.what = way.partition("-")
        self.names = [name for name in ("stdout", "stderr") if options.get(name) == muontrap.PIPE]
        self.take = take
        self.timeout = timeout
        self.line = line
        self.options = {**options, **({"text": True} if self.what == "text" else {})}

    def read(self) -> Any:
        """Run the command; how it ended."""
        if self.way in ("run", "run-text"):
            return self.run_and_keep()
        if self.what in INTO:
            return self.go_into()
        if self.way == "explicit-ack":
            return self.acknowledge()
        callbacks = {f"on_{name}": self.taker(name) for name in self.names if self.way == "callback"}
        with self.launch(**callbacks) as process:
            if not callbacks:
                getattr(self, self.how)(process)
            process.wait()
            return process.result

    def launch(self, **where: Any) -> muontrap.Process:
        return muontrap.Launcher(self.line, **self.options).launch(**where)

    def taker(self, name: str) -> Callable[[bytes], object]:
        return lambda data: self.take(name, data)

    def take_line(self, name: str, line: Any) -> None:
        data = line.encode() if isinstance(line, str) else line
        self.take(name, data if isinstance(line, muontrap.Cut) else data + b"\n")

    def take_kept(self, *kept: Any) -> None:
        for name, data in zip(("stdout", "stderr"), kept, strict=True):
            if data and name in self.names:
                self.take(name, data.encode() if isinstance(data, str) else data)

    def run_and_keep(self) -> Any:
        options = dict(self.options)
        capture = options.get("stdout") == options.get("stderr") == muontrap.PIPE
        if capture:  # the usual way to say it
            del options["stdout"], options["stderr"]
        try:
            result = muontrap.run(self.line, **options, capture_output=capture, timeout=self.timeout)
        except muontrap.TimeoutExpired as error:
            self.take_kept(error.output, error.stderr)
            raise
        self.take_kept(result.stdout, result.stderr)
        return result

    def communicate(self, process: muontrap.Process) -> None:
        self.take_kept(*process.communicate())

    def file(self, process: muontrap.Process) -> None:
        files = {name: getattr(process, name) for name in self.names}
        threads = [
            threading.Thread(target=lambda name=name, file=file: self.take(name, file.read()))
            for name, file in files.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def chunks(self, process: muontrap.Process) -> None:
        if len(self.names) == 1:
            for data in process.chunks():
                self.take(*self.names, data)
        else:
            for name, data in process.chunks("both"):
                self.take(name, data)

    def lines(self, process: muontrap.Process) -> None:
        if len(self.names) == 1:
            for line in process.lines():
                self.take_line(*self.names, line)
        else:
            for name, line in process.lines("both"):
                self.take_line(name, line)

    def ends(self, process: muontrap.Process) -> None:
        """Lines with their ends, which are taken as they are."""
        one, *more = self.names
        lines = process.lines("both" if more else None, keepends=True)
        for each in lines:
            name, line = each if more else (one, each)
            self.take(name, line.encode() if isinstance(line, str) else line)

    def acknowledge(self) -> Any:
        """In another thread than the callbacks', and in two pieces."""
        given: queue.SimpleQueue[tuple[str, bytes]] = queue.SimpleQueue()
        callbacks = {f"on_{name}": lambda data, name=name: given.put((name, data)) for name in self.names}
        with self.launch(**callbacks, explicit_ack=True) as process:
            while not process.reader.is_done or not given.empty():
                try:
                    name, data = given.get(timeout=0.01)
                except queue.Empty:
                    continue
                self.take(name, data)
                first = random.randint(1, len(data))
                for piece in filter(None, (first, len(data) - first)):
                    process.reader.ack(piece)
            process.wait()
            return process.result

    def go_into(self) -> Any:
        targets = {name: self.open_target(name) for name in self.names}
        into = tuple(targets.values()) if len(targets) == 2 else targets[self.names[0]]
        try:
            if self.how == "run":
                return muontrap.run(self.line, **self.options, into=into, timeout=self.timeout)
            with self.launch(into=into) as process:
                process.wait()
                return process.result
        finally:
            for name, target in targets.items():
                self.take_from(name, target)

    def open_target(self, name: str) -> Any:
        if self.what == "list":
            return []
        if self.what == "callable":
            return lambda line: self.take_line(name, line)
        if self.what == "logger":
            logger = logging.getLogger(f"commands.{name}")
            logger.setLevel(logging.INFO)
            logger.handlers = [Handler(self)]
            return muontrap.LogLines(logger, transform=mark_ends)
        return tempfile.TemporaryFile() if self.what == "binary-file" else open_text()

    def take_from(self, name: str, target: Any) -> None:
        """Take what a list or a file got; others have handed it on."""
        if isinstance(target, list):
            for line in target:
                self.take_line(name, line)
        elif hasattr(target, "flush"):
            target.flush()
            with getattr(target, "buffer", target) as file:
                file.seek(0)
                while data := file.read(2**20):
                    self.take(name, data)


class Handler(logging.Handler):
    """Takes what is logged."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.reading = reading

    def emit(self, record: logging.LogRecord) -> None:
        name: str = record.stream  # type: ignore[attr-defined]
        self.reading.take(name, record.getMessage().encode())


def mark_ends(line: str) -> str:
    return line if isinstance(line, muontrap.Cut) else line + "\n"


def open_text() -> Any:
    return tempfile.TemporaryFile("w+", encoding="utf-8", newline="")
