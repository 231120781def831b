"""What a tree logs, to `muontrap.supervisor`.

`logging` is a megabyte, and loaded when somebody has use for it: one who has loaded it himself, or who is to
read what it writes to stderr by itself, from WARNING on.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging

INFO, WARNING, ERROR = 20, 30, 40


def write(level: int, message: str, *arguments: object) -> None:
    """Log a message, as `logging.log` does."""
    if level >= WARNING or "logging" in sys.modules:
        logger = _logger()
        if logger:
            logger.log(level, message, *arguments, stacklevel=2)


def failure(error: BaseException, message: str, *arguments: object) -> None:
    """Log an exception, as `logging.exception` does."""
    logger = _logger()
    if logger:
        logger.error(message, *arguments, exc_info=error, stacklevel=2)


def _logger() -> logging.Logger | None:
    try:
        import logging
    except (ImportError, OSError):  # no descriptor is left, say: a tree has more to do than to log
        return None
    return logging.getLogger("muontrap.supervisor")
