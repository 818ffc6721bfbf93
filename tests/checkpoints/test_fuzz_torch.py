"""Mutated torch files: a right checkpoint or a PolyfuseError, in bounded time and memory."""

import fuzz_torch
import pytest


def test_some_mutated_files():
    read, refused = fuzz_torch.main(2_000, seed=1)
    assert read > 20
    assert refused > 1_000


@pytest.mark.fuzz
def test_a_hundred_thousand_mutated_files():
    fuzz_torch.main(100_000, seed=0)
