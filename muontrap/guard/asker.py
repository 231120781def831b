"""The thread of the host that asks: what it may do, as the kernel says."""

from __future__ import annotations

import errno
import os

from muontrap.containment.processes import GONE, read, read_from
from muontrap.errors import ProtocolError
from muontrap.guard.spawn import StepFailed
from muontrap.logic.procfs import parse_umask, privileges


class Asker:
    """Reads /proc/HOST/task/TID/status: privileges and umask are a thread's own in Linux."""

    def __init__(self, host: int, thread: int, *, check_privileges: bool) -> None:
        self._host = host
        self._leader = os.open(f"/proc/{host}/status", os.O_RDONLY | os.O_CLOEXEC)
        self._privileges = privileges(self._status(thread)) if check_privileges else []

    def umask(self, thread: int) -> int:
        """Return the umask of a thread; refuse one with other privileges than this guard was started with.

        The host then starts another guard.
        """
        try:
            status = self._status(thread)
            umask = parse_umask(status)
        except (*GONE, ProtocolError) as error:
            raise StepFailed(getattr(error, "errno", 0) or errno.ESRCH, "credentials") from error
        except OSError as error:  # most likely this process has no descriptor left
            raise StepFailed(error.errno or 0, "descriptors") from error
        for part in self._privileges:
            if part not in status:
                raise StepFailed(errno.EPERM, "credentials")
        return umask

    def _status(self, thread: int) -> bytes:
        if thread == self._host:
            return read_from(self._leader)
        return read(f"/proc/{self._host}/task/{thread}/status")
