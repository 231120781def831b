"""Leaves a daemon, and sets the pid allocated last back to its own, as programs that restore processes
do: by the order of pids it has never forked.  Without the right to do so it just leaves the daemon.
With "say" it says the daemon's pid.
"""

import os
import sys

from ready import pause_for_ever, ready

read_end, write_end = os.pipe()
child = os.fork()
if not child:
    os.setsid()
    os.write(write_end, b".")
    pause_for_ever()
os.read(read_end, 1)
ready()
if "say" in sys.argv:
    print(child, flush=True)
try:
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(os.getpid()))
except PermissionError:
    pass
os._exit(0)
