"""What daemons and supervisors check of what they are given."""

from __future__ import annotations

from collections.abc import Iterable

from muontrap.logic.children import Backoff


def check_child(name: object, essential: object, backoff: object) -> None:
    """Raise for what these can't be, of a child."""
    check_type("name", name, str, "a string")
    if not name or "/" in str(name):
        raise ValueError(f"name must not be empty or have a slash, not {name!r}")
    if not isinstance(essential, bool):
        raise TypeError(f"essential must be True or False, not {essential!r}")
    if backoff is not None:
        check_type("backoff", backoff, Backoff, "a Backoff")


def check_type(option: str, value: object, kind: type | tuple[type, ...], what: str) -> None:
    """Raise for a value of another type."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{option} must be {what}, not {value!r}")


def check_callable(option: str, value: object) -> None:
    """Raise for what can't be called, unless it is None."""
    if value is not None and not callable(value):
        raise TypeError(f"{option} must be callable, not {value!r}")


def names(option: str, given: object) -> tuple[str, ...]:
    """Return names in a tuple, or raise for what is not some names."""
    found = tuple(given) if isinstance(given, Iterable) else ()
    if (
        isinstance(given, str)
        or not isinstance(given, Iterable)
        or not all(isinstance(each, str) for each in found)
    ):
        raise TypeError(f"{option} must be a sequence of names, not {given!r}")
    return found


def statuses(given: object) -> tuple[int, ...]:
    """Return exit statuses in a tuple, or raise for what is not some numbers."""
    found = tuple(given) if isinstance(given, Iterable) and not isinstance(given, bytes) else (None,)
    if any(type(each) is not int for each in found):
        raise TypeError(f"success_exit_status must be some numbers, not {given!r}")
    if any(not 0 <= each <= 255 for each in found):
        raise ValueError(f"success_exit_status must be numbers from 0 to 255, not {given!r}")
    return found
