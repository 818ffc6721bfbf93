"""Checkpoints by the number in their name: a range, the last ones, all of them."""

import itertools
import math
import re
from collections.abc import Sequence
from pathlib import Path

from polyfuse.checkpoint_sets.base import Chosen, check_enough, shown, stem
from polyfuse.errors import CheckpointError, printable

_NUMBER = re.compile(r"(\d+\.\d+)|(\d+)")  # a decimal is a metric or a version, not a count


def parse_range(text: str) -> tuple[int, int]:
    """Return the first and the last number of "40:50".

    Raises:
        CheckpointError: it is not of this form, or the second number is the smaller one.

    Example:
        >>> parse_range("40:50")
        (40, 50)
    """
    match = re.fullmatch(r"\s*(\d{1,18})\s*:\s*(\d{1,18})\s*", text)
    if not match:
        raise CheckpointError(f"range '{printable(text)}' is not of the form 40:50")
    low, high = map(int, match.groups())
    if low > high:
        raise CheckpointError(f"range {low}:{high} is empty; type {high}:{low}")
    return low, high


def in_range(paths: Sequence[Path], low: int, high: int) -> list[Chosen]:
    """Return the checkpoints from one number to another, both included, in their order.

    The step between the numbers there are is the step that is expected: 500, 1000, 1500 lack none.

    Raises:
        CheckpointError: a number is missing, or two checkpoints have the same.

    Example:
        >>> [chosen.number for chosen in in_range([Path("a3.pt"), Path("a1.pt")], 1, 3)]
        [1, 3]
    """
    numbered = _numbered(paths, "a range")
    step = math.gcd(*(b - a for a, b in itertools.pairwise(sorted(numbered)))) or 1
    wanted = range(low + (min(numbered) - low) % step, high + 1, step)
    there = sum(number in wanted for number in numbered)
    if not wanted or there < len(wanted):
        lacks = (str(number) for number in wanted if number not in numbered)
        lacking = shown(lacks, len(wanted) - there) or f"any number from {low} to {high}"
        known = shown(map(str, sorted(numbered)), len(numbered))
        raise CheckpointError(
            f"the range {low}:{high} lacks {lacking}; the numbers there are {known}"
        )
    return [Chosen(numbered[number], number) for number in wanted]


def last(paths: Sequence[Path], count: int) -> list[Chosen]:
    """Return so many checkpoints with the highest numbers, in the order of their numbers.

    Raises:
        CheckpointError: there are fewer, or two have the same number, or none has one.

    Example:
        >>> [str(chosen.path) for chosen in last([Path("a10.pt"), Path("a9.pt")], 1)]
        ['a10.pt']
    """
    numbered = _numbered(paths, "the last ones")
    check_enough(count, len(numbered))
    return [Chosen(numbered[number], number) for number in sorted(numbered)[-count:]]


def numbers(paths: Sequence[Path]) -> dict[Path, int]:
    """Return the number of every checkpoint; nothing where no name has one.

    Raises:
        CheckpointError: some names have a number, and others have none.

    Example:
        >>> numbers([Path("run/a10.pt"), Path("run/a9.pt")])
        {PosixPath('run/a10.pt'): 10, PosixPath('run/a9.pt'): 9}
    """
    found = _numbers(paths)
    lacking = [f"'{printable(path)}'" for path in paths if path not in found]
    if found and lacking:
        raise CheckpointError(
            f"there is a number in the names of other checkpoints, but none in {shown(lacking)}; "
            "name the files of one run only"
        )
    return found


def _numbered(paths: Sequence[Path], purpose: str) -> dict[int, Path]:
    """Return the checkpoints that have a number, by it; each number once."""
    numbered: dict[int, Path] = {}
    faults = []
    for path, number in _numbers(paths).items():
        if numbered.setdefault(number, path) is not path:
            both = f"'{printable(numbered[number])}' and '{printable(path)}'"
            faults.append(f"{both} both have the number {number}")
    if faults:
        raise CheckpointError("\n".join([*faults, "name the files of one run only"]))
    if not numbered:
        names = shown([f"'{printable(path.name)}'" for path in paths])
        raise CheckpointError(
            f"{purpose} goes by the number in a file's name, and there is none in {names}; "
            "name the files themselves"
        )
    return numbered


def _numbers(paths: Sequence[Path]) -> dict[Path, int]:
    """Return the number in each name: the one that differs, else the last one."""
    stems = {path: stem(path.name) for path in paths}
    if not any(map(_counts, stems.values())):  # out/checkpoint-500/model.safetensors
        stems = {path: stem(path.parent.name) for path in paths}
    alike: dict[str, list[Path]] = {}
    for path in paths:
        if _counts(stems[path]):
            alike.setdefault(_NUMBER.sub("0", stems[path]), []).append(path)
    numbers: dict[Path, int] = {}
    for group in alike.values():
        counts = {path: _counts(stems[path]) for path in group}
        places = [
            i for i, seen in enumerate(zip(*counts.values(), strict=True)) if len(set(seen)) > 1
        ]
        place = places[0] if len(places) == 1 else -1
        numbers |= {path: counts[path][place] for path in group}
    return {path: numbers[path] for path in paths if path in numbers}


def _counts(text: str) -> list[int]:
    return [int(whole) for _, whole in _NUMBER.findall(text) if whole]
