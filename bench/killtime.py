"""From SIGKILL of the host to the end of its command, as the command's pidfd reports it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from functools import partial

from rivals import SETPRIV, Report, available, interleave

# The command says its pid when it is ready; exec keeps the pid and an ignored signal.
PLAIN = "echo $$; exec sleep 1000"
STUBBORN = f"trap '' TERM; {PLAIN}"
OURS, AT_ONCE, GRACE = "muontrap", "muontrap, delay_to_sigkill=0", "muontrap, SIGTERM ignored"
LAUNCH = "import muontrap; muontrap.Launcher(['sh', '-c', {script!r}]{options}).launch().wait()"
POPEN = "import subprocess; subprocess.Popen({argv!r}).wait()"


def host_death(program: str) -> float:
    """Milliseconds; a command that is alive after 10 s is killed here and fails the benchmark."""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as host:
        assert host.stdout is not None
        pid = int(host.stdout.readline())
        command = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(command, select.POLLIN)
            start = time.perf_counter()
            host.kill()
            if poll.poll(10_000):
                return (time.perf_counter() - start) * 1000
            signal.pidfd_send_signal(command, signal.SIGKILL)
            raise SystemExit(f"{pid} outlived its host: {program}")
        finally:
            os.close(command)


def main() -> None:
    report = Report("SIGKILL of the host to the end of its command.", seconds=20)
    programs = {
        OURS: LAUNCH.format(script=PLAIN, options=""),
        AT_ONCE: LAUNCH.format(script=PLAIN, options=", delay_to_sigkill=0"),
        GRACE: LAUNCH.format(script=STUBBORN, options=""),
    }
    for prefix in available((SETPRIV,)):
        programs[prefix] = POPEN.format(argv=[*prefix.split(), "sh", "-c", PLAIN])
    candidates = {name: partial(host_death, program) for name, program in programs.items()}
    samples = interleave(candidates, report.seconds, rounds=10)
    report.section("host SIGKILLed", samples, base=SETPRIV if SETPRIV in samples else OURS)
    report.goal("ends on SIGTERM: the longest of all, ms", max(samples[OURS]), 100)
    report.goal("ignores SIGTERM, 500 ms of grace: the longest of all, ms", max(samples[GRACE]), 600)
    report.end()


if __name__ == "__main__":
    main()
