"""Small data, members and digests that several tests use; importable by worker processes."""

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import polyfuse
from polyfuse.labels import write_labels
from polyfuse.members import write_member


def arrays(rows: int = 24, *, seed: int = 0, classes: int = 2, **options: Any) -> polyfuse.Arrays:
    """Return rows of 4 numbers whose class can be learned from them."""
    values = np.random.default_rng(seed).standard_normal((rows, 4)).astype("f4")
    return polyfuse.Arrays(values, (4 * values[:, 0]).astype(int) % classes, **options)


def splits(rows: int = 24, **options: Any) -> polyfuse.Splits:
    return polyfuse.Splits(arrays(rows, **options), arrays(8, seed=1), arrays(10, seed=2))


def task(data: polyfuse.Splits | None = None, **options: Any) -> polyfuse.Task:
    options = {"epochs": 2, "batch_size": 8, "accelerator": "cpu", **options}
    factory = partial(polyfuse.mlp, inputs=4, classes=2, hidden=4, dropout=0.2)
    return polyfuse.Task(factory, data or splits(), polyfuse.FitOptions(**options))


def train(folder: Path, data: polyfuse.Splits | None = None, **options: Any) -> polyfuse.Population:
    data = data or splits()
    return polyfuse.train(polyfuse.kfold(data.train, folds=2), task(data, **options), folder)


def population(
    folder: Path,
    data: polyfuse.Splits,
    logits: Mapping[int, Mapping[str, Any]],
) -> polyfuse.Population:
    """Write a population with these logits, by member and split."""
    write_labels(folder, data)
    for index, said in logits.items():
        record = {"index": index, "parameters": 10 + index}
        narrow = {name: np.asarray(array, np.float32) for name, array in said.items()}
        write_member(folder, record, {"w": torch.tensor([float(index)])}, narrow, {})
    return polyfuse.Population.open(folder)


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    """Tell whether two state dicts have the same bits."""
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )


def hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder; lock files apart."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
