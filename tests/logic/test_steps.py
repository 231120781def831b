"""Steps: one legal order, and descriptors that reach their places without overwriting each other."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muontrap.logic.steps import NAMES, can_spawn, in_order, in_the_way

STEPS = st.lists(st.tuples(st.sampled_from(NAMES), st.tuples(st.integers(0, 9))))
BEFORE = [
    ("descriptors", "setresuid"),
    ("nice", "setresuid"),  # these need privileges, that the new user may not have
    ("cpu_affinity", "setresuid"),
    ("oom_score_adj", "setresuid"),
    ("rlimit", "setresuid"),
    ("setgroups", "setresgid"),
    ("setresgid", "setresuid"),
    ("setresuid", "pdeathsig"),  # which a change of credentials clears
    ("setresgid", "pdeathsig"),
]


@pytest.mark.parametrize(("first", "second"), BEFORE)
def test_what_must_come_before_what(first: str, second: str) -> None:
    assert in_order([(second, ()), (first, ())]) == [(first, ()), (second, ())]


@given(steps=STEPS)
def test_in_order(steps: list[tuple[str, tuple[int, ...]]]) -> None:
    ordered = in_order(steps)
    assert sorted(ordered) == sorted(steps)
    assert [NAMES.index(name) for name, _ in ordered] == sorted(NAMES.index(name) for name, _ in steps)
    for name in NAMES:  # limits stay in the order in which they were given
        assert [step for step in ordered if step[0] == name] == [step for step in steps if step[0] == name]


def test_an_unknown_step_is_refused() -> None:
    with pytest.raises(KeyError, match="no_such"):
        in_order([("nice", (0,)), ("no_such", ())])


CREDENTIALS = {"setgroups", "setresgid", "setresuid"}


@given(
    steps=STEPS | st.lists(st.tuples(st.sampled_from(sorted(CREDENTIALS)), st.tuples(st.integers(0, 9)))),
    targets=st.lists(st.integers(0, 4), max_size=4, unique=True),
    session=st.booleans(),
)
def test_can_spawn(steps: list[tuple[str, tuple[int, ...]]], targets: list[int], session: bool) -> None:
    """Credentials alone can do without Python in the child; then C has to know all the rest."""
    names = {name for name, _ in steps}
    unknown_to_c = not session or not {0, 1, 2}.issuperset(targets)
    expected = not names - CREDENTIALS and not (names and unknown_to_c)
    assert can_spawn(steps, targets, session=session) == expected


@given(
    sources=st.lists(st.integers(0, 12), max_size=8),
    targets=st.lists(st.integers(0, 12), max_size=8, unique=True),
    others=st.sets(st.integers(0, 16)),
)
def test_every_target_gets_its_source(sources: list[int], targets: list[int], others: set[int]) -> None:
    """Performed on a table of descriptors as the kernel has it: number -> (file, close-on-exec)."""
    pairs = list(zip(sources, targets, strict=False))
    sources, targets = [source for source, _ in pairs], [target for _, target in pairs]
    table = {number: (f"file {number}", True) for number in {*sources, *others}}
    placed = []
    moving = in_the_way(targets, sources)
    for source in sources:
        if source not in moving:
            placed.append(source)
            continue
        new = next(number for number in range(max(targets) + 1, 100) if number not in table)
        table[new] = table[source]
        placed.append(new)
    for source, target in zip(placed, targets, strict=True):
        if source != target:  # dup2 onto itself does nothing, and leaves close-on-exec
            table[target] = (table[source][0], False)
    for source, target in pairs:
        assert table[target] == (f"file {source}", False)
