"""Ignores every signal that can be ignored; with the argument "exit", a child that does so outlives
the main process.
"""

import contextlib
import os
import signal
import sys

from ready import pause_for_ever, ready

for number in range(1, signal.SIGRTMAX + 1):
    with contextlib.suppress(OSError, ValueError):  # SIGKILL, SIGSTOP, libc's own two
        signal.signal(number, signal.SIG_IGN)
read_end, write_end = os.pipe()
if "exit" in sys.argv and os.fork():
    os.read(read_end, 1)
    os._exit(0)
ready()
os.write(write_end, b".")
pause_for_ever()
