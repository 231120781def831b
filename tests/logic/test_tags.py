"""Tags: round trip, wrap, and no limit value that is not ours is taken for one."""

from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from muontrap.logic.tags import NARROW, WIDE, Format

FORMATS = pytest.mark.parametrize("form", [WIDE, NARROW], ids=["wide", "narrow"])
SMALL = Format(magic="10", check_bits=2, guard_bits=2, number_bits=3)
INFINITIES = (2**64 - 1, 2**63 - 1, 2**32 - 1, 2**31 - 1, -1)


def identities(form: Format) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(0, 2**form.guard_bits - 1), st.integers(1, 2**form.number_bits - 1))


@pytest.mark.parametrize(("form", "width"), [(WIDE, 62), (NARROW, 31)])
@given(data=st.data())
def test_round_trip(form: Format, width: int, data: st.DataObject) -> None:
    guard, number = data.draw(identities(form))
    value = form.encode(guard, number)
    assert form.width == width
    assert value.bit_length() == width, "a tag is below every infinity, and above every limit in use"
    assert form.decode(value) == (guard, number)


@FORMATS
@given(data=st.data())
def test_two_commands_have_two_tags(form: Format, data: st.DataObject) -> None:
    one, other = data.draw(identities(form)), data.draw(identities(form))
    assert (form.encode(*one) == form.encode(*other)) == (one == other)


@FORMATS
@given(guard=st.integers(-(2**70), 2**70), number=st.integers(-(2**70), 2**70))
def test_what_does_not_fit_is_refused(form: Format, guard: int, number: int) -> None:
    if 0 <= guard < 2**form.guard_bits and 0 < number < 2**form.number_bits:
        assert form.decode(form.encode(guard, number)) == (guard, number)
    else:
        with pytest.raises(ValueError, match="does not fit"):
            form.encode(guard, number)


@FORMATS
@given(data=st.data(), value=st.integers() | st.integers(0, 2**64 - 1))
def test_any_number_is_none_or_a_tag(form: Format, data: st.DataObject, value: int) -> None:
    for number in (value, form.encode(*data.draw(identities(form))) ^ 1 << data.draw(st.integers(0, 70))):
        decoded = form.decode(number)
        assert decoded is None or form.encode(*decoded) == number


@FORMATS
def test_check_bits_refuse_all_but_a_few(form: Format) -> None:
    """Of the values that have the magic, one in 2**check_bits is a tag."""
    top = form.encode(0, 1) >> form.guard_bits + form.number_bits
    check_bits = form.width - form.guard_bits - form.number_bits - (10 if form is WIDE else 5)
    magic = top >> check_bits << check_bits
    below = form.guard_bits + form.number_bits
    for identity in range(1, 2**below, 2**below // 97):
        values = [(magic | check) << below | identity for check in range(2**check_bits)]
        assert sum(form.decode(value) is not None for value in values) == 1


@FORMATS
def test_check_bits_are_all_used(form: Format) -> None:
    below = form.guard_bits + form.number_bits
    checks = {form.encode(guard, number) >> below for guard in range(64) for number in range(1, 65)}
    assert len(checks) == (256 if form is WIDE else 32)


@FORMATS
@pytest.mark.parametrize("infinity", INFINITIES)
def test_no_infinity_is_a_tag(form: Format, infinity: int) -> None:
    assert form.decode(infinity) is None


@FORMATS
def test_no_plausible_limit_is_a_tag(form: Format) -> None:
    """Such as an administrator writes: small, round in two or in ten, next to that, or so many KiB."""
    powers = {2**bit + more for bit in range(65) for more in range(-3, 4)}
    decimal = {digit * 10**zeros for zeros in range(20) for digit in range(1, 1000)}
    multiples = {factor << shift for shift in range(0, 64, 10) for factor in range(2048)}
    masks = {2**high - 2**low for high in range(65) for low in range(high)}
    for value in {*range(100_000), *powers, *decimal, *multiples, *masks}:
        if 0 <= value < 2**64:
            assert form.decode(value) is None, hex(value)


@pytest.mark.parametrize(("one", "other"), [(WIDE, NARROW), (NARROW, WIDE)])
@given(data=st.data())
def test_a_tag_of_one_format_is_none_of_the_other(one: Format, other: Format, data: st.DataObject) -> None:
    assert other.decode(one.encode(*data.draw(identities(one)))) is None


@given(last=st.integers(0, 7), used=st.sets(st.integers(0, 7)))
def test_next_number(last: int, used: set[int]) -> None:
    """The first free one in the circle 1 ... 7 after `last`; 0 is never given."""
    circle = [number for number in [*range(last + 1, 8), *range(1, last + 1)] if number not in used]
    if circle:
        assert SMALL.next_number(last, used) == circle[0]
    else:
        with pytest.raises(BlockingIOError) as caught:
            SMALL.next_number(last, used)
        assert caught.value.errno == errno.EAGAIN


@FORMATS
def test_next_number_wraps(form: Format) -> None:
    highest = 2**form.number_bits - 1
    assert form.next_number(highest - 1, ()) == highest
    assert form.next_number(highest, ()) == 1
    assert form.next_number(highest, range(1, highest)) == highest
    assert form.next_number(0, ()) == 1
