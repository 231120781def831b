"""The arguments: what there is, what texts mean, and which options of the library they become.

Values are checked by the library, where it knows them; here texts become the types that it takes.
"""

from __future__ import annotations

import argparse
import math
import signal

from muontrap.cli.report import FAILED, fail, say
from muontrap.logic.command import LAYERS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Literal, NoReturn

    from muontrap.logic.command import Options

# What a running `supervise` can be asked.
CONTROLS = {
    "status": "show the daemons of a running supervisor",
    "start": "start a daemon that was stopped, and wait until it is ready",
    "stop": "stop a daemon, until it is started again",
    "restart": "stop a daemon, and start it again",
    "logs": "show the last output of a daemon",
}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SWITCH = {"yes": True, "no": False}
_CGROUP: dict[str, bool | Literal["auto"]] = {"no": False, "auto": "auto", "yes": True}


class Limit:
    """How a limit is given on the command line.

    Attributes:
        metavar: what stands for the value.
        meaning: one sentence, for `--help` and for docs/reference/limits.md.
        convert: text -> what the library takes.
        choices: the texts that there are; None for any.
        several: whether it may be repeated, and each gives one item of a mapping.
    """

    def __init__(
        self,
        metavar: str,
        meaning: str,
        convert: Callable[[str], Any] = str,
        *,
        choices: tuple[str, ...] | None = None,
        several: bool = False,
    ) -> None:
        self.metavar: str = metavar
        self.meaning: str = meaning
        self.convert: Callable[[str], Any] = convert
        self.choices: tuple[str, ...] | None = choices
        self.several: bool = several


def parser() -> argparse.ArgumentParser:
    """Return the parser; its namespace has `subcommand`, and that one's arguments."""
    import muontrap

    top = _Parser(prog="muontrap", description="Run programs that cannot outlive the one that started them.")
    top.add_argument("--version", action="version", version=f"muontrap {muontrap.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True, dest="subcommand")
    run = commands.add_parser(
        "run",
        help="run a command until nothing of it is left",
        usage="muontrap run [options] -- COMMAND [ARG...]",
        description="Run a command until nothing of it is left, whatever it started; end all of it "
        "on a timeout, on a signal, and when muontrap itself is killed.",
        epilog="Durations are numbers of seconds, or end in s, m, h or d. Sizes are bytes, or end in K, M, "
        "G, T or P. Exit status: the command's; 128+N if signal N killed it; 124 timeout; 125 muontrap "
        "itself failed; 126 the command cannot be executed; 127 it was not found.",
    )
    _add_options(run)
    _add_limits(run)
    _add_cgroup(run)
    run.add_argument("command", nargs=argparse.REMAINDER, action=_Command, help=argparse.SUPPRESS)
    doctor = commands.add_parser(
        "doctor",
        help="tell what containment and which limits can be had here",
        description="Tell what containment and which limits this machine and this user can have, and for "
        "what is missing the command that would change it. It leaves nothing changed.",
        epilog="Exit status: 0 if the default containment works (guard, tag and subreaper), else 1.",
    )
    doctor.add_argument("--json", action="store_true", help="for programs")
    _add_supervising(commands)
    return top


def options(arguments: argparse.Namespace) -> Options:
    """Return the library's options for the arguments of `run`."""
    return {
        "delay_to_sigkill": arguments.delay_to_sigkill,
        "kill_mode": arguments.kill_mode,
        "stop_signal": arguments.stop_signal,
        "user": arguments.user,
        "group": arguments.group,
        "allow_root": arguments.allow_root,
        "cwd": arguments.cwd,
        "env_update": dict(arguments.env),
        "cgroup": _CGROUP[arguments.cgroup],
        "cgroup_base": arguments.cgroup_base,
        "cgroup_path": arguments.cgroup_path,
        "cgroup_controllers": arguments.cgroup_controller,
        "cgroup_sets": arguments.cgroup_set,
        "require": arguments.require,
        "limits": _limits(arguments),
    }


def _limits(arguments: argparse.Namespace) -> Any:
    given = {name: getattr(arguments, name) for name in LIMITS}
    found: dict[str, Any] = {}
    for name, value in given.items():
        if value is not None:
            convert = LIMITS[name].convert
            found[name] = _joined(map(convert, value)) if LIMITS[name].several else convert(value)
    return found or None


def _joined(items: Any) -> dict[str, Any]:
    joined: dict[str, Any] = {}
    for key, values in items:
        joined.setdefault(key, {}).update(values)
    return joined


class _Parser(argparse.ArgumentParser):
    """With our prefix and exit status, and without guessing of abbreviated options."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:  # here, for the hint is then at the subcommand's own help
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        fail(message)
        say(f"try '{self.prog} --help'")
        raise SystemExit(FAILED)


def _add_supervising(commands: argparse._SubParsersAction[_Parser]) -> None:
    check = commands.add_parser(
        "check",
        help="check a file of daemons, and start nothing",
        description="Check a file in TOML that says which daemons are to be kept running, and start nothing. "
        "All that is wrong is said on stderr, each with its line.",
        epilog="Exit status: 0 if the file is right; 2 if not; 125 muontrap itself failed.",
    )
    check.add_argument("file", metavar="FILE", help="see docs/reference/configuration.md")
    supervise = commands.add_parser(
        "supervise",
        help="keep the daemons of a file running",
        description="Keep the daemons of a file in TOML running, in the foreground: also as the main process "
        "of an appliance or a container. SIGTERM and SIGINT stop them in order, a second one at once; SIGHUP "
        "reads the file again and changes only what has changed.",
        epilog="Exit status: 0 when stopped; 1 when it gave up; 2 the file is not right, or the directory "
        "can't be used; 128+N for a second signal N; 125 muontrap itself failed.",
    )
    supervise.add_argument("file", metavar="FILE", help="see docs/reference/configuration.md")
    supervise.add_argument(
        "--directory",
        type=_not_empty,
        metavar="DIR",
        help="where its socket is, which only this user may enter",
    )
    for name, meaning in CONTROLS.items():
        one = commands.add_parser(name, help=meaning, description=f"{meaning[0].upper()}{meaning[1:]}.")
        where = one.add_mutually_exclusive_group()
        where.add_argument("--directory", type=_not_empty, metavar="DIR", help="as for supervise")
        where.add_argument(
            "--name", type=_not_empty, metavar="NAME", help="of the file, without .toml, if several run"
        )
        if name == "status":
            one.add_argument("--json", action="store_true", help="for programs")
            one.add_argument("--watch", action="store_true", help="again each second")
        else:
            one.add_argument("child", metavar="DAEMON", help="as status lists it")
        if name == "logs":
            one.add_argument("-f", "--follow", action="store_true", help="go on with what comes")


def _add_options(run: argparse.ArgumentParser) -> None:
    add = run.add_argument
    add("--timeout", type=_timeout, metavar="DURATION", help="end the command after that time")
    add(
        "--delay-to-sigkill",
        type=_duration,
        default=0.5,
        metavar="DURATION",
        help="from the stop signal to SIGKILL for what is left; 0 for SIGKILL at once (default: 0.5)",
    )
    add(
        "--kill-mode",
        choices=("mixed", "control-group", "process"),
        default="mixed",
        help="what gets the stop signal, and then SIGKILL: main process, then everything (mixed, the "
        "default); everything, both times (control-group); the main process alone (process)",
    )
    add(
        "--stop-signal",
        type=_signal_number,
        default=signal.SIGTERM,
        metavar="SIGNAL",
        help="name or number of the first signal (default: TERM)",
    )
    add("--user", type=_number_or_text, metavar="USER", help="run as that user, with its groups and HOME")
    add("--group", type=_number_or_text, metavar="GROUP", help="run with that primary group")
    add("--allow-root", action="store_true", help="let --user and --group be root")
    add("--cwd", metavar="DIRECTORY", help="run in that directory")
    add(
        "--env",
        type=_variable,
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="set a variable, or remove it; may be repeated",
    )
    add("--stats", action="store_true", help="say on stderr why it ended, and what it used")


def _add_limits(run: argparse.ArgumentParser) -> None:
    group = run.add_argument_group("limits of the whole command, by cgroups")
    for name, limit in LIMITS.items():
        group.add_argument(
            f"--{name.replace('_', '-')}",
            dest=name,
            metavar=limit.metavar,
            choices=limit.choices,
            action="append" if limit.several else "store",
            help=limit.meaning,
        )


def _add_cgroup(run: argparse.ArgumentParser) -> None:
    add = run.add_argument_group("cgroups and containment").add_argument
    add(
        "--cgroup",
        choices=tuple(_CGROUP),
        default="no",
        help="contain the command in a cgroup of its own: yes, or fail; auto, where one can be had; no, "
        "unless another option needs one (default)",
    )
    add("--cgroup-base", metavar="PATH", help="make the cgroup below that one; it is removed at the end")
    add("--cgroup-path", metavar="PATH", help="have exactly that cgroup, made where it is missing")
    add(
        "--cgroup-controller",
        action="append",
        default=[],
        metavar="CONTROLLER",
        help="have a cgroup with that controller, also without a limit; may be repeated",
    )
    add(
        "--cgroup-set",
        type=_cgroup_set,
        action="append",
        default=[],
        metavar="CONTROLLER:FILE=VALUE",
        help="write that to a file of the cgroup, as it is; may be repeated",
    )
    add(
        "--require",
        choices=LAYERS,
        action="append",
        default=[],
        help="fail before the start where that layer of containment is missing; may be repeated",
    )


class _Command(argparse.Action):
    """The command and its arguments, without the `--` in front of it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any
    ) -> None:
        command = values[1:] if values[:1] == ["--"] else values
        if not command:
            parser.error("no command is given")
        setattr(namespace, self.dest, command)


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError(f"{text!r} names none; for the usual one, leave it out")
    return text


def _duration(text: str) -> float:
    unit = _SECONDS.get(text[-1:])
    try:
        seconds = float(text[:-1]) * unit if unit else float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise argparse.ArgumentTypeError(f"{text!r} is no duration such as 90, 1.5s, 10m, 2h or 1d")
    return seconds


def _timeout(text: str) -> float:
    seconds = _duration(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError(f"{text!r} leaves the command no time; for no limit, leave it out")
    return seconds


def _signal_number(text: str) -> int:
    name = text.upper().removeprefix("SIG")
    is_number = text.isdecimal() and len(text) < 10
    signum = int(text) if is_number else signal.Signals.__members__.get(f"SIG{name}", 0)
    if signum not in signal.valid_signals():
        raise argparse.ArgumentTypeError(f"{text!r} is no signal, such as TERM, SIGINT or 15")
    return int(signum)


def _variable(text: str) -> tuple[str, str | None]:
    name, equals, value = text.partition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r} has no name: it must be NAME=VALUE, or NAME to remove it")
    return name, value if equals else None


def _cgroup_set(text: str) -> tuple[str, str, str]:
    name, equals, value = text.partition("=")
    controller, colon, file = name.partition(":")
    if not (equals and colon):
        raise argparse.ArgumentTypeError(
            f"{text!r} must be CONTROLLER:FILE=VALUE, such as memory:memory.max=268435456"
        )
    return controller, file, value


def _number_or_text(text: str) -> int | str:
    # Longer ones are no number that anything takes, and int() refuses far longer ones in its own words.
    return int(text) if text.isdecimal() and len(text) <= 40 else text


def _rates(text: str) -> tuple[str, dict[str, int | str]]:
    """Return a device and its limits, of a line as io.max has it."""
    device, *pairs = text.replace(",", " ").split() or [""]
    rates = {}
    for pair in pairs:
        key, _, rate = pair.partition("=")
        rates[key] = _number_or_text(rate)
    return device, rates


# In the library's order; its keys are `Limits`'s options.
LIMITS = {
    "memory_max": Limit("SIZE", "memory; where more is needed, the kernel kills the whole command"),
    "memory_high": Limit("SIZE", "memory above which the command is slowed down, and its memory taken back"),
    "memory_low": Limit("SIZE", "memory that is taken back only when there is none left elsewhere"),
    "memory_min": Limit("SIZE", "memory that is never taken back"),
    "memory_swap_max": Limit("SIZE", "swap, besides memory; 0 for none"),
    "memory_oom_group": Limit(
        "yes|no",
        "whether an end of memory kills all of the command; with a maximum it does, unless this says no",
        _SWITCH.__getitem__,
        choices=tuple(_SWITCH),
    ),
    "cpu_max": Limit("CPUS", "CPU time, in CPUs such as 0.5 or 2, or as 'QUOTA PERIOD' in microseconds"),
    "cpu_weight": Limit("NUMBER", "share of busy CPUs, 1 to 10000, of which 100 is usual", _number_or_text),
    "cpu_idle": Limit(
        "yes|no",
        "whether it runs only where nothing else would",
        _SWITCH.__getitem__,
        choices=tuple(_SWITCH),
    ),
    "pids_max": Limit("NUMBER", "processes and threads at once; what is above can't fork", _number_or_text),
    "io_weight": Limit("NUMBER", "share of busy disks, 1 to 10000, of which 100 is usual", _number_or_text),
    "io_max": Limit(
        "RATES",
        "of a device, as '8:0 rbps=1M wbps=1M riops=100 wiops=100': bytes and operations a second",
        _rates,
        several=True,
    ),
    "cpuset_cpus": Limit("LIST", "CPUs that it may run on, such as 0-3,5"),
    "cpuset_mems": Limit("LIST", "memory nodes that it may use, such as 0"),
}
