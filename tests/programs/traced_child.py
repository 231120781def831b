"""Traces its child and never waits for it: killed, the child stays a zombie. "exit": the tracer ends."""

import ctypes
import os
import signal
import sys
import time

from ready import pause_for_ever, ready

PTRACE_TRACEME = 0
child = os.fork()
if not child:
    ctypes.CDLL(None).ptrace(PTRACE_TRACEME, 0, None, None)
    os.kill(os.getpid(), signal.SIGSTOP)
    pause_for_ever()
while True:
    with open(f"/proc/{child}/stat") as file:
        if ") t" in file.read():
            break
    time.sleep(0.001)
ready()
if "exit" in sys.argv:
    os._exit(0)
pause_for_ever()
