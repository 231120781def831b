"""The output of one run in lines: those that are logged, and that by which it is ready."""

from __future__ import annotations

from muontrap.host.sinks import make_splitter
from muontrap.supervise import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from muontrap.logic.command import Command
    from muontrap.supervise.readiness import Probe
    from muontrap.supervise.recent import Recent


class Lines:
    """Takes a run's output, in the pump's thread.

    Args:
        name: of the daemon.
        command: as it is run.
        recent: gets all of it, before it is in lines.
        log_line: logs a line; None for not.
        awaited: by which it is ready; None for nothing that is in a line.
        then: called at the first line that is awaited.
    """

    def __init__(
        self,
        name: str,
        command: Command,
        recent: Recent,
        log_line: Callable[[str], None] | None,
        awaited: Probe | None,
        then: Callable[[], object],
    ) -> None:
        self._name = name
        self._recent = recent
        self._log_line = log_line
        self._pattern = awaited.pattern if awaited else None
        self._then = then
        self._splitter: Any = make_splitter(command, as_text=True)

    def take(self, data: bytes) -> None:
        """Have some more."""
        self._recent.take(data)
        self._see(self._splitter.feed(data))

    def finish(self) -> None:
        """See a last line without an end."""
        self._see(self._splitter.finish())

    def _see(self, lines: Iterable[str]) -> None:
        for line in lines:
            if self._log_line:
                try:
                    self._log_line(line)
                except Exception as error:  # of log_transform: its output is read on, or it would block
                    self._log_line = None
                    log.failure(error, "%s: this run's output is logged no more", self._name)
            if self._pattern and self._pattern.search(line):
                self._pattern = None
                self._then()
