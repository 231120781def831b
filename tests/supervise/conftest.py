"""Each test of supervision leaves the process as it was, and no loop has had to complain."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator

import pytest
from arena import BOUND
from hostlib import close_idle_channels, muontrap, open_fds


class _Complaints(logging.Handler):
    """What loops log: exceptions that nobody took."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR and record.pathname.endswith("/loop.py"):
            self.texts.append(self.format(record))


def _join_ours() -> None:
    """Wait until the pump's threads have ended, as nobody needs them."""
    ours = [thread for thread in threading.enumerate() if thread.name.startswith("muontrap")]
    for thread in ours:
        thread.join(BOUND)
    assert [thread for thread in ours if thread.is_alive()] == []


@pytest.fixture(scope="module", autouse=True)
def quick_collections() -> Iterator[None]:
    """The garbage collector looks at what these tests make, and not at all of pytest, twice for each."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """No thread and no descriptor more than before, no task that was forgotten."""
    muontrap.start_guard()
    _join_ours()
    gc.collect()
    close_idle_channels()
    before = open_fds()
    complaints = _Complaints()
    logging.getLogger("muontrap.supervisor").addHandler(complaints)
    try:
        yield
        _join_ours()
        gc.collect()
        close_idle_channels()
    finally:
        logging.getLogger("muontrap.supervisor").removeHandler(complaints)
    assert open_fds() == before
    assert complaints.texts == []
