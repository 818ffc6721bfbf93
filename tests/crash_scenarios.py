"""What `crash.py` disturbs, by name: one entry a scenario, and mutants that it must catch.

A scenario's `command` cleans up after killed runs first, as the command line does.
"""

import contextlib
import shutil
import traceback
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from crash import Scenario, replace_in_durable
from polyfuse import durable, predictions
from polyfuse.durable import base, files
from polyfuse.errors import DiskError


@contextlib.contextmanager
def door(folder: Path) -> Iterator[None]:
    """Hold the folder, and clean up after killed writers, as `polyfuse run` does."""
    with durable.locked(folder):
        durable.remove_leftovers(folder)
        yield


def empty(folder: Path) -> None:
    """Start from nothing."""


# k-fold -----------------------------------------------------------------------------------------


@cache
def splits() -> Any:
    """Draw the data, once, before the first fork."""
    import polyfuse

    draw = np.random.default_rng(0)
    sizes = 24, 8, 8
    return polyfuse.Splits(
        *(polyfuse.Arrays(draw.standard_normal((n, 4)), np.arange(n) % 2) for n in sizes)
    )


@cache
def two_folds() -> tuple[Any, Any]:
    """Make the plan and the task, once, before the first fork."""
    import lightning_fabric
    import torch
    from lightning_fabric.utilities import registry
    from torch import cuda, mtia, xpu

    import polyfuse

    torch.set_num_threads(1)
    # Fabric reads all installed packages' entry points anew each time, in a tenth of a trial.
    registry.entry_points = cache(registry.entry_points)
    # A seed for a GPU that is not in use is kept with the stack, whose files are looked at anew.
    for device in (cuda, mtia, xpu):
        device.traceback = SimpleNamespace(**{**vars(traceback), "format_stack": list})
    lightning_fabric.Fabric(accelerator="cpu")
    task = polyfuse.Task(
        partial(polyfuse.mlp, inputs=4, classes=2, hidden=4, dropout=0.2),
        splits(),
        polyfuse.FitOptions(epochs=2, batch_size=8, accelerator="cpu"),
    )
    return polyfuse.kfold(splits().train, folds=2), task


def train_two_folds(folder: Path) -> None:
    import polyfuse

    plan, task = two_folds()
    polyfuse.train(plan, task, folder, runner=polyfuse.LocalRunner(1))


def first_fold_trained(folder: Path) -> None:
    """One member is there: the second one is trained as the first was, with more to lose."""
    train_two_folds(folder)
    shutil.rmtree(folder / "members" / "001")


def write_labels_of_splits(folder: Path) -> None:
    from polyfuse.labels import write_labels

    with door(folder):
        write_labels(folder, splits())


# predictions and submission ---------------------------------------------------------------------


def old_predictions(folder: Path) -> None:
    predictions.write(folder / "test.npy", np.zeros((5, 3), np.float32))


def new_predictions(folder: Path) -> None:
    with door(folder):
        predictions.write(folder / "test.npy", np.ones((50, 3), np.float32))


def one_view(folder: Path) -> None:
    store = predictions.PredictionStore(folder)
    store.write("one", "val", np.zeros((3, 2), np.float16), space="logit", rows=["a", "b", "c"])


def two_views(folder: Path) -> None:
    with door(folder):
        store = predictions.PredictionStore(folder)
        if "flip" in store.views("one", "val"):  # it was killed when all was done
            store.open("one", "val", "flip", rows=["a", "b", "c"], verify=True)
            return
        words = {"view": "flip", "space": "logit", "dtype": "float16", "rows": ["a", "b", "c"]}
        with store.writer("one", "val", (3, 2), **words) as writer:
            writer.append(np.ones((2, 2), np.float32))
            writer.append(np.ones((1, 2), np.float32))


def old_submission(folder: Path) -> None:
    durable.write_bytes(folder / "submission.csv", b"name,label\n0.png,1\n")


def new_submission(folder: Path) -> None:
    with door(folder):
        durable.write_bytes(folder / "submission.csv", b"name,label\n", b"0.png,2\n" * 1000)


def first_commit(folder: Path) -> None:
    with door(folder):
        durable.make_folder(folder / "a" / "b")
        with contextlib.suppress(FileExistsError):
            durable.write_json(folder / "a" / "b" / "run.json", {"seed": 3}, new=True)


# a recipe claims its folder ---------------------------------------------------------------------


@cache
def checked_recipe() -> Any:
    """Check the shipped recipe, once, before the first fork."""
    from polyfuse.recipes.run import load
    from polyfuse.recipes.shipped import find
    from polyfuse.recipes.source import read

    return load(read(find("street_numbers")), [])


def claim(folder: Path) -> None:
    from polyfuse.recipes.run import _begin

    with door(folder):
        _begin(folder, checked_recipe())


# leaderboard ------------------------------------------------------------------------------------


def add_member(folder: Path, index: int) -> None:
    import torch

    from polyfuse.members import write_member

    draw = np.random.default_rng(index)
    logits = {name: draw.standard_normal((8, 2)).astype("f4") for name in ("train", "val", "test")}
    record = {"index": index, "parameters": 1}
    rows = {"held_out": np.arange(index, index + 2)}
    write_member(folder, record, {"w": torch.tensor([float(index)])}, logits, rows)


def two_members_scored_and_a_third(folder: Path) -> None:
    import polyfuse
    from polyfuse.labels import write_labels

    data = polyfuse.Arrays(np.zeros((8, 1)), np.arange(8) % 2)
    write_labels(folder, polyfuse.Splits(data, data, data))
    for index in range(2):
        add_member(folder, index)
    score(folder)
    add_member(folder, 2)


FEW = ("mean_probability", "hard_vote")


def score(folder: Path) -> None:
    import polyfuse

    with door(folder):
        population = polyfuse.Population.open(folder)
        times = {0: 1.0, 1: 2.0, 2: 3.0}
        polyfuse.compare_fusions(population, fusions=FEW, replicates=20, milliseconds=times)


def add_stranger(folder: Path) -> None:
    """Add a member by its predictions, as `polyfuse add` does it."""
    from polyfuse.adding import add_member as join

    draw = np.random.default_rng(7)
    said = {split: draw.standard_normal((8, 2)) for split in ("train", "val", "test")}
    join(folder, "stranger", predictions=said, space="logit", trained_on=[0, 3])


def fit_a_fusion(folder: Path) -> None:
    """Fit a combination of the members, as `polyfuse combine RUN` does it.

    The fixed fusions, which "leaderboard" is about, are left out of the scoreboard.
    """
    from polyfuse import combining_runs

    compare = partial(combining_runs.compare_fusions, fusions={}, replicates=20)
    combining_runs.compare_fusions = compare
    combining_runs.combine_population(folder, "vote")


def heavy(
    setup: Callable[[Path], None],
    command: Callable[[Path], None],
    modules: tuple[str, ...] = (),
    **facts: Any,
) -> Scenario:
    """Return a scenario whose process has torch in it."""
    return Scenario(setup, command, ("polyfuse.compare", *modules), heavy=True, **facts)


# mutants ----------------------------------------------------------------------------------------


def mutant(**names: Callable[..., None]) -> Scenario:
    """Return the submission scenario with functions of durable replaced, in the child."""

    def command(folder: Path) -> None:
        replace_in_durable(**names)
        new_submission(folder)

    return Scenario(old_submission, command)


def in_place(path: Path, *buffers: bytes, new: bool = False) -> None:
    with base.disk_errors(path, 0):
        flags = files.os.O_WRONLY | files.os.O_CREAT | files.os.O_TRUNC
        descriptor = files.os.open(path, flags)
        for buffer in buffers:
            files.os.write(descriptor, buffer)
        files.os.close(descriptor)


def remove_first(path: Path, *buffers: bytes, new: bool = False) -> None:
    durable.remove(path)
    old_write_bytes(path, *buffers)


def write_once(path: Path, buffers: tuple[bytes, ...], size: int) -> None:
    descriptor = files.os.open(path, files.os.O_WRONLY | files.os.O_CREAT)
    for buffer in buffers:
        files.os.write(descriptor, buffer)
    files.os.fsync(descriptor)
    files.os.close(descriptor)


def do_nothing(*args: object) -> None:
    pass


@contextlib.contextmanager
def silent(path: Path, size: int) -> Iterator[None]:
    with contextlib.suppress(OSError):
        yield


@contextlib.contextmanager
def nameless(path: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DiskError("cannot write: something went wrong") from error


old_write_bytes = durable.write_bytes

SCENARIOS: dict[str, Scenario] = {
    "kfold": heavy(
        first_fold_trained,
        train_two_folds,
        ("torch.profiler", "lightning_fabric", "sklearn.model_selection", "polyfuse.training.loop"),
        warm=two_folds,
        told=frozenset({"failures.json"}),
    ),
    "labels": heavy(empty, write_labels_of_splits, ("polyfuse.labels",), warm=splits),
    "leaderboard": heavy(two_members_scored_and_a_third, score, rebuilt=("fusions/",)),
    "add": heavy(two_members_scored_and_a_third, add_stranger, ("polyfuse.adding",)),
    "combine": heavy(
        two_members_scored_and_a_third,
        fit_a_fusion,
        ("polyfuse.combining_runs",),
        rebuilt=("fusions/",),
    ),
    "claim": heavy(empty, claim, ("polyfuse.recipes.run",), warm=checked_recipe),
    "predictions": Scenario(old_predictions, new_predictions),
    "store": Scenario(one_view, two_views),
    "submission": Scenario(old_submission, new_submission),
    "first_commit": Scenario(empty, first_commit),
    "mutant: written in place": mutant(write_bytes=in_place),
    "mutant: old version removed first": mutant(write_bytes=remove_first),
    "mutant: short writes not continued": mutant(_write_and_sync=write_once),
    "mutant: temporary files not removed": mutant(forget=do_nothing),
    "mutant: leftovers not removed": mutant(remove_leftovers=do_nothing),
    "mutant: errors swallowed": mutant(disk_errors=silent),
    "mutant: errors name no file": mutant(disk_errors=nameless),
}
