"""A debugger that seizes the process named in its second argument, and never waits for it."""

import ctypes
import sys

from ready import pause_for_ever, ready

PTRACE_SEIZE = 0x4206
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
ready("traced" if libc.ptrace(PTRACE_SEIZE, int(sys.argv[2]), None, None) == 0 else "refused")
pause_for_ever()
