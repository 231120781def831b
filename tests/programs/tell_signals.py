"""A main process, its child, and a grandchild in a session of its own. Each tells of a SIGTERM or
SIGINT, and ends.

With the argument "slow" the main process takes 0.2 s to end, and then exits with 6.
"""

import os
import signal
import sys
import time

from ready import pause_for_ever, ready

name = "main"


def tell(number, _frame):
    ready(f"{signal.Signals(number).name}-{name}")
    if name == "main" and "slow" in sys.argv:
        time.sleep(0.2)
        os._exit(6)
    os._exit(0)


def tell_signals():
    signal.signal(signal.SIGTERM, tell)
    signal.signal(signal.SIGINT, tell)


read_end, write_end = os.pipe()
if not os.fork():
    name = "child"
    if not os.fork():
        name = "grandchild"
        os.setsid()
tell_signals()
os.write(write_end, b".")
if name == "main":
    for _ in range(3):
        os.read(read_end, 1)
    ready()
pause_for_ever()
