"""Where output goes that is not kept: lists, files, callables, loggers."""

from __future__ import annotations

import codecs
import errno
import io
import logging
import os

from muontrap.host.streams import codec
from muontrap.logic.command import PIPE
from muontrap.logic.lines import LineSplitter, TextSplitter
from muontrap.logic.window import Cap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import IO, Any, TypeAlias

    from muontrap.host.exchange import Sink
    from muontrap.logic.command import Command
    from muontrap.logic.window import CapPolicy

    Target: TypeAlias = "list[Any] | Callable[[Any], object] | logging.Logger | LogLines | IO[Any]"
    Into: TypeAlias = "Target | tuple[Target | None, Target | None]"

_STREAMS = {1: "stdout", 2: "stderr"}
# What logging itself has in a record, and refuses to have overwritten.
_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime"}


class LogLines:
    """Logs each line, for `into=`; a plain `logging.Logger` is the same at level INFO.

    Args:
        logger: where to.
        level: of each record.
        prefix: what comes before the line.
        transform: what makes a message of the line, before the prefix; None from it leaves the line out.
        extra: attributes of each record.  `command` and `stream` ("stdout", "stderr") are there anyway.
    """

    def __init__(
        self,
        logger: logging.Logger,
        level: int = logging.INFO,
        *,
        prefix: str = "",
        transform: Callable[[str], str | None] | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        if not isinstance(logger, logging.Logger):
            raise TypeError(f"logger must be a logging.Logger, not {logger!r}")
        if isinstance(level, bool) or not isinstance(level, int):
            raise TypeError(f"level must be an integer such as logging.INFO, not {level!r}")
        if not isinstance(prefix, str):
            raise TypeError(f"prefix must be a string, not {prefix!r}")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be callable, not {transform!r}")
        taken = sorted({*_RECORD, "command", "stream"} & set(extra or ()))
        if taken:
            raise ValueError(f"extra can't have {', '.join(taken)}: a record has that already")
        self._logger = logger
        self._level = level
        self._prefix = prefix
        self._transform = transform
        self._extra = dict(extra or {})

    def of(self, command: str, stream: str) -> Callable[[str], None]:
        """Return what logs the lines of one stream."""
        extra = {**self._extra, "command": command, "stream": stream}

        def log(line: str) -> None:
            message = self._transform(line) if self._transform else line
            if message is not None:
                text = self._prefix + message
                self._logger.log(self._level, text, extra=extra)  # no arguments, so any % may be in it

        return log


class Lines:
    """Divides a stream into lines, and hands each to a function."""

    def __init__(self, command: Command, deliver: Callable[[Any], object], *, as_text: bool) -> None:
        self._splitter = make_splitter(command, as_text=as_text)
        self._deliver = deliver
        self.tick: Callable[[], None] | None = None  # called after each line, and may raise

    def take(self, data: bytes) -> None:
        """Deliver the lines that are complete with this."""
        for line in self._splitter.feed(data):
            self._deliver(line)
            if self.tick:
                self.tick()

    def finish(self) -> None:
        """Deliver a last line without an end."""
        for line in self._splitter.finish():
            self._deliver(line)


class File:
    """Writes to a file: bytes, or text to one that has an encoding."""

    def __init__(self, command: Command, file: IO[Any]) -> None:
        self._file: Any = file
        self._decoder: codecs.IncrementalDecoder | None = None
        if hasattr(file, "encoding"):
            encoding, errors = _lenient(command)
            self._decoder = codecs.getincrementaldecoder(encoding)(errors)

    def take(self, data: bytes) -> None:
        """Write it all."""
        if self._decoder:
            self._file.write(self._decoder.decode(data))
            return
        left = memoryview(data)
        while left:
            count = self._file.write(left)
            if not isinstance(self._file, io.RawIOBase):
                return  # only raw files take less than all, and others return what they like
            if count is None:
                raise BlockingIOError(errno.EAGAIN, "the file that output goes into would block")
            left = left[count:]

    def finish(self) -> None:
        """Write what is left of a character."""
        if self._decoder:
            self._file.write(self._decoder.decode(b"", True))


class Chunks:
    """Hands bytes to a function as they come."""

    def __init__(self, deliver: Callable[[bytes], object]) -> None:
        self.take: Any = deliver

    def finish(self) -> None:
        """Nothing is held back."""


def direct(command: Command, into: Any) -> tuple[Command, dict[int, Sink]]:
    """Return the command with the pipes that this needs, and what takes each of them (1: stdout, 2: stderr).

    Raises:
        TypeError, ValueError: output can't go there, or the stream goes elsewhere already.
    """
    if isinstance(into, tuple):
        if len(into) != 2 or into == (None, None):
            raise ValueError(f"into must be one target, or (for stdout, for stderr), not {into!r}")
        targets = dict(zip(_STREAMS, into, strict=True))
    else:
        only_stderr = command.stdout not in (None, PIPE) and command.stderr == PIPE
        targets = {2 if only_stderr else 1: into}
    sinks = {
        number: _sink(command, target, _STREAMS[number])
        for number, target in targets.items()
        if target is not None
    }
    return with_pipes(command, sinks), sinks


def of_launch(
    command: Command,
    on_stdout: Callable[[bytes], object] | None,
    on_stderr: Callable[[bytes], object] | None,
    into: Into | None,
    *,
    explicit_ack: bool,
) -> tuple[Command, dict[int, Sink]]:
    """Return the same for callbacks, or `into`."""
    given = {1: on_stdout, 2: on_stderr}
    callbacks = {target: callback for target, callback in given.items() if callback is not None}
    if explicit_ack and not callbacks:
        raise ValueError("explicit_ack=True is for on_stdout and on_stderr")
    if into is not None:
        if callbacks:
            raise ValueError("into may not be given with on_stdout or on_stderr")
        return direct(command, into)
    for callback in callbacks.values():
        if not callable(callback):
            raise TypeError(f"on_stdout and on_stderr must be callable, not {callback!r}")
    return with_pipes(command, callbacks), {number: Chunks(each) for number, each in callbacks.items()}


def cap(command: Command, most: int, policy: CapPolicy) -> Cap:
    """Return what counts the output of a command that has some."""
    if isinstance(most, bool) or not isinstance(most, int):
        raise TypeError(f"max_output must be a number of bytes, not {most!r}")
    if PIPE not in (command.stdout, command.stderr):
        raise ValueError("max_output needs output to be read: capture_output=True, into, or PIPE")
    return Cap(most, policy)


def with_pipes(command: Command, targets: Iterable[int]) -> Command:
    """Return the command with pipes for these streams, which may not go elsewhere."""
    names = [_STREAMS[target] for target in targets]
    for name in names:
        given = getattr(command, name)
        if given not in (None, PIPE):
            raise ValueError(f"{name} can't be read, for it is {given!r}: give PIPE, or nothing")
    return command.but(**dict.fromkeys(names, PIPE))


def make_splitter(command: Command, *, as_text: bool, keepends: bool = False) -> LineSplitter | TextSplitter:
    """Return what divides a stream of this command into lines."""
    if as_text:
        return TextSplitter(command.max_line, *_lenient(command), keepends=keepends)
    return LineSplitter(command.max_line, keepends=keepends)


def _lenient(command: Command) -> tuple[str, str]:
    return codec(command)[0], command.errors or "replace"


def _sink(command: Command, target: Any, stream: str) -> Sink:
    if isinstance(target, logging.Logger):
        target = LogLines(target)
    if isinstance(target, LogLines):
        return Lines(command, target.of(os.fsdecode(command.argv[0]), stream), as_text=True)
    if isinstance(target, list):
        return Lines(command, target.append, as_text=command.is_text)
    if hasattr(target, "write"):
        return File(command, target)
    if callable(target):
        return Lines(command, target, as_text=command.is_text)
    raise TypeError(f"output can go into a list, a file, a callable or a logging.Logger, not {target!r}")
