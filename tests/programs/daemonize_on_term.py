"""On SIGTERM it starts a daemon in a new session, and ends."""

import os
import signal

from ready import pause_for_ever, ready


def daemonize(*_):
    if not os.fork():
        os.setsid()
        if not os.fork():
            ready("daemonized")
            os.execve("/bin/sleep", ["sleep", "1000"], {})
        os._exit(0)
    os.wait()
    os._exit(0)


signal.signal(signal.SIGTERM, daemonize)
ready()
pause_for_ever()
