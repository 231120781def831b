"""What a signal's handler raises, at any instant, loses no word of the guard, and no other error hides it."""

from __future__ import annotations

import gc
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from arena import BOUND, Arena, wait_readable
from hostlib import muontrap, open_fds, say

import muontrap.host.exchange
import muontrap.host.launcher
import muontrap.host.link
import muontrap.host.status
import muontrap.host.streams
from muontrap import Launcher


@pytest.mark.parametrize("step", ["receive", "decode", "_take"])
def test_what_was_said_is_there_the_next_time(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Without it the closed channel would look like the guard's death, which ends all its commands."""
    holder: Any = muontrap.host.status if step != "_take" else muontrap.host.status.Status
    actual = getattr(holder, step)

    def interrupted(*args: Any) -> Any:
        actual(*args)
        raise KeyboardInterrupt

    waits = Launcher(["sh", "-c", "read _; exit 3"], stdin=muontrap.PIPE)
    with Launcher(["sleep", "1000"]).launch() as other, waits.begin() as process:
        for act in (process.wait_started, process.wait):
            with monkeypatch.context() as patch:
                patch.setattr(holder, step, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    act(20)
            act(20)
            if act == process.wait_started:
                assert process.pid > 0
                assert process.stdin is not None
                process.stdin.close()
        assert process.returncode == 3
        assert other.poll() is None


def interrupted_host(*, rounds: int) -> None:
    """Run one command after another, interrupted near its end in half of the cases."""
    import random
    import signal

    class Interrupt(BaseException):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupt

    signal.signal(signal.SIGALRM, interrupt)
    wrong: dict[str, int] = {}
    interrupts, takes = 0, 0.003
    for number in range(rounds):
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, takes * random.uniform(0.5, 1.1))
                done = muontrap.run(["echo", str(number)], stdout=muontrap.PIPE)
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            assert done.stdout == b"%d\n" % number
            takes *= 0.95
        except Interrupt:
            interrupts += 1
            takes *= 1.05
        except Exception as error:
            wrong[repr(error)] = wrong.get(repr(error), 0) + 1
    say(wrong=wrong, interrupts=interrupts)


def test_an_interrupt_is_what_is_raised(arena: Arena) -> None:
    answer = arena.host(interrupted_host, rounds=2000).hear(bound=60)
    assert answer["wrong"] == {}
    assert 500 < answer["interrupts"] < 1500


def reentrant_host(*, step: str) -> None:
    """Run a command in a signal's handler, which comes while a guard is looked up or started."""
    import signal
    import sys

    lines = {"handler": "", "main": ""}

    def run_another(*_: object) -> None:
        lines["handler"] = muontrap.run(["echo", "handler"], capture_output=True, text=True).stdout

    signal.signal(signal.SIGUSR1, run_another)

    def interrupt(frame: Any, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_name == step:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGUSR1)

    if step == "is_whole":
        muontrap.start_guard()
    sys.setprofile(interrupt)
    lines["main"] = muontrap.run(["echo", "main"], capture_output=True, text=True).stdout
    say(**lines)


@pytest.mark.parametrize("step", ["_start", "_shake_hands", "is_whole"])
def test_a_handler_may_run_a_command_at_any_instant(arena: Arena, step: str) -> None:
    answer = arena.host(reentrant_host, step=step).hear(bound=20)
    assert answer == {"main": "main\n", "handler": "handler\n"}


def test_a_handler_may_close_a_process_that_is_being_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Launcher(["sleep", "1000"], stdin=muontrap.PIPE, stdout=muontrap.PIPE).launch()
    close, calls = muontrap.host.streams.Pipes.close_one, []

    def interrupted(pipes: Any, target: int) -> None:
        if not calls:
            calls.append(target)
            process.close()
        close(pipes, target)

    monkeypatch.setattr(muontrap.host.streams.Pipes, "close_one", interrupted)
    process.close()
    assert calls
    assert process.returncode == -15
    assert process.pidfd == -1


def test_a_launch_that_is_interrupted_leaves_no_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Although what was raised, and with it all that the frames hold, is kept."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reading = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with open(fifo, "wb") as writing, monkeypatch.context() as patch:
        patch.setattr(muontrap.host.launcher, "Status", interrupted)
        with pytest.raises(KeyboardInterrupt) as kept:
            muontrap.run(["sleep", "1000"], stdout=writing)
    assert wait_readable([reading], time.monotonic() + BOUND), "the command holds it open"
    assert os.read(reading, 1) == b""
    os.close(reading)
    del kept


@pytest.mark.parametrize("error", [TimeoutError("the handler's"), KeyboardInterrupt()])
def test_no_failure_of_the_command_hides_what_a_handler_raises(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException
) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)

    def interrupted(*_: Any) -> None:
        raise error

    monkeypatch.setattr(muontrap.host.exchange.Exchange, "until_end", interrupted)
    with pytest.raises(type(error)) as caught:
        muontrap.run([script])
    assert caught.value is error


def test_an_error_in_a_block_is_told_rather_than_the_death_of_the_guard() -> None:
    def fail_after_kill() -> None:
        with Launcher(["sleep", "1000"]).launch() as process:
            process._status.link.kill_guard()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_kill()
    with pytest.raises(muontrap.GuardDied), Launcher(["sleep", "1000"]).launch() as process:
        process._status.link.kill_guard()


def replaced_guard_host() -> None:
    import gc
    import select

    muontrap.run(["true"])
    link = muontrap.host.link._links.current
    assert link is not None
    pidfd = os.dup(link._pidfds[1])
    del link
    gc.disable()
    os.setgroups([4, 5])
    say(returncode=muontrap.run(["sh", "-c", "exit 3"]).returncode)
    ready, _, _ = select.select([pidfd], [], [], 10)
    say(is_gone=bool(ready))


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_a_guard_that_was_replaced_ends_at_once(arena: Arena) -> None:
    """Not when the cyclic collector comes by, which in an idle host may be never."""
    host = arena.host(replaced_guard_host)
    assert host.hear() == {"returncode": 3}
    assert host.hear(bound=20) == {"is_gone": True}


def test_channels_that_the_host_has_closed_are_not_used() -> None:
    """As a program does that closes all descriptors from 3 on; what has the number then is another's."""
    muontrap.run(["true"])
    link = muontrap.host.link._links.current
    assert link is not None
    number = link._idle[-1].fileno()
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, number)
    assert muontrap.run(["sh", "-c", "exit 3"]).returncode == 3
    os.fstat(number)
    for fd in (null, number):
        os.close(fd)
    assert muontrap.run(["sh", "-c", "exit 3"]).returncode == 3
    assert muontrap.host.link._links.current is link


@pytest.mark.filterwarnings("ignore:.*unclosed file|Exception ignored in")  # as `open` does then
def test_a_descriptor_is_closed_once_whenever_the_making_of_its_file_is_interrupted() -> None:
    """By both it and the launch: the second time the number may be another thread's."""
    makers = {
        function.__code__
        for function in (muontrap.host.streams.Pipes.open_files, muontrap.host.streams._layers)
    }
    launcher = Launcher(["cat"], stdin=muontrap.PIPE, stdout=muontrap.PIPE, text=True)
    launcher.launch().close()
    gc.collect()  # guards of other tests
    before = open_fds()
    steps, is_interrupted = 0, True
    while is_interrupted:
        left, is_interrupted = steps, False
        steps += 1

        def trace(frame: Any, event: str, _: object) -> Any:
            nonlocal left, is_interrupted
            frame.f_trace_opcodes = frame.f_code in makers
            if event in ("line", "opcode"):  # 3.12.1 has just lines
                if not left:
                    is_interrupted = True
                    raise KeyboardInterrupt
                left -= 1
            return trace if frame.f_trace_opcodes else None

        sys.settrace(trace)
        try:
            launcher.launch().close()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert set(open_fds()) == set(before), (steps, set(open_fds()) ^ set(before))
    assert steps > 10
