"""Tags: a guard's id and a command's number as a value of the soft limit RLIMIT_LOCKS.

Linux has not enforced that limit since 2.4, and every descendant inherits it; see
docs/explanation/kernel-facts.md, F1 to F3.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container


class Format:
    """One layout: magic, check bits, guard id and number, from the highest bit to the lowest.

    The magic begins with a 1, so every tag has exactly `width` bits.
    """

    __slots__ = ("_base", "_check_bits", "_most_guard", "_most_number", "guard_bits", "number_bits", "width")

    def __init__(self, *, magic: str, check_bits: int, guard_bits: int, number_bits: int) -> None:
        self._base = int(magic, 2) << check_bits + guard_bits + number_bits
        self._check_bits = check_bits
        self._most_guard = (1 << guard_bits) - 1
        self._most_number = (1 << number_bits) - 1
        self.guard_bits: int = guard_bits
        self.number_bits: int = number_bits
        self.width: int = len(magic) + check_bits + guard_bits + number_bits

    def encode(self, guard: int, number: int) -> int:
        """Return the limit value of command `number`, 1 or more, of guard `guard`.

        With a number 0, round values such as 0x5A700000 would be tags.
        """
        if not (0 <= guard <= self._most_guard and 0 < number <= self._most_number):
            raise ValueError(f"guard {guard} or number {number} does not fit a tag")
        identity = guard << self.number_bits | number
        # Fibonacci hashing: the high bits of the product depend on all bits of the identity.
        check = (identity * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 64 - self._check_bits
        return self._base | check << self.guard_bits + self.number_bits | identity

    def decode(self, value: int) -> tuple[int, int] | None:
        """Return (guard, number), or None for a limit that is no tag."""
        guard = value >> self.number_bits & self._most_guard
        number = value & self._most_number
        return (guard, number) if number and value == self.encode(guard, number) else None

    def next_number(self, last: int, used: Container[int]) -> int:
        """Return the number after `last` that is not in use, starting again at 1 after the end."""
        for _ in range(self._most_number):
            last = last % self._most_number + 1
            if last not in used:
                return last
        raise BlockingIOError(11, "all command numbers of this guard are in use (tag)")


# 62 bits stay below every "infinity" in use (2**63 - 1, 2**64 - 1); 31 bits fit a 32-bit kernel.
WIDE = Format(magic="1011010011", check_bits=8, guard_bits=28, number_bits=16)
NARROW = Format(magic="10110", check_bits=5, guard_bits=12, number_bits=9)
