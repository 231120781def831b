"""Files of daemons: read, or refused line by line; and `muontrap check`."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys

from muontrap.cli.report import fail
from muontrap.supervise.config import ConfigError, Plan, load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

BAD_FILE = 2


def check(path: str) -> int:
    """Say on stdout that a file is right, or on stderr what is not; return the exit status."""
    plan, status = read(path)
    if plan is None:
        return status
    count = len(plan.daemons)
    page = f"{path}: {count} daemon{'s' * (count != 1)}, all right\n"
    try:
        sys.stdout.buffer.write(os.fsencode(page))
        sys.stdout.flush()
    except OSError as error:
        return fail(f"stdout: {error.strerror}")
    return 0


def hand_out(path: str) -> NoReturn:
    """Write a file's plan to stdout, for the process that has started this one to read it."""
    plan, status = read(path)
    if plan is not None:
        with open(1, "wb", closefd=False) as file:
            pickle.dump(plan, file)
    raise SystemExit(status)


def read(path: str) -> tuple[Plan, int] | tuple[None, int]:
    """Return what a file says, and 0; or, once it is said why there is none, None and the exit status."""
    try:
        return load(path), 0
    except ConfigError as error:
        with contextlib.suppress(OSError):  # as `say` does, without the prefix: editors find the line
            os.write(2, f"{error}\n".encode(errors="backslashreplace"))
        return None, BAD_FILE
    except ImportError as error:
        return None, fail(str(error))
