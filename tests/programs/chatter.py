"""Writes without end to standard output."""

import os

from ready import ready

ready()
while True:
    os.write(1, b"x" * 65536)
