"""Launches that must fail: name -> arguments and options, as both `subprocess.run` and
`muontrap.run` take them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

FAILURES: dict[str, tuple[list[Any], dict[str, Any]]] = {
    "no-such-program-in-PATH": (["no-such-program-anywhere"], {}),
    "no-such-path": (["/no/such/program"], {}),
    "relative-path": (["./no-such-program"], {}),
    "empty-name": ([""], {}),
    "not-executable": (["{folder}/plain"], {}),
    "not-executable-in-PATH": (["plain"], {"env": {"PATH": "{folder}"}}),
    "directory": (["{folder}"], {}),
    "below-a-file": (["{folder}/plain/program"], {}),
    "loop-of-links": (["{folder}/loop"], {}),
    "long-name": (["{folder}/" + 300 * "x"], {}),
    "no-such-interpreter": (["{folder}/orphan"], {}),
    "exec-format": (["{folder}/garbage"], {}),
    "empty-program": (["{folder}/void"], {}),
    "executable-option": (["true"], {"executable": "/no/such/executable"}),
    "empty-executable": (["true"], {"executable": ""}),
    "empty-cwd": (["/bin/true"], {"cwd": ""}),
    "no-such-cwd": (["/bin/true"], {"cwd": "/no/such/folder"}),
    "cwd-is-a-file": (["/bin/true"], {"cwd": "{folder}/plain"}),
    "cwd-and-program-missing": (["/no/such/program"], {"cwd": "/no/such/folder"}),
    "no-such-program-in-cwd": (["./true"], {"cwd": "/"}),
    "no-such-user": (["/bin/true"], {"user": "no-such-user"}),
    "no-such-group": (["/bin/true"], {"group": "no-such-group"}),
    "negative-uid": (["/bin/true"], {"user": -1}),
    "negative-gid": (["/bin/true"], {"group": -1}),
    "nul-in-argument": (["/bin/echo", "a\0b"], {}),
    "nul-in-program": (["/bin/tr\0ue"], {}),
    "nul-in-cwd": (["/bin/true"], {"cwd": "/\0"}),
    "nul-in-environment": (["/bin/true"], {"env": {"A": "a\0b"}}),
    "equals-in-variable": (["/bin/true"], {"env": {"A=B": "c"}}),
    "argument-too-long": (["/bin/true", 200_000 * "x"], {}),
    "too-many-arguments": (["/bin/true", *(100 * [100_000 * "x"])], {}),
    "more-arguments-than-a-request-has-room-for": (["/bin/true", *(700 * [100_000 * "x"])], {}),
    "environment-too-long": (["/bin/true"], {"env": {"A": 200_000 * "x"}}),
    "closed-descriptor": (["/bin/true"], {"stdout": 987}),
    "closed-descriptor-to-pass": (["/bin/true"], {"pass_fds": [987]}),
    "argument-is-no-string": (["/bin/echo", 1], {}),
}


def make_folder(folder: Path) -> None:
    """Files that can't be run, each for its own reason."""
    for name, mode, content in (
        ("plain", 0o644, "#!/bin/sh\n"),
        ("orphan", 0o755, "#!/no/such/interpreter\n"),
        ("garbage", 0o755, "\x01\x02\x03 not a program\n"),
        ("void", 0o755, ""),
    ):
        (folder / name).write_text(content, encoding="latin-1")
        (folder / name).chmod(mode)
    (folder / "loop").symlink_to(folder / "loop")


def fill(value: Any, folder: str) -> Any:
    """A case with the name of its folder in it."""
    if isinstance(value, str):
        return value.replace("{folder}", folder)
    if isinstance(value, list):
        return [fill(item, folder) for item in value]
    if isinstance(value, dict):
        return {name: fill(item, folder) for name, item in value.items()}
    return value
