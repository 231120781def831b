"""The terminal on stdin: lent to the command, and as it was when it comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import termios

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    _Modes = list[Any]

_TERMINAL = 0  # the terminal that counts is the one on stdin


class Terminal:
    """Our controlling terminal on stdin: which group is in its foreground, and its modes.

    The guard moves the foreground, also when we are killed.  What is done here too is for a command
    that was started in the background, which the guard has no terminal for; and for what a command
    leaves in the foreground: another group of its own, or its end before `execve`.
    """

    def __init__(self) -> None:
        # A process in the background that touches the terminal would be stopped.
        signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        self._is_lent = False
        self._own_modes: _Modes | None = None
        self._commands_modes: _Modes | None = None

    @classmethod
    def find(cls) -> Terminal | None:
        """Return it if stdin is it."""
        try:
            os.tcgetpgrp(_TERMINAL)
        except OSError:
            return None
        return cls()

    def is_ours(self) -> bool:
        """Tell whether our process group is in the foreground."""
        return self.foreground() == os.getpgrp()

    def lend(self) -> bool:
        """Note the modes if we are in the foreground, for the guard to move a command there."""
        self._is_lent = self.is_ours()
        if self._is_lent:  # in the background, the modes are those of our shell's line editor
            self._own_modes = self._modes()
        return self._is_lent

    def lend_again(self, group: int) -> None:
        """Put the command in the foreground, with the modes that it had, if we are there by now."""
        if self.lend():
            self._set_modes(self._commands_modes)
            self._set_foreground(group)
        else:
            self._is_lent = self.foreground() == group

    def take_back(self) -> None:
        """Be in the foreground, with our modes again, if it was lent."""
        if self._is_lent:
            self._is_lent = False
            self._commands_modes = self._modes()
            self._set_foreground(os.getpgrp())
            self._set_modes(self._own_modes)

    def foreground(self) -> int:
        """Return the process group in the foreground, 0 when the line is hung up."""
        try:
            return os.tcgetpgrp(_TERMINAL)
        except OSError:  # hung up
            return 0

    def _set_foreground(self, group: int) -> None:
        with contextlib.suppress(OSError):  # hung up, or the group is gone
            os.tcsetpgrp(_TERMINAL, group)

    def _modes(self) -> _Modes | None:
        try:
            return termios.tcgetattr(_TERMINAL)
        except termios.error:
            return None

    def _set_modes(self, modes: _Modes | None) -> None:
        if modes and modes != self._modes():
            with contextlib.suppress(termios.error):
                # Not TCSADRAIN, which can wait for ever: for output that Ctrl-S holds back.
                termios.tcsetattr(_TERMINAL, termios.TCSANOW, modes)
