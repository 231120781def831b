"""The command line: `muontrap run`, `doctor`, `supervise` ... See docs/reference/command-line.md."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_PRINTING = ("doctor", "check", "status", "logs")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status.

    It takes over the process: dispositions of signals stay changed.

    Args:
        argv: arguments without the program's name; None for those of this process.

    Raises:
        SystemExit: after `--help` and `--version`, and for arguments that make no sense.
    """
    try:
        return _run(argv)
    except KeyboardInterrupt:  # before there was a handler
        return 128 + signal.SIGINT


def _run(argv: Sequence[str] | None) -> int:
    from muontrap.cli.arguments import CONTROLS, parser
    from muontrap.cli.report import fail

    occupy_standard_streams()
    inherited = _inherited_descriptors()
    arguments = parser().parse_args(argv)
    if sys.stdout is None and arguments.subcommand in _PRINTING:
        return fail("stdout is closed")
    if arguments.subcommand == "doctor":
        from muontrap.cli.examining import examine

        return examine(for_programs=arguments.json)
    if arguments.subcommand == "check":
        from muontrap.cli.supervising import check

        return check(arguments.file)
    if arguments.subcommand == "supervise":
        from muontrap.cli.foreground import supervise

        return supervise(arguments.file, arguments.directory)
    if arguments.subcommand in CONTROLS:
        from muontrap.cli.controlling import control

        return control(arguments)
    from muontrap.cli.running import run

    return run(arguments, inherited)


def occupy_standard_streams() -> None:
    """Open /dev/null for streams that are closed: what is opened next would pass for one of them."""
    while (fd := os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)) <= 2:
        pass
    os.close(fd)


def _inherited_descriptors() -> list[int]:
    """Return what our caller means to pass on: a shell's `3<file`, `<(...)`, make's job server."""
    return sorted(fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and _is_inherited(fd))


def _is_inherited(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # that of the listing itself
        return False
