"""How these programs tell the test that they stand as they should: a word into the FIFO that is
their first argument.
"""

import os
import sys


def ready(word="ready"):
    fd = os.open(sys.argv[1], os.O_WRONLY)
    os.write(fd, word.encode() + b"\n")
    os.close(fd)


def pause_for_ever():
    import signal

    while True:
        signal.pause()
