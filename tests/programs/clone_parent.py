"""Has a child that is its sibling: made by clone3(CLONE_PARENT), its parent is the guard. "exit":
the main process ends.
"""

import ctypes
import os
import struct
import sys

from ready import pause_for_ever, ready

CLONE_PARENT = 0x8000
SYS_CLONE3 = 435  # on every architecture

read_end, write_end = os.pipe()
arguments = struct.pack("8Q", CLONE_PARENT, 0, 0, 0, 0, 0, 0, 0)  # no exit signal: the parent's is kept
if ctypes.PyDLL(None).syscall(SYS_CLONE3, arguments, len(arguments)) == 0:
    os.setsid()
    os.write(write_end, b".")
    pause_for_ever()
os.read(read_end, 1)
ready()
if "exit" in sys.argv:
    os._exit(0)
pause_for_ever()
