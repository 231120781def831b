"""Leaves a daemon, and sets the pid allocated last back to its own, as programs that restore processes
do: by the order of pids it has never forked.  Without the right to do so it just leaves the daemon.
"""

import os

from ready import pause_for_ever, ready

if not os.fork():
    os.setsid()
    ready()
    pause_for_ever()
try:
    with open("/proc/sys/kernel/ns_last_pid", "w") as file:
        file.write(str(os.getpid()))
except PermissionError:
    pass
os._exit(0)
