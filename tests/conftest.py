"""What all tests share: hypothesis profiles, one thread, and the folder of real data."""

import gc
import json
import multiprocessing
import os
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

settings.register_profile("default", deadline=None, derandomize=True)
settings.register_profile("ci", deadline=None, max_examples=200, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=5000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

DEAR = ["lightning_fabric", "polyfuse.training.loop", "polyfuse.fit.training"]
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    """Look for examples in src alone: no docstring of a test has one."""
    return [made for made in (yield) if type(made).__name__ != "DoctestModule"]


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """Collect from the end in every other worker: each compiles what the others then only read."""
    report = yield
    if not isinstance(collector, pytest.File) and int(WORKER.removeprefix("gw") or 0) % 2:
        report.result.reverse()
    return report


def pytest_collection_modifyitems(items):
    """Begin with the files that have slow tests: nobody waits for them at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path not in slow, item.path))


def pytest_collection_finish():
    """Spare the garbage collector what is here to stay: modules and tests, by the million."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def nothing_remembered():
    """Tests neither read nor write the user's cache; those of the cache name a folder."""
    os.environ["POLYFUSE_CACHE"] = "off"


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The same numbers need the same number of threads."""
    import torch  # here: the process that hands out the tests runs none

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def quick_libraries(one_thread):
    """Spare each of thousands of small trainings two things that libraries do anew each time."""
    from torch import cuda, mtia, xpu

    # A seed for a GPU that is not in use is kept with the stack, and a test's stack is deep.
    for device in (cuda, mtia, xpu):
        device.traceback = SimpleNamespace(**{**vars(traceback), "format_stack": list})
    # Fabric reads the entry points of all that is installed.
    if "lightning_fabric" in sys.modules:
        from lightning_fabric.utilities import registry

        registry.entry_points = cache(registry.entry_points)


@pytest.fixture
def forked_workers(monkeypatch):
    """Start worker processes as forks of one that has imported what is dear, not each afresh."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        forks, context_of = multiprocessing.get_context("forkserver"), multiprocessing.get_context
        forks.set_forkserver_preload(DEAR)
        monkeypatch.setattr(
            multiprocessing,
            "get_context",
            lambda method=None: forks if method == "spawn" else context_of(method),
        )


@pytest.fixture(scope="session")
def shared_data():
    """Return the folder of real data, which is not part of the repository."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("POLYFUSE_SHARED_DATA", beside))
    if not folder.is_dir():
        pytest.skip("no real data: POLYFUSE_SHARED_DATA names no folder, nor is ../shared/data one")
    return folder


@pytest.fixture(scope="session")
def run_scripts(tmp_path_factory):
    """Return a function that runs scripts side by side in a folder.

    Each is given as its path and its arguments, and told as its status, output and errors.
    """
    command = [sys.executable, Path(__file__).with_name("forked_scripts.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as server:

        def run(scripts, folder):
            told = tmp_path_factory.mktemp("told")
            files = [(told / f"output-{n}", told / f"errors-{n}") for n in range(len(scripts))]
            orders = [
                [list(map(str, words)), *map(str, (folder, *pair))]
                for words, pair in zip(scripts, files, strict=True)
            ]
            print(json.dumps(orders), file=server.stdin, flush=True)
            ends = json.loads(server.stdout.readline())
            return [
                (end, *(file.read_text() for file in pair))
                for end, pair in zip(ends, files, strict=True)
            ]

        yield run
        server.stdin.close()
