"""What to run: the options of a command, every one checked before anything is started."""

from __future__ import annotations

import codecs
import sys
from collections.abc import Callable, Mapping, Sequence

from muontrap.logic.escalation import KILL_MODES
from muontrap.logic.window import Inactivity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from os import PathLike
    from typing import IO, Any, Literal, TypeAlias, TypedDict

    from typing_extensions import Unpack

    from muontrap.logic.limits import LimitOptions, Limits

    Path: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]
    Args: TypeAlias = Sequence[Path]
    Stream: TypeAlias = int | IO[Any] | None
    KillMode: TypeAlias = Literal["mixed", "control-group", "process"]
    Layer: TypeAlias = Literal["cgroup", "cgroup-v1", "cgroup-v2", "tag", "subreaper"]

    class Options(TypedDict, total=False):
        """Keyword options of `Launcher` and `run`. `docs/reference/options.md` explains each."""

        executable: Path | None
        stdin: Stream
        stdout: Stream
        stderr: Stream
        bufsize: int
        stdio_window: int | None
        max_line: int
        inactivity_timeout: float | None
        text: bool | None
        encoding: str | None
        errors: str | None
        cwd: Path | None
        env: Mapping[str, str] | Mapping[bytes, bytes] | None
        env_update: Mapping[str, str | None] | Mapping[bytes, bytes | None] | None
        user: str | int | None
        group: str | int | None
        extra_groups: Sequence[str | int] | None
        allow_root: bool
        umask: int | None
        pass_fds: Sequence[int]
        start_new_session: bool
        foreground: bool
        kill_mode: KillMode
        delay_to_sigkill: float
        stop_signal: int
        rlimits: Mapping[int, int | tuple[int, int]]
        nice: int | None
        cpu_affinity: Sequence[int] | None
        oom_score_adj: int | None
        no_new_privs: bool
        pdeathsig: int | None
        cgroup: bool | Literal["auto"]
        cgroup_base: str | None
        cgroup_path: str | None
        cgroup_controllers: Sequence[str]
        cgroup_sets: Sequence[tuple[str, str, str]]
        limits: Limits | LimitOptions | None
        require: Sequence[Layer]

    Checker: TypeAlias = Callable[[str, Any], Any]


# subprocess's own values, so that its constants and ours are the same (it is not imported here).
PIPE, STDOUT, DEVNULL = -1, -2, -3
# The original's, which is there on top of what the kernel buffers.
DEFAULT_WINDOW = 10_240
MAX_LINE = 2**20
LAYERS = ("cgroup", "cgroup-v1", "cgroup-v2", "tag", "subreaper")

_ENCODING = sys.getfilesystemencoding()
_RLIMIT_LOCKS = 10
_HIGHEST_DESCRIPTOR = 2**31 - 1
# Others' would be in the command's cgroup then, and be killed with it.
_MOVING = ("cgroup.procs", "cgroup.threads", "tasks")
_FOR_CGROUPS = frozenset(("cgroup_base", "cgroup_path", "cgroup_controllers", "cgroup_sets", "limits"))
_REFUSED = {
    "shell": "shell=True is refused: give the program and its arguments as a list, or "
    "['sh', '-c', script] where a shell is meant",
    "preexec_fn": "preexec_fn is refused, for it is not safe with threads: use rlimits, nice, "
    "cpu_affinity, umask, user, group, no_new_privs, oom_score_adj, pdeathsig or start_new_session",
    **dict.fromkeys(
        ("input", "capture_output", "timeout", "check", "into", "max_output", "max_output_policy"),
        "input, capture_output, timeout, check, into, max_output and max_output_policy are for run(), "
        "not for a Launcher",
    ),
}


class Command:
    """A checked, immutable description; attributes are the options by name, besides `args`, `argv`."""

    def __init__(self, args: Args, **options: Unpack[Options]) -> None:
        args = _items(args)
        values: dict[str, Any] = {"args": args, "argv": _argv(args)}
        for name, value in options.items():
            if name not in _CHECKERS:
                if name in ("shell", "preexec_fn") and not value:
                    continue
                raise TypeError(
                    _REFUSED.get(name) or f"unknown option {name!r}; there are {', '.join(_CHECKERS)}"
                )
            values[name] = _CHECKERS[name][1](name, value)
        if options:
            _check_together(values)
        self.__dict__.update(values)  # defaults are the class's: a supervisor has hundreds of these

    def __getattr__(self, name: str) -> Any:
        # For checkers: what is in `__dict__` or a default is found before this is asked.
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def but(self, **values: Any) -> Command:
        """Return the same command with other values, which have been checked."""
        other = object.__new__(Command)
        other.__dict__.update(self.__dict__, **values)
        return other

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a {type(self).__name__} can't be changed: make another for {name}")

    @property
    def insists_on_cgroup(self) -> bool:
        """Whether there has to be one."""
        # What was not given has a default, and asks for nothing.
        return self.cgroup is True or any(map(vars(self).get, _FOR_CGROUPS))

    @property
    def program(self) -> bytes:
        """The file to execute."""
        program: bytes = self.argv[0] if self.executable is None else self.executable
        return program

    @property
    def is_text(self) -> bool:
        """Whether streams are text, as `subprocess` decides it."""
        return bool(self.text or self.encoding or self.errors)

    def patience(self, now: float) -> Inactivity | None:
        """Return the deadline for its next output, if it has one."""
        return Inactivity(self.inactivity_timeout, now) if self.inactivity_timeout else None


def encode(name: str, value: Any) -> bytes:
    """Return a string, bytes or path-like as the bytes that the kernel takes."""
    if not isinstance(value, (str, bytes)) and hasattr(value, "__fspath__"):
        value = value.__fspath__()
    if isinstance(value, str):
        try:
            value = value.encode(_ENCODING, "surrogateescape")
        except UnicodeEncodeError as error:
            error.reason += f" (in {name})"
            raise
    if not isinstance(value, bytes):
        raise TypeError(f"{name} must be str, bytes or path-like, not {value!r}")
    if b"\0" in value:
        raise ValueError(f"{name} has an embedded null byte: {value!r}")
    return value


def check_seconds(name: str, value: float) -> float:
    """Return a time in seconds, or raise for anything that is no finite number from 0 on."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 <= value <= sys.float_info.max:
        raise ValueError(f"{name} must be a finite number of seconds, 0 or more, not {value!r}")
    return float(value)


def check_positive_seconds(name: str, value: float) -> float:
    """Return a time in seconds, or raise for anything that is no finite number above 0."""
    if check_seconds(name, value) == 0:
        raise ValueError(f"{name} must be more than 0 s: for no limit, leave it out")
    return float(value)


def _items(args: Any) -> list[Any] | tuple[Any, ...]:
    """Return what nobody else changes."""
    if isinstance(args, (str, bytes)) or hasattr(args, "__fspath__"):
        raise TypeError(
            f"args must be a sequence such as ['ls', '-l'], not {args!r}: no shell splits it "
            "(shlex.split does, where that is wanted)"
        )
    if not hasattr(args, "__iter__"):
        raise TypeError(f"args must be a sequence of str, bytes or path-likes, not {args!r}")
    return args if type(args) is tuple else list(args)


def _argv(args: Args) -> tuple[bytes, ...]:
    argv = tuple([encode(f"args[{index}]", value) for index, value in enumerate(args)])
    if not argv:
        raise ValueError("args is empty: it must begin with the program")
    return argv


def _check_together(values: dict[str, Any]) -> None:
    given = values.get
    if given("stdin") == STDOUT or given("stdout") == STDOUT:
        raise ValueError("STDOUT is for stderr alone")
    if given("executable") is not None and not values["argv"][0]:
        raise ValueError("args[0] is empty, which os.execve refuses: give the program a name")
    if given("cgroup_base") is not None and given("cgroup_path") is not None:
        raise ValueError("cgroup_base and cgroup_path may not both be given")
    if given("foreground") and given("start_new_session", True):
        raise ValueError("foreground=True needs start_new_session=False: a new session has no terminal")
    if given("extra_groups") is None and given("group") is not None and given("user") is None:
        values["extra_groups"] = ()


def _optional(check: Checker) -> Checker:
    return lambda name, value: None if value is None else check(name, value)


def _integer(low: int, high: int) -> Checker:
    def check(name: str, value: Any) -> int:
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise TypeError(f"{name} must be an integer, not {value!r}")
        if not low <= value <= high:
            raise ValueError(f"{name} must be from {low} to {high}, not {value!r}")
        return int(value)

    return check


def _boolean(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def _stream(name: str, value: Any) -> Any:
    if value is None or hasattr(value, "fileno"):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= DEVNULL:
        return _integer(DEVNULL, _HIGHEST_DESCRIPTOR)(name, value)
    raise TypeError(f"{name} must be None, PIPE, DEVNULL, a descriptor or a file, not {value!r}")


def _codec(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r}")
    if "\0" in value:
        raise ValueError(f"{name} has an embedded null character: {value!r}")
    if name == "errors":
        codecs.lookup_error(value)
    elif value != "locale":  # which is the host's, to `open`
        "".encode(value)  # refuses also what is no encoding of text: "hex"
    return value


def _environment(name: str, value: Any) -> dict[bytes, bytes | None]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, not {value!r}")
    variables = {}
    for key, text in value.items():
        variable = encode(f"a name in {name}", key)
        if not variable or b"=" in variable:
            raise ValueError(f"illegal environment variable name in {name}: {key!r}")
        removed = text is None and name == "env_update"
        variables[variable] = None if removed else encode(f"{name}[{key!r}]", text)
    return variables


def _account(name: str, value: Any) -> str | int:
    if isinstance(value, str):
        encode(name, value)
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a name or a number, not {value!r}")
    # -1, and so the highest number, means "leave as it is" to setresuid(2).
    return int(_integer(0, 2**32 - 2)(name, value))


def _sequence(check: Checker, least: int = 0) -> Checker:
    def check_all(name: str, value: Any) -> tuple[Any, ...]:
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise TypeError(f"{name} must be a sequence, not {value!r}")
        items = tuple(check(f"{name}[{index}]", item) for index, item in enumerate(value))
        if len(items) < least:
            raise ValueError(f"{name} must have at least {least} item, not {value!r}")
        return items

    return check_all


def _rlimits(name: str, value: Any) -> tuple[tuple[int, int, int], ...]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping such as {{RLIMIT_NOFILE: 64}}, not {value!r}")
    limits = []
    for key, limit in value.items():
        resource = _integer(0, 15)(f"a key of {name}", key)
        if resource == _RLIMIT_LOCKS:
            raise ValueError(f"{name}: RLIMIT_LOCKS, which Linux does not enforce, is muontrap's tag")
        pair = limit if isinstance(limit, (tuple, list)) else (limit, limit)
        if len(pair) != 2:
            raise ValueError(f"{name}[{key!r}] must be a number or (soft, hard), not {limit!r}")
        soft, hard = (_integer(-1, 2**63 - 1)(f"{name}[{key!r}]", number) for number in pair)
        if hard != -1 and (soft == -1 or soft > hard):
            raise ValueError(f"{name}[{key!r}] has a soft limit above the hard one: {limit!r}")
        limits.append((resource, soft, hard))
    return tuple(limits)


def _kill_mode(name: str, value: Any) -> str:
    if value not in KILL_MODES:
        raise ValueError(f"{name} must be one of {', '.join(KILL_MODES)}, not {value!r}")
    return str(value)


def _cgroup(name: str, value: Any) -> bool | str:
    if value == "auto":
        return "auto"
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True, False or 'auto', not {value!r}")
    return value


def check_cgroup_path(name: str, value: Any) -> str:
    """Return a path below a hierarchy's root, or raise for one that leads out of it."""
    path = encode(name, value).decode(sys.getfilesystemencoding(), "surrogateescape")
    parts = path.split("/")
    if path.startswith("/") or not path.strip("./") or {"..", "", "."} & set(parts):
        raise ValueError(
            f"{name} must be a path below the hierarchy's root, such as 'app/web', not {value!r}"
        )
    return path


def _word(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value or set(value) & set("/\0 \n,") or value.startswith("."):
        raise ValueError(f"{name} must be a name, not {value!r}")
    return value


def _cgroup_set(name: str, value: Any) -> tuple[str, str, str]:
    if not isinstance(value, (tuple, list)) or len(value) != 3:
        raise ValueError(f"{name} must be (controller, file, value), not {value!r}")
    controller, file, text = value
    if not isinstance(text, (str, int)) or isinstance(text, bool) or "\0" in str(text):
        raise ValueError(f"the value of {name} must be a string or a number, not {text!r}")
    if file in _MOVING:
        raise ValueError(f"the file of {name} must be a setting, not {file!r}, which moves processes")
    return _word(f"the controller of {name}", controller), _word(f"the file of {name}", file), str(text)


def _limits(name: str, value: Any) -> Any:
    from muontrap.logic.limits import Limits  # for those who have limits

    if isinstance(value, Mapping):
        return Limits(**value)
    if not isinstance(value, Limits):
        raise TypeError(f"{name} must be Limits or a mapping such as {{'memory_max': '256M'}}, not {value!r}")
    return value


def _layer(name: str, value: Any) -> str:
    if value not in LAYERS:
        raise ValueError(f"{name} must be one of {', '.join(LAYERS)}, not {value!r}")
    return str(value)


def _truth(_: str, value: Any) -> bool:
    return bool(value)


def check_signal(name: str, value: int) -> int:
    """Return a signal's number, or raise for what is none; 0 only asks whether one could be sent."""
    return int(_integer(0, 64)(name, value))


_SIGNAL = _integer(1, 64)
_DESCRIPTOR = _integer(0, _HIGHEST_DESCRIPTOR)
_CHECKERS: dict[str, tuple[Any, Checker]] = {
    "executable": (None, _optional(encode)),
    "stdin": (None, _stream),
    "stdout": (None, _stream),
    "stderr": (None, _stream),
    "bufsize": (-1, _integer(-1, 2**31 - 1)),
    "stdio_window": (None, _optional(_integer(1, 2**62))),
    "max_line": (MAX_LINE, _integer(1, 2**62)),
    "inactivity_timeout": (None, _optional(check_positive_seconds)),
    "text": (None, _truth),
    "encoding": (None, _optional(_codec)),
    "errors": (None, _optional(_codec)),
    "cwd": (None, _optional(encode)),
    "env": (None, _optional(_environment)),
    "env_update": (None, _optional(_environment)),
    "user": (None, _optional(_account)),
    "group": (None, _optional(_account)),
    "extra_groups": (None, _optional(_sequence(_account))),
    "allow_root": (False, _boolean),
    "umask": (None, _optional(_integer(0, 0o777))),
    "pass_fds": ((), _sequence(_DESCRIPTOR)),
    "start_new_session": (True, _boolean),
    "foreground": (False, _boolean),
    "kill_mode": ("mixed", _kill_mode),
    "delay_to_sigkill": (0.5, check_seconds),
    "stop_signal": (15, _SIGNAL),
    "rlimits": ((), _rlimits),
    "nice": (None, _optional(_integer(-20, 19))),
    "cpu_affinity": (None, _optional(_sequence(_integer(0, 2**16), least=1))),
    "oom_score_adj": (None, _optional(_integer(-1000, 1000))),
    "no_new_privs": (False, _boolean),
    "pdeathsig": (None, _optional(_SIGNAL)),
    "cgroup": (False, _cgroup),
    "cgroup_base": (None, _optional(check_cgroup_path)),
    "cgroup_path": (None, _optional(check_cgroup_path)),
    "cgroup_controllers": ((), _sequence(_word)),
    "cgroup_sets": ((), _sequence(_cgroup_set)),
    "limits": (None, _optional(_limits)),
    "require": ((), _sequence(_layer)),
}
_DEFAULTS = {name: default for name, (default, _) in _CHECKERS.items()}
for _name, _default in _DEFAULTS.items():
    setattr(Command, _name, _default)
