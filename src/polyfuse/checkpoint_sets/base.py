"""What a checkpoint's name says, and what choosing returns."""

import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from polyfuse.errors import CheckpointError

SUFFIXES = (".safetensors", ".pth.tar", ".pt", ".pth", ".bin", ".ckpt", ".th")
ADDRESS = re.compile(r"(?s)(.+)\[\d+\]")  # file.pt[0]: one state dict of a list
_AGAIN = re.compile(r"-v\d+$")  # Lightning's mark of a file name that was there before
_SHOWN = 12  # names in a message


class Chosen(NamedTuple):
    """A checkpoint that was chosen, and by what.

    Attributes:
        path: of the file or folder; `file.pt[0]` for one state dict of a list.
        number: in its name, where that was asked for.
        value: of the metric, where that was asked for.
    """

    path: Path
    number: int | None = None
    value: float | None = None


def stem(name: str) -> str:
    """Return a file name without address, suffix and Lightning's mark of a version.

    Example:
        >>> stem("epoch=3-acc=0.5-v1.ckpt"), stem("best.pth.tar[2]")
        ('epoch=3-acc=0.5', 'best')
    """
    address = ADDRESS.fullmatch(name)
    name = address[1] if address else name
    suffix = next((s for s in SUFFIXES if name.endswith(s)), "")
    bare = name.removesuffix(suffix)
    return _AGAIN.sub("", bare) if "=" in bare else bare


def shown(words: Iterable[str], count: int | None = None) -> str:
    """Return words for a message: the first twelve, and how many more there are.

    Args:
        words: to show; of an endless row only the first are taken.
        count: how many there are, where they cannot be counted.

    Example:
        >>> shown(["a", "b"]), shown(map(str, range(10**9)), 10**9)[-30:]
        ('a, b', '9, 10, 11 and 999,999,988 more')
    """
    if count is None:
        words = list(words)
        count = len(words)
    more = f" and {count - _SHOWN:,} more" if count > _SHOWN else ""
    return ", ".join(itertools.islice(words, _SHOWN)) + more


def check_enough(count: int, there: int) -> None:
    """Refuse to take more checkpoints than there are, or none.

    Raises:
        CheckpointError: as said.

    Example:
        >>> check_enough(3, 2)
        Traceback (most recent call last):
        polyfuse.errors.CheckpointError: asked for 3 of 2 checkpoints; give 1 to 2
    """
    if not 1 <= count <= there:
        raise CheckpointError(f"asked for {count} of {there} checkpoints; give 1 to {there}")
