"""Same seed, same bits: random states and thread counts for the length of a block."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np


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

    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
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
