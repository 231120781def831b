"""A chain: each process forks and exits 2 ms later, for ever. "exit": the main process ends and
leaves the chain.
"""

import os
import sys
import time

from ready import pause_for_ever, ready

read_end, write_end = os.pipe()
if not os.fork():
    for link in range(1_000_000):
        if link == 3:
            ready()
            os.write(write_end, b".")
        if os.fork():
            time.sleep(0.002)
            os._exit(0)
if "exit" in sys.argv:
    os.read(read_end, 1)
    os._exit(0)
pause_for_ever()
