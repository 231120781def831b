"""Waits until somebody opens the FIFO $1 for writing, then shows itself ready: as its kind $2 says, at $3."""

import os
import socket
import sys
import time

go, kind, where = sys.argv[1:]
open(go).close()
if kind == "output":
    print("is listening", flush=True)
elif kind == "tcp":
    listener = socket.create_server(("127.0.0.1", int(where)))
elif kind == "unix":
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(where)
    listener.listen()
elif kind == "file":
    open(where, "w").close()
elif kind == "notify":
    socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).sendto(
        b"STATUS=fine\nREADY=1", "\0" + os.environ["NOTIFY_SOCKET"][1:]
    )
time.sleep(1000)
