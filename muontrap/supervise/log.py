"""What a tree logs, to `muontrap.supervisor`.

`logging` is a megabyte, and loaded when somebody has use for it: one who has loaded it himself, or who is to
read what it writes to stderr by itself, from WARNING on.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import logging
    from collections.abc import Callable

NAME = "muontrap.supervisor"
INFO, WARNING, ERROR = 20, 30, 40
_plain: Callable[[str], object] | None = None


def set_plain(line: Callable[[str], object] | None) -> None:
    """Hand all messages to a function, and none to `logging`; None for the other way round."""
    global _plain
    _plain = line


def write(level: int, message: str, *arguments: object) -> None:
    """Log a message, as `logging.log` does."""
    if _plain:
        _plain(message % arguments)
    elif level >= WARNING or "logging" in sys.modules:
        logger = _logger()
        if logger:
            logger.log(level, message, *arguments, stacklevel=2)


def failure(error: BaseException, message: str, *arguments: object) -> None:
    """Log an exception, as `logging.exception` does."""
    if _plain:
        from traceback import format_exception

        _plain("\n".join((message % arguments, "".join(format_exception(error)).rstrip())))
        return
    logger = _logger()
    if logger:
        logger.error(message, *arguments, exc_info=error, stacklevel=2)


def _logger() -> logging.Logger | None:
    try:
        import logging
    except (ImportError, OSError):  # no descriptor is left, say: a tree has more to do than to log
        return None
    return logging.getLogger(NAME)
