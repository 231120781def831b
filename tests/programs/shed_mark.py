"""Takes muontrap's mark off, as PAM does: sets RLIMIT_LOCKS back. Then leaves a daemon; or, with
"chain", a daemon that forks and exits every 2 ms. The main process stays; with "exit" it ends.
"""

import os
import resource
import sys
import time

from ready import pause_for_ever, ready

RLIMIT_LOCKS = 10

if not os.fork():
    hard = resource.getrlimit(RLIMIT_LOCKS)[1]
    resource.setrlimit(RLIMIT_LOCKS, (hard, hard))
    os.setsid()
    if os.fork():
        os._exit(0)
    while "chain" in sys.argv:
        if os.fork():
            time.sleep(0.002)
            os._exit(0)
    pause_for_ever()
os.wait()
ready()
if "exit" in sys.argv:
    os._exit(0)
pause_for_ever()
