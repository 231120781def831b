"""What `fork_exec` is not asked for, because it would do something else, or raise what nobody expects."""

from __future__ import annotations

from typing import Any

import pytest

from muontrap.guard import fork_exec
from muontrap.guard.fork_exec import ForkExec, failure
from muontrap.guard.spawn import NotStarted


class Launch:
    """A request that must not get further than its steps."""

    def __init__(self, **steps: tuple[int, ...]) -> None:
        self.steps = list(steps.items())


@pytest.mark.parametrize("number", [2**32 - 1, 2**40, -1])
@pytest.mark.parametrize("step", ["setresuid", "setresgid", "setgroups"])
def test_an_id_that_would_mean_none(step: str, number: int) -> None:
    launch: Any = Launch(**{"setresuid": (1000,), "setresgid": (1000,), step: (number,)})
    with pytest.raises(NotStarted):
        ForkExec()(launch, None)  # type: ignore[arg-type]


def test_a_python_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_exec, "_fork_exec", None)
    launch: Any = Launch(setresuid=(1000,))
    with pytest.raises(NotStarted):
        ForkExec()(launch, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("said", "errno", "step"),
    [
        (b"OSError:2:", 2, b"execve"),
        (b"OSError:d:", 13, b"execve"),
        (b"OSError:1:noexec", 1, b"a change of ids"),
        (b"OSError:1:noexec:chdir", 1, b"a change of ids"),
        (b"OSError:", 71, b"execve"),
        (b"OSError:1", 1, b"execve"),
    ],
)
def test_what_its_child_says(said: bytes, errno: int, step: bytes) -> None:
    """The end may be missing: of a child that was killed."""
    failed = failure(said)
    assert (failed.errno, failed.step, failed.path) == (errno, step, b"")
