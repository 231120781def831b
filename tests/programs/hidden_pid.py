"""Leaves a daemon, whose pid it says, and sets the pid allocated last back to its own, as programs that
restore processes do: by the order of pids it has never forked.
"""

import os

from ready import pause_for_ever, ready

read_end, write_end = os.pipe()
child = os.fork()
if not child:
    os.setsid()
    os.write(write_end, b".")
    pause_for_ever()
os.read(read_end, 1)
ready()
print(child, flush=True)
with open("/proc/sys/kernel/ns_last_pid", "w") as file:
    file.write(str(os.getpid()))
os._exit(0)
