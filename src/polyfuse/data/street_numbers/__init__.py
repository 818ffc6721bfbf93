"""Street numbers: the contest's own files, SVHN in both formats, and a set composed of digits."""

from polyfuse.data.street_numbers.composed import (
    BLANK,
    CONTEST_LENGTHS,
    GROUPS,
    HEIGHT,
    POSITIONS,
    WIDTH,
    StreetNumbers,
    street_digits,
)

__all__ = [
    "BLANK",
    "CONTEST_LENGTHS",
    "GROUPS",
    "HEIGHT",
    "POSITIONS",
    "WIDTH",
    "StreetNumbers",
    "street_digits",
]
