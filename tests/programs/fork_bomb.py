"""A fork bomb of at most 300 processes at a time: each forks as long as it may, and again when a
child of its dies.

With the argument "sessions" each has a session (so, for the scheduler, an autogroup) of its own.
"""

import fcntl
import os
import signal
import sys

from ready import ready

LIMIT = 300
read_end, write_end = os.pipe()
fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
os.write(write_end, b"." * (LIMIT - 2) + b"!")  # a byte is leave to fork once; the last one tells the test


def replace_dead_children(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            os.write(write_end, b".")
    except ChildProcessError:
        pass


signal.signal(signal.SIGCHLD, replace_dead_children)
while True:
    leave = os.read(read_end, 1)
    if leave == b"!":
        ready()
    if not os.fork() and "sessions" in sys.argv:
        os.setsid()
