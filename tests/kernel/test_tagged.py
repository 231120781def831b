"""What carries a tag, found and killed without a guard."""

from __future__ import annotations

import errno
import os
import resource
import subprocess

import pytest

from muontrap.containment.tagged import TagReader, kill_guardless, usable_format

RLIMIT_LOCKS = 10
GUARD = 0xA7A


def test_a_death_that_was_seen_once_is_no_proof() -> None:
    """It may have left a child just before, which a second look would find."""
    form = usable_format()
    assert form
    reader = TagReader(form)
    with subprocess.Popen(["sleep", "1000"]) as process:
        hard = resource.prlimit(process.pid, RLIMIT_LOCKS)[1]
        resource.prlimit(process.pid, RLIMIT_LOCKS, (form.encode(GUARD, 1), hard))
        assert kill_guardless(reader, GUARD, -1) == (process.pid,)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(OSError, match="temporarily") as caught:
            kill_guardless(reader, GUARD, -1)
        assert caught.value.errno == errno.EAGAIN
        assert kill_guardless(reader, GUARD, 10) == ()
    assert kill_guardless(reader, GUARD, -1) == ()
