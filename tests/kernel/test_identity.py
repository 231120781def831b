"""Changes of user and group: all ids, and no way back."""

from __future__ import annotations

import os
import pwd

import pytest
from children import run_python

from muontrap.kernel import identity

SHOW = """
import os
from muontrap.kernel import identity
def show():
    fields = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return [fields[name].split() for name in ("Uid", "Gid", "Groups")]
"""
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to become somebody else")


@needs_root
def test_all_ids_change_and_root_does_not_come_back() -> None:
    out = run_python(
        SHOW
        + """
identity.set_groups([7, 5, 100000])
identity.set_gid(65534)
identity.set_uid(65533)
print(show(), identity.can_become_root())
"""
    )
    assert out == f"{[['65533'] * 4, ['65534'] * 4, ['5', '7', '100000']]} False"


@needs_root
def test_root_can_become_root() -> None:
    assert run_python(SHOW + "os.seteuid(65533)\nprint(identity.can_become_root(), os.geteuid())") == "True 0"


@needs_root
def test_no_groups() -> None:
    assert run_python(SHOW + "os.setgroups([5])\nidentity.set_groups([])\nprint(show()[2])") == "[]"


@needs_root
@pytest.mark.parametrize(
    ("call", "name"),
    [("set_uid(0)", "setresuid"), ("set_gid(0)", "setresgid"), ("set_groups([0])", "setgroups")],
)
def test_errors_name_the_call(call: str, name: str) -> None:
    out = run_python(
        SHOW
        + f"""
identity.set_groups([]); identity.set_gid(65534); identity.set_uid(65534)
identity.set_groups([])  # what is there already needs no privilege
try:
    identity.{call}
except PermissionError as error:
    print(error.errno, {name!r} in str(error))
"""
    )
    assert out == "1 True"


def test_the_groups_that_are_there_need_no_privilege() -> None:
    assert run_python(SHOW + "identity.set_groups(os.getgroups())\nprint(1)") == "1"


@pytest.mark.parametrize("few", [0, 64])
def test_groups_are_those_that_python_finds(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of who has more of them than there is room for at first."""
    monkeypatch.setattr(identity, "_FEW", few)
    for account in pwd.getpwall():
        found = identity.groups_of(os.fsencode(account.pw_name), account.pw_gid)
        assert found == os.getgrouplist(account.pw_name, account.pw_gid)


def test_groups_that_are_too_many_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "_FEW", 0)
    monkeypatch.setattr(identity, "_MOST", 0)
    with pytest.raises(OSError, match=r"\(getgrouplist\): b'root'"):
        identity.groups_of(b"root", 0)
