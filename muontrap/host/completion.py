"""A command run until nothing of it is left, or its time is over, in the thread of who waits for that."""

from __future__ import annotations

import time

from muontrap.errors import GuardDied
from muontrap.host.exchange import Exchange, TooLate
from muontrap.host.results import TimeoutExpired
from muontrap.host.status import END_BOUND

TYPE_CHECKING = False
if TYPE_CHECKING:
    from muontrap.host.results import CompletedProcess


class Completion(Exchange):
    """An exchange that ends the command at a deadline."""

    _is_late = False

    def run(
        self, input: memoryview | None, deadline: float | None, timeout: float | None
    ) -> CompletedProcess:
        """Communicate until nothing is left; end the command at the deadline, `timeout` s after the call.

        Raises:
            TimeoutExpired: with the output so far; at the latest 0.5 s after the grace.
        """
        if 0 in self._pipes.fds:
            self.feed(memoryview(b"") if input is None else input)
        if self._sinks and deadline is not None:
            self.tick(lambda: self._mind(deadline))
        try:
            if not self.until_end(deadline):
                raise self._expire(timeout)
        except (TimeoutExpired, GuardDied):
            self.finish()
            raise
        self.finish()
        result = self._status.result
        assert result is not None
        if self._cap and self._cap.must_stop and result.reason in ("exited", "signal"):
            result.reason = "max-output"  # it ended before it could be stopped
        result.stdout, result.stderr = self.so_far()
        if self._command.is_text:
            try:
                result.stdout, result.stderr = self.outputs()
            except UnicodeError as error:
                error.result = result  # type: ignore[attr-defined]
                raise
        return result

    def _expire(self, timeout: float | None) -> TimeoutExpired:
        """End a command whose time is over, and return what says so."""
        is_over = self._status.expire(self.until_end)
        error = TimeoutExpired(self._command.args, timeout or 0.0, *self.so_far(), self._status.result)
        if not is_over:
            self._pipes.close()
            self._status.close()  # the guard goes on hunting what does not die
        return error

    def _mind(self, deadline: float) -> None:
        """See to the promise of `run` while lines are delivered."""
        late = time.monotonic() - deadline
        delay = self._command.delay_to_sigkill
        if late >= delay + END_BOUND:
            raise TooLate
        if late >= 0 and not self._is_late:
            self._is_late = True
            self._status.ask(delay, b"timeout")
