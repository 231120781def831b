"""`run`, as easy as `subprocess.run`."""

from __future__ import annotations

from muontrap.host.launcher import Launcher

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from typing_extensions import Unpack

    from muontrap.host.results import CompletedProcess
    from muontrap.logic.command import Args, Options


def run(
    args: Args,
    /,
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Unpack[Options],
) -> CompletedProcess:
    """Run a command until nothing of it is left: `Launcher(args, **options).run(...)`.

    See `Launcher` for `args`, `options` and what bad ones raise, and `Launcher.run` for the rest.
    """
    return Launcher(args, **options).run(
        input=input, capture_output=capture_output, timeout=timeout, check=check
    )
