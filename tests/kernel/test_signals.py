"""signalfd, masks and dispositions: the real kernel."""

from __future__ import annotations

import signal

from children import run_python

from muontrap.kernel import signals


def test_numbers() -> None:
    assert set(signals.ALL) == set(range(1, signal.NSIG))
    musls = {34}  # which is glibc's SIGRTMIN
    assert {*signals.DEFAULTABLE, *musls} == signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP} | musls
    assert (signals.SIGKILL, signals.SIGCHLD, signals.SIGCONT) == (9, signal.SIGCHLD, signal.SIGCONT)


def test_signalfd_is_readable_while_a_signal_is_pending() -> None:
    out = run_python("""
        import os, select, signal
        from muontrap.kernel import signals
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        fd = signals.open_signalfd(signal.SIGUSR1, signal.SIGRTMAX)
        ready = lambda: bool(select.select([fd], [], [], 0)[0])
        print(os.get_inheritable(fd), os.get_blocking(fd), ready())
        os.kill(os.getpid(), signal.SIGUSR2)
        print(ready())
        os.kill(os.getpid(), signal.SIGUSR1)
        print(ready())
        signals.drain(fd)
        print(ready())
        for _ in range(40):  # real-time signals queue: more than one read takes
            os.kill(os.getpid(), signal.SIGRTMAX)
        signals.drain(fd)
        print(ready())
        signals.drain(fd)
    """)
    assert out.split("\n") == ["False False False", "False", "True", "False", "False"]


def test_default_and_unblocked() -> None:
    """After both the kernel has no signal blocked, ignored or caught; SIGINT and SIGPIPE are Python's."""
    out = run_python("""
        import signal
        from muontrap.kernel import signals
        def show():
            fields = dict(line.split(":") for line in open("/proc/self/status") if line.startswith("Sig"))
            libcs_own = 3 << 31  # 32 and 33, which no program may touch
            return [int(fields[name], 16) & ~libcs_own for name in ("SigBlk", "SigIgn", "SigCgt")]
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGRTMAX, print)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        blocked, ignored, caught = show()
        unblockable = 1 << 8 | 1 << 18
        print(blocked | unblockable == 2**64 - 1 & ~(3 << 31) | unblockable, ignored > 0, caught > 0)
        signals.set_default(signals.not_default())
        signals.unblock()
        print(show(), signals.not_default())
    """)
    assert out.split("\n") == ["True True True", "[0, 0, 0] []"]


def test_absorbed_until_unblocked() -> None:
    """All but faults: what has no effect on this process has its default one from `unblock` on."""
    out = run_python("""
        import os, signal
        from muontrap.kernel import signals
        signals.set_default(signals.not_default())
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        os.kill(os.getpid(), signal.SIGTERM)
        signals.absorb()
        before = signals.block(())
        faults = {signal.SIGILL, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV}
        for number in signal.valid_signals() - faults - {signal.SIGKILL, signal.SIGSTOP}:
            os.kill(os.getpid(), number)
        signals.block(before)
        print("lives", signals.faults_are_pending())
        os.kill(os.getpid(), signal.SIGSEGV)
        print(signals.faults_are_pending(), flush=True)
        if not os.fork():
            signals.unblock()
            os.kill(os.getpid(), signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.wait()[1]))
    """)
    assert out.split("\n") == ["lives False", "True", "-15"]
