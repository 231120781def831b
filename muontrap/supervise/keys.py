"""The keys of a file of daemons: what there is, and what texts and numbers come to.

A key has the name of the argument that it becomes.  What values can be is known by the objects that are
made of them, as a check.
"""

from __future__ import annotations

import logging
import re
import resource
import signal

from muontrap.logic.children import Backoff
from muontrap.logic.command import DEVNULL, STDOUT, Command, check_seconds
from muontrap.logic.limits import Limits
from muontrap.supervise.places import WRONG, no_table, values_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from muontrap.supervise.places import Converter, Place
    from muontrap.supervise.plan import Kind

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)", re.ASCII)
_UNITS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _as_is(_: Place, value: Any) -> Any:
    return value


def _string(at: Place, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{at.name} must be a string, not {value!r}")
    return value


def _boolean(at: Place, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{at.name} must be true or false, not {value!r}")
    return value


def _integer(least: int, most: int | None = None) -> Converter:
    def convert(at: Place, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{at.name} must be an integer, not {value!r}")
        if value < least or (most is not None and value > most):
            bounds = f"{least} or more" if most is None else f"from {least} to {most}"
            raise ValueError(f"{at.name} must be {bounds}, not {value!r}")
        return value

    return convert


def _array(each: Converter) -> Converter:
    def convert(at: Place, value: Any) -> Any:
        if not isinstance(value, list):
            raise TypeError(f"{at.name} must be an array, not {value!r}")
        items = [at.below(index).take(item, each) for index, item in enumerate(value)]
        return WRONG if WRONG in items else items

    return convert


def _table_of(keys: Mapping[str, Converter], make: Callable[[dict[str, Any]], Any]) -> Converter:
    def convert(at: Place, value: Any) -> Any:
        before = at.count
        values = at.settle(values_of(at, value, keys), make)
        return make(values) if at.count == before else WRONG

    return convert


def _environment(each: Converter) -> Converter:
    def convert(at: Place, value: Any) -> Any:
        if not isinstance(value, dict):  # not shown: variables are often secrets
            raise TypeError(f"{at.name} must be a table of strings")
        values = values_of(at, value, dict.fromkeys(value, each))
        return values if values.keys() == value.keys() else WRONG

    return convert


def _variable(at: Place, value: Any) -> str:
    if not at.name or set(at.name) & {"=", "\0"}:
        raise ValueError(f"illegal environment variable name: {at.name!r}")
    if not isinstance(value, str) or "\0" in value:
        raise ValueError(f'{at.name} must be a string without NUL, such as "1"')
    return value


def _change(at: Place, value: Any) -> str | None:
    return None if value is False else _variable(at, value)


def _command(at: Place, value: Any) -> Any:
    if not isinstance(value, list):
        raise TypeError(
            f'{at.name} must be an array such as ["ls", "-l"], not {value!r}: no shell splits it; '
            '["sh", "-c", "..."] runs one'
        )
    return _array(_string)(at, value)


def _seconds(at: Place, value: Any) -> float:
    given = value
    if isinstance(value, str):
        found = _DURATION.fullmatch(value)
        if not found:
            raise ValueError(f'{at.name} must be seconds, or a text such as "500ms", "1.5s", not {value!r}')
        given = float(found[1]) * _UNITS[found[2]]
    return check_seconds(at.name, given)


def _signal(at: Place, value: Any) -> int:
    number = value
    if isinstance(value, str):
        number = signal.Signals.__members__.get(f"SIG{value.upper().removeprefix('SIG')}")
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= 64:
        raise ValueError(f'{at.name} must be a signal such as "SIGINT" or 2, not {value!r}')
    return int(number)


def _mask(at: Place, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if not re.fullmatch("(0o)?[0-7]+", value):
        raise ValueError(f'{at.name} must be a text such as "0o022", or a number, not {value!r}')
    return int(value, 8)


def _level(at: Place, value: Any) -> int:
    level = logging.getLevelName(value.upper()) if isinstance(value, str) else value
    if isinstance(level, bool) or not isinstance(level, int) or level < 0:
        raise ValueError(f'{at.name} must be a level such as "INFO" or 20, not {value!r}')
    return level


def _logger(at: Place, value: Any) -> logging.Logger:
    return logging.getLogger(_string(at, value))


def _attributes(at: Place, value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError(no_table(at, value))
    return value


def _one_of(words: Mapping[str, Any]) -> Converter:
    def convert(at: Place, value: Any) -> Any:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"{at.name} must be one of {', '.join(words)}, not {value!r}")
        return words[value]

    return convert


def _rlimit(at: Place, value: Any) -> Any:
    pair = value if isinstance(value, list) else [value, value]
    limit = tuple(-1 if each == "unlimited" else each for each in pair)
    try:
        Command(["-"], rlimits={resource.RLIMIT_CPU: limit})  # type: ignore[dict-item]
    except (TypeError, ValueError) as error:
        raise ValueError(str(error).replace(f"rlimits[{resource.RLIMIT_CPU}]", at.name)) from None
    return limit


# What there is: key -> what a value comes to.

KINDS: tuple[Kind, ...] = ("daemon", "group")
_RLIMITS = {
    name.removeprefix("RLIMIT_"): number
    for name, number in sorted(vars(resource).items())
    if name.startswith("RLIMIT_") and name != "RLIMIT_OFILE"  # NOFILE once more
}
_CHILD: dict[str, Converter] = {
    "restart": _as_is,
    "essential": _boolean,
    "depends_on": _array(_string),
    "backoff": _table_of(
        {
            "initial": _seconds,
            "factor": _as_is,
            "cap": _seconds,
            "jitter": _as_is,
            "reset_after": _seconds,
        },
        lambda values: Backoff(**values),
    ),
}
ROOT: dict[str, Converter] = {
    "strategy": _as_is,
    "max_restarts": _integer(0),
    "max_seconds": _seconds,
    "on_give_up": _one_of({"stop_all": "stop_all", "ignore": "ignore"}),
}
GROUP = {**ROOT, **_CHILD}
DAEMON: dict[str, Converter] = {
    "command": _command,
    **_CHILD,
    "success_exit_status": _array(_integer(0, 255)),
    "wait_for": _string,
    "ready": _string,
    "ready_timeout": _seconds,
    "watchdog": _seconds,
    "log_output": _level,
    "logger": _logger,
    "log_prefix": _string,
    "logger_metadata": _attributes,
    "recent_output": _integer(0),
    "executable": _string,
    "stdin": _one_of({"null": DEVNULL, "inherit": 0}),
    "stdout": _one_of({"null": DEVNULL, "inherit": 1}),
    "stderr": _one_of({"null": DEVNULL, "inherit": 2, "stdout": STDOUT}),
    "stdio_window": _as_is,
    "max_line": _as_is,
    "inactivity_timeout": _seconds,
    "encoding": _string,
    "errors": _string,
    "cwd": _string,
    "env": _environment(_variable),
    "env_update": _environment(_change),
    "user": _as_is,
    "group": _as_is,
    "extra_groups": _array(_as_is),
    "allow_root": _boolean,
    "umask": _mask,
    "start_new_session": _boolean,
    "kill_mode": _as_is,
    "delay_to_sigkill": _seconds,
    "stop_signal": _signal,
    "rlimits": _table_of(
        dict.fromkeys(_RLIMITS, _rlimit),
        lambda values: {_RLIMITS[name]: limit for name, limit in values.items()},
    ),
    "nice": _as_is,
    "cpu_affinity": _array(_as_is),
    "oom_score_adj": _as_is,
    "no_new_privs": _boolean,
    "pdeathsig": _signal,
    "cgroup": _as_is,
    "cgroup_base": _string,
    "cgroup_path": _string,
    "cgroup_controllers": _array(_string),
    "cgroup_sets": _array(_as_is),
    "limits": _table_of(dict.fromkeys(vars(Limits()), _as_is), lambda values: Limits(**values)),
    "require": _array(_as_is),
}
