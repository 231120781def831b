"""Forks twice, leaves the session, closes every descriptor, clears its environment. A daemon by the
book.

The main process stays; with the argument "exit" it ends, with "hold" besides the daemon keeps
standard output open.
"""

import contextlib
import os
import sys

from ready import pause_for_ever, ready

read_end, write_end = os.pipe()  # both close on exec: end of file says that the daemon stands
if not os.fork():
    os.setsid()
    if os.fork():
        os._exit(0)
    os.chdir("/")
    for fd in range(64):
        if fd != write_end and not (fd == 1 and "hold" in sys.argv):
            with contextlib.suppress(OSError):
                os.close(fd)
    os.execve("/bin/sleep", ["sleep", "1000"], {})
os.close(write_end)
os.wait()
os.read(read_end, 1)
ready()
if "exit" in sys.argv:
    sys.stdout.write("left a daemon\n")
    sys.exit(7)
pause_for_ever()
