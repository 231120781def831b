"""The main process of an appliance or a container: a tree in the foreground, and what signals ask of it.

Also as pid 1: it reaps what falls to it.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from functools import partial

from muontrap.errors import SupervisorFailed
from muontrap.logic.stopping import Stops
from muontrap.supervise.tree import NotRunning

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from muontrap.supervise.control import Control
    from muontrap.supervise.supervisor import Supervisor

# Words from threads, beside the numbers of signals.
_UP, _OVER = 254, 255


class Appliance:
    """Runs a tree until it ends, or until a signal asks for that.

    SIGTERM and SIGINT stop it in order; a second one leaves at once, and the guard ends the rest.

    Args:
        root: not started yet.
        control: its socket.
        reload: called for SIGHUP, in a thread of its own.
        say: writes a line for people.
    """

    def __init__(
        self, root: Supervisor, control: Control, reload: Callable[[], None], say: Callable[[str], None]
    ) -> None:
        self._root = root
        self._control = control
        self._reload = reload
        self._say = say
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._is_up = False
        self._is_stopping = False
        self._stops = Stops()
        self._loading = threading.Lock()

    def run(self) -> int:
        """Return the exit status: 0 when it ended as it was asked to, 1 when it failed, 128 + a signal."""
        # Not a queue: a signal that comes just before a lock is waited for does not end that wait.
        signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        asked = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
        for signum in [*asked, signal.SIGCHLD] if os.getpid() == 1 else asked:
            signal.signal(signum, lambda *_: None)
        self._start()
        while True:
            word = os.read(self._reading, 1)[0]
            if word == _UP:
                self._is_up = True
                if not self._is_stopping:
                    notify("READY=1")
            elif word == _OVER:
                return self._end()
            elif word == signal.SIGCHLD:
                _reap()
            elif word == signal.SIGHUP:
                if not self._is_stopping:
                    self._in_thread(self._load_again, "reload")
            elif self._stops.is_second(word, time.monotonic()):
                return 128 + word
            elif not self._is_stopping:
                self._is_stopping = True
                notify("STOPPING=1")
                self._say(f"{signal.Signals(word).name}: stopping in order")
                self._in_thread(self._root.stop, "stop")

    def _in_thread(self, work: Callable[[], object], name: str) -> None:
        threading.Thread(target=work, name=f"muontrap-{name}", daemon=True).start()

    def _start(self) -> None:
        try:
            self._root.start(timeout=0)
        except (TimeoutError, SupervisorFailed):
            pass  # it is on its way; or has failed already, which `wait` says
        tree = self._root._running()
        try:
            tree.call(tree.at_end.append, partial(self._note, _OVER))
            self._control.serve(self._root)
            tree.call(self._root._branch.when_up, self._note_up)
        except NotRunning:
            self._note(_OVER)

    def _note_up(self) -> None:
        """For the tree's thread, as what follows."""
        if not self._root._branch.machine.is_ending:
            self._note(_UP)

    def _note(self, word: int) -> None:
        os.write(self._writing, bytes([word]))

    def _load_again(self) -> None:
        with self._loading:  # one after the other: each begins where the one before has ended
            was_up = self._is_up
            if was_up:
                notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
            self._reload()
            if was_up and not self._is_stopping:
                notify("READY=1")

    def _end(self) -> int:
        try:
            self._root.wait()
        except SupervisorFailed as error:
            self._say(str(error))
            return 1
        return 0


def notify(state: str) -> None:
    """Tell systemd, if that has started us with Type=notify. See sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
            try:
                one.sendto(state.encode(), "\0" + address[1:] if address.startswith("@") else address)
            except OSError:
                pass  # whoever listened is gone


def _reap() -> None:
    """Take note of children that are gone: as pid 1, of any process whose parent has died."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
