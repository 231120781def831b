"""Says each argument to NOTIFY_SOCKET; one that is a number is a pause of so many seconds."""

import os
import socket
import sys
import time

address = os.environ["NOTIFY_SOCKET"]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
    one.connect("\0" + address[1:] if address[0] == "@" else address)
    for word in sys.argv[1:]:
        if "=" in word:
            one.send(word.encode())
        else:
            time.sleep(float(word))
time.sleep(1000)
