"""Sends its guard (its parent) the signal named in its second argument, when told by a byte in its
third, a FIFO.

With the argument "again" it goes on doing so.
"""

import os
import signal
import sys
import time

from ready import pause_for_ever, ready

guard = os.getppid()
ready()
with open(sys.argv[3], "rb") as go:
    go.read(1)
os.kill(guard, getattr(signal, sys.argv[2]))
ready("sent")
while "again" in sys.argv:
    if os.getppid() != guard:
        break
    os.kill(guard, getattr(signal, sys.argv[2]))
    time.sleep(0.001)
pause_for_ever()
