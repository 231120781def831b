"""The public names: what `__all__` says, what is there, documented and typed; and what importing costs."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import muontrap

ROOT = Path(__file__).parent.parent
CLASSES = [name for name in muontrap.__all__ if inspect.isclass(getattr(muontrap, name))]


def run_python(code: str) -> str:
    argv = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()


def own_members(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield public methods and properties that muontrap itself defines."""
    for base in cls.__mro__:
        if base.__module__.startswith("muontrap."):
            for name, member in vars(base).items():
                function = member.fget if isinstance(member, property) else member
                function = getattr(function, "__func__", function)
                if isinstance(function, types.FunctionType) and (
                    name == "__init__" or not name.startswith("_")
                ):
                    yield name, function


def functions() -> Iterator[tuple[str, Any]]:
    for name in muontrap.__all__:
        value = getattr(muontrap, name)
        if inspect.isclass(value):
            yield from ((f"{name}.{member}", function) for member, function in own_members(value))
        elif inspect.isfunction(value):
            yield name, value


def test_all_is_what_is_found_on_first_use() -> None:
    assert set(muontrap.__all__) == set(muontrap._HOMES)
    assert len(set(muontrap.__all__)) == len(muontrap.__all__)
    assert isinstance(muontrap.__all__, tuple)


@pytest.mark.parametrize("name", muontrap.__all__)
def test_a_name_is_that_of_its_home(name: str) -> None:
    home = importlib.import_module(f"muontrap.{muontrap._HOMES[name]}")
    value = getattr(muontrap, name)
    assert value is getattr(home, name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__module__ == home.__name__, f"{name} is defined elsewhere"


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING are the same table once more."""
    source = Path(muontrap.__file__ or "").read_text()
    block = source.partition("if TYPE_CHECKING:\n")[2].partition("\n__version__")[0]
    seen: dict[str, Any] = {}
    exec(textwrap.dedent(block), seen)
    assert seen.keys() - {"__builtins__"} == set(muontrap.__all__)
    assert all(seen[name] is getattr(muontrap, name) for name in muontrap.__all__)


def test_what_is_not_there() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(muontrap, "no_such_name")  # noqa: B009
    assert set(dir(muontrap)) >= {*muontrap.__all__, "__version__"}


def test_star_import() -> None:
    assert run_python("from muontrap import *\nprint(run.__module__, PIPE)") == "muontrap.host.run -1"


@pytest.mark.parametrize("name", [name for name in muontrap.__all__ if name.upper() != name])
def test_documented(name: str) -> None:
    value = getattr(muontrap, name)
    inherited = [getattr(base, "__doc__", None) for base in getattr(value, "__mro__", ())[1:]]
    assert value.__doc__
    assert value.__doc__ not in inherited
    for member, function in own_members(value) if inspect.isclass(value) else ():
        if member != "__init__":
            assert function.__doc__, f"{name}.{member} has no docstring"


@pytest.mark.parametrize(("name", "function"), list(functions()))
def test_typed(name: str, function: Any) -> None:
    signature = inspect.signature(function)
    assert signature.return_annotation is not signature.empty, f"{name} says not what it returns"
    for parameter in list(signature.parameters.values())["." in name :]:
        assert parameter.annotation is not parameter.empty, f"{name}: {parameter.name}"


@pytest.mark.parametrize("name", CLASSES)
def test_options_are_keywords(name: str) -> None:
    """Beyond what is plain from its place, an argument is named."""
    if issubclass(getattr(muontrap, name), Exception):
        return
    for member, function in own_members(getattr(muontrap, name)):
        kinds = [parameter.kind for parameter in inspect.signature(function).parameters.values()]
        if member != "__init__":
            assert kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) <= 4, f"{name}.{member}"


@pytest.mark.parametrize("path", sorted((ROOT / "muontrap").rglob("*.py")), ids=lambda path: path.stem)
def test_every_module_says_what_it_is(path: Path) -> None:
    if path.name == "_generated_ffi.py":
        return
    assert path.read_text().startswith('"""')


def test_importing_is_free() -> None:
    """Nothing of muontrap but the door, and next to nothing of the standard library."""
    # `__future__` beforehand: the finder of an editable install brings it, or does not.
    code = "import __future__\nbefore = set(sys.modules)\nimport muontrap\nprint(set(sys.modules) - before)"
    assert run_python(code) == "{'muontrap'}"


def test_it_is_typed_for_others() -> None:
    assert (ROOT / "muontrap" / "py.typed").exists()
