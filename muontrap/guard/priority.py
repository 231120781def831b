"""The guard's priority while it hunts a fork bomb."""

from __future__ import annotations

import os
import resource

_ORDINARY = (os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE)


def raise_priority() -> int | None:
    """Run ahead of all ordinary processes, if allowed; return the policy before that, None if not.

    Autogroup scheduling gives a bomb whose processes each have a session as many shares of the
    CPU as it has processes, and the guard one: real-time scheduling is above them all (sched(7)).
    """
    # Who runs for longer than RLIMIT_RTTIME without sleeping is killed, and a hunt may.
    if resource.getrlimit(resource.RLIMIT_RTTIME)[0] != resource.RLIM_INFINITY:
        return None
    try:
        policy = os.sched_getscheduler(0)
        if policy & ~os.SCHED_RESET_ON_FORK in _ORDINARY:
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
            return policy
    except OSError:
        pass  # musl has none of these functions
    return None


def restore_priority(policy: int) -> None:
    """Go back to an ordinary policy."""
    try:
        os.sched_setscheduler(0, policy, os.sched_param(0))
    except PermissionError:  # allowed by RLIMIT_RTPRIO, and that does not allow to take the flag back
        os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(0))
