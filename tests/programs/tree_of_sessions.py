"""A tree, three levels deep: each process has a child in a new session and one in a new process group.

With the argument "exit" the main process ends and leaves its tree.
"""

import os
import sys

from ready import pause_for_ever, ready

LEVELS = 3
read_end, write_end = os.pipe()


def grow(level):
    for leave in (os.setsid, os.setpgrp) if level else ():
        if not os.fork():
            leave()
            grow(level - 1)
    os.write(write_end, b".")
    if level < LEVELS:
        pause_for_ever()


grow(LEVELS)
left = 2 ** (LEVELS + 1) - 1
while left:
    left -= len(os.read(read_end, left))
ready()
if "exit" in sys.argv:
    os._exit(0)
pause_for_ever()
