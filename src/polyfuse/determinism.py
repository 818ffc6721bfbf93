"""Same seed, same bits: random states and thread counts for the length of a block."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np


def seed_of(*key: int) -> int:
    """Return the seed that a key stands for.

    Example:
        >>> seed_of(0, 1) == seed_of(0, 1), seed_of(0, 1) == seed_of(1, 0)
        (True, False)
    """
    return int(np.random.SeedSequence(key).generate_state(1)[0])


@contextlib.contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed torch, NumPy and random from a key; give them their own states back afterwards.

    Example:
        >>> import torch
        >>> with seeded(0, 1):
        ...     a = torch.rand(1)
        >>> with seeded(0, 1):
        ...     b = torch.rand(1)
        >>> bool(a == b)
        True
    """
    import torch

    seed = seed_of(*key)
    kept_numpy, kept_random = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(kept_numpy)
            random.setstate(kept_random)


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Use so many CPU threads inside the block.

    Example:
        >>> import torch
        >>> with threads(1):
        ...     torch.get_num_threads()
        1
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
