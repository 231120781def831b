"""A `Process` that others use as well: threads that wait for it, a signal's handler that closes it."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import muontrap
from muontrap import PIPE, Launcher
from muontrap.host import status

BOUND = 10.0
ENDING = Launcher(["sleep", "0.02"])
TALKING = Launcher(["sleep", "0.02"], stdout=PIPE)
OTHER = Launcher(["sleep", "1000"], delay_to_sigkill=0)


def wait(process: muontrap.Process) -> None:
    process.wait()


def communicate(process: muontrap.Process) -> None:
    process.communicate()


def read(process: muontrap.Process) -> None:
    for _ in process.lines():
        pass


@pytest.mark.parametrize("way", [wait, communicate, read])
def test_a_thread_that_waits_sees_the_end_whoever_closes_it(way: Any) -> None:
    """The next launch has the number of the descriptor at once: it would wait for that command's end."""
    for _ in range(25):
        process = (ENDING if way is wait else TALKING).launch()

        def use(process: muontrap.Process = process) -> None:
            try:
                way(process)
            except ValueError:  # it was closed meanwhile
                pass

        threads = [threading.Thread(target=use, daemon=True) for _ in range(1 if way is communicate else 3)]
        for thread in threads:
            thread.start()
        with process:
            process.wait()
        with OTHER.launch():
            for thread in threads:
                thread.join(BOUND)
                assert not thread.is_alive()


def test_a_thread_that_waits_for_callbacks_sees_the_end_too() -> None:
    for _ in range(25):
        process = TALKING.launch(on_stdout=lambda _: None)
        thread = threading.Thread(target=process.wait, daemon=True)
        thread.start()
        with process:
            process.wait()
        with OTHER.launch():
            thread.join(BOUND)
            assert not thread.is_alive()


def test_closed_by_one_thread_it_wakes_up_another() -> None:
    """Without a word of the guard: it is stopped."""
    process = OTHER.launch()
    raised: list[BaseException] = []

    def use() -> None:
        try:
            process.wait()
        except ValueError as error:
            raised.append(error)

    thread = threading.Thread(target=use, daemon=True)
    thread.start()
    while not process._status._users:
        time.sleep(0.001)
    process._let_go()
    thread.join(BOUND)
    assert not thread.is_alive()
    assert process.pidfd == process.fileno() == -1
    assert not raised or "closed" in str(raised[0])


def test_closed_while_the_guards_word_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    receive = status.receive
    process = OTHER.launch()

    def close_first(*given: Any) -> Any:
        process._let_go()
        return receive(*given)

    monkeypatch.setattr(status, "receive", close_first)
    with contextlib.suppress(ValueError):  # unless the guard was quick, and the end is known
        process.poll()
    assert process.fileno() == -1


def wait_ignored(pid: int) -> None:
    """Wait until a process ignores SIGUSR1."""
    deadline = time.monotonic() + BOUND
    ignored = 0
    while not ignored >> signal.SIGUSR1 - 1 & 1:
        assert time.monotonic() < deadline
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
        ignored = int(status.partition("SigIgn:")[2].split()[0], 16)


def test_a_signal_is_sent_to_this_command_alone() -> None:
    """A handler closes it, and another command has the number of its pidfd."""
    launcher = Launcher(["sh", "-c", "trap '' USR1; sleep 1000 & wait"], delay_to_sigkill=0)
    processes: list[muontrap.Process] = []

    def replace(*_: object) -> None:
        processes[-1].close()
        processes.append(OTHER.launch())

    before = signal.signal(signal.SIGALRM, replace)
    try:
        for number in range(100):
            processes = [launcher.launch()]
            wait_ignored(processes[0].pid)
            signal.setitimer(signal.ITIMER_REAL, 0.0005 + number * 1e-5)
            while len(processes) == 1:
                processes[0].send_signal(signal.SIGUSR1)
            assert processes[1].poll() is None
            processes[1].close()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_forked_child_closes_its_copies_and_not_the_parents_channel() -> None:
    """Although a thread of the parent waits, which in the child is not there to let go of them."""
    with OTHER.launch() as process:
        thread = threading.Thread(target=process.wait)
        thread.start()
        while not process._status._users:
            time.sleep(0.001)
        pid = os.fork()
        if not pid:
            os._exit(process._status._channel.fileno() >= 0)
        assert os.waitpid(pid, 0)[1] == 0
        assert process.poll() is None
        process.kill()
        thread.join(BOUND)
        assert not thread.is_alive()
