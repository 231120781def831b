"""What a signal's handler raises, at any instant, loses no word of the guard, and no other error hides it."""

from __future__ import annotations

from typing import Any

import pytest
from arena import Arena
from hostlib import muontrap, say

import muontrap.host.status
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
