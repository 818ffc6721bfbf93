"""Data sets that recipes name, each a function that returns three splits."""

from collections.abc import Callable

from polyfuse.data.arrays import arrays
from polyfuse.data.base import Splits
from polyfuse.data.street_numbers import street_digits

DATASETS: dict[str, Callable[..., Splits]] = {"street_digits": street_digits, "arrays": arrays}
