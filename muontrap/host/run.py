"""`run`, as easy as `subprocess.run`."""

from __future__ import annotations

from muontrap.host.launcher import Launcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Unpack

    from muontrap.host.results import CompletedProcess
    from muontrap.host.sinks import Into
    from muontrap.logic.command import Args, Options
    from muontrap.logic.window import CapPolicy


def run(
    args: Args,
    *,
    input: Any = None,
    capture_output: bool = False,
    into: Into | None = None,
    max_output: int | None = None,
    max_output_policy: CapPolicy = "stop",
    timeout: float | None = None,
    check: bool = False,
    **options: Unpack[Options],
) -> CompletedProcess:
    """Run a command until nothing of it is left: `Launcher(args, **options).run(...)`.

    See `Launcher` for `args`, `options` and what bad ones raise, and `Launcher.run` for the rest.
    """
    return Launcher(args, **options).run(
        input=input,
        capture_output=capture_output,
        into=into,
        max_output=max_output,
        max_output_policy=max_output_policy,
        timeout=timeout,
        check=check,
    )
