"""Has three stopped children, one of them in a session of its own, and waits. "exit": ends and
leaves them stopped.
"""

import os
import signal
import sys

from ready import pause_for_ever, ready

for number in range(3):
    pid = os.fork()
    if not pid:
        if number == 1:
            os.setsid()
        os.kill(os.getpid(), signal.SIGSTOP)
        pause_for_ever()
    os.waitpid(pid, os.WUNTRACED)
ready()
if "exit" in sys.argv:
    os._exit(0)
pause_for_ever()
