"""Street numbers: the contest's own files, SVHN in both formats, and a set composed of digits."""

from polyfuse.data.street_numbers.base import BLANK, POSITIONS, StreetNumbers
from polyfuse.data.street_numbers.composed import (
    CONTEST_LENGTHS,
    GROUPS,
    HEIGHT,
    WIDTH,
    street_digits,
)
from polyfuse.data.street_numbers.mchar import mchar
from polyfuse.data.street_numbers.svhn import svhn_format1, svhn_format2

__all__ = [
    "BLANK",
    "CONTEST_LENGTHS",
    "GROUPS",
    "HEIGHT",
    "POSITIONS",
    "WIDTH",
    "StreetNumbers",
    "mchar",
    "street_digits",
    "svhn_format1",
    "svhn_format2",
]
