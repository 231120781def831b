"""Its main thread ends; another goes on. The kernel shows a zombie that runs. "exit": the process
is a left child.
"""

import _thread
import ctypes
import os
import sys
import time

from ready import ready

if "exit" in sys.argv:
    read_end, write_end = os.pipe()
    if os.fork():
        os.read(read_end, 1)
        os._exit(0)


def run():
    while True:
        with open(f"/proc/self/task/{os.getpid()}/stat") as file:
            if ") Z" in file.read():
                break
        time.sleep(0.001)
    ready()
    if "exit" in sys.argv:
        os.write(write_end, b".")
    time.sleep(1000)


_thread.start_new_thread(run, ())
ctypes.CDLL(None).pthread_exit(None)
