"""Becomes the program that its arguments name; says ready once that has happened.

With "--child" first, the program is a child in a new session, and the main process ends as soon as it runs;
with "--wait" the main process stays.
"""

import os
import sys

from ready import pause_for_ever, ready

arguments = sys.argv[2:]
how = arguments.pop(0) if arguments[0].startswith("--") else ""
read_end, write_end = os.pipe()  # closed on exec: end of file says that the program runs
if how and not os.fork():
    os.setsid()
    os.execv(arguments[0], arguments)
if how or not os.fork():
    os.close(write_end)
    os.read(read_end, 1)
    ready()
    if how == "--wait":
        pause_for_ever()
    os._exit(0)
os.execv(arguments[0], arguments)
