"""What all tests share: hypothesis profiles, one thread, and the folder of real data."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile("ci", deadline=None, max_examples=200, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=5000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True, scope="session")
def nothing_remembered():
    """Tests neither read nor write the user's cache; those of the cache name a folder."""
    os.environ["POLYFUSE_CACHE"] = "off"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The same numbers need the same number of threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data():
    """Return the folder of real data, which is not part of the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("POLYFUSE_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real data: POLYFUSE_SHARED_DATA names no folder, nor is ../shared/data one")
    return folder
