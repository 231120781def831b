"""The guard's priority while it hunts a fork bomb."""

from __future__ import annotations

import os


def raise_priority() -> bool:
    """Run ahead of all ordinary processes, if allowed; return whether it was.

    Autogroup scheduling gives a bomb whose processes each have a session as many shares of the
    CPU as it has processes, and the guard one: real-time scheduling is above them all (sched(7)).
    """
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except PermissionError:
        return False
    return True


def restore_priority() -> None:
    """Go back to ordinary scheduling."""
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
