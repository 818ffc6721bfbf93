"""What a RUN folder is scored on: labels, groups and names of its splits, written once."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polyfuse import durable, predictions, records
from polyfuse.data.base import Split, Splits, alphabet_of, task_of, truth_of
from polyfuse.errors import DataError, RunError, printable
from polyfuse.sequences import DIGITS
from polyfuse.tasks import CLASSES, TASKS

SCHEMA = 1


def write_labels(root: Path, splits: Splits) -> None:
    """Write what the splits are, unless it is there; refuse a RUN folder of other data.

    Args:
        root: the RUN folder.
        splits: train, val and test.

    Raises:
        RunError: the folder holds labels of other data.
        DataError: the splits are of several tasks, or alphabets.
    """
    tasks = {name: task_of(split) for name, split in splits._asdict().items()}
    if len(set(tasks.values())) > 1:
        told = ", ".join(f"{name} of {task}" for name, task in tasks.items())
        raise DataError(f"the splits are of several tasks: {told}; give all the same task")
    alphabets = {alphabet_of(split) for split in splits}
    if len(alphabets) > 1:
        told = ", ".join(sorted(f"'{printable(each)}'" for each in alphabets))
        raise DataError(f"the splits have several alphabets: {told}; give all the same")
    prints = {name: split.fingerprint() for name, split in splits._asdict().items()}
    fingerprint = hashlib.sha256(repr(prints).encode()).hexdigest()
    folder = root / "labels"
    if folder.is_dir():
        if read_index(folder)["fingerprint"] != fingerprint:
            raise RunError(
                f"'{root}' was made with other data; name a new folder with --out, "
                "or restore the data"
            )
        return
    with durable.new_folder(folder) as fresh:
        for name, split in splits._asdict().items():
            _write_split(fresh, name, split)
        index = {
            "schema": SCHEMA,
            "fingerprint": fingerprint,
            "task": tasks["train"],
            "blank": splits.train.blank,
            "alphabet": alphabet_of(splits.train),
            "inputs": list(splits.train.inputs(np.array([0])).shape[1:]),
            "splits": {name: {"rows": len(split)} for name, split in splits._asdict().items()},
            "files": records.digests(fresh),
        }
        durable.write_json(fresh / "index.json", index)


def read_index(folder: Path) -> Mapping[str, Any]:
    """Read what the splits are: task, rows, blank class, shape of an input, fingerprint, files.

    Args:
        folder: `RUN/labels`.

    Raises:
        RunError: missing, or no such record.

    Example:
        >>> read_index(Path("/no/such/labels"))
        Traceback (most recent call last):
        polyfuse.errors.RunError: cannot read '/no/such/labels/index.json': No such file ...
    """
    record = durable.read_json(folder / "index.json")
    if not _is_index(record):
        raise RunError(
            f"'{printable(folder)}/index.json' is no record of schema {SCHEMA}; restore it, or "
            "name a new folder with --out"
        )
    return dict(record)


def _write_split(folder: Path, name: str, split: Split) -> None:
    for array, suffix in ((truth_of(split), ""), (split.groups, "_groups")):
        if array is not None:
            predictions.write(folder / f"{name}{suffix}.npy", array)
    durable.write_json(folder / f"{name}_names.json", list(split.names))


def _is_index(record: Any) -> bool:
    """Tell whether a document from a file says what the splits are."""
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        return False
    splits = record.get("splits")
    return (
        isinstance(record.get("fingerprint"), str)
        and record.get("task", CLASSES) in TASKS
        and isinstance(record.get("blank"), int | None)
        and isinstance(record.get("alphabet", DIGITS), str)
        and records.are_files(record.get("files"))
        and isinstance(splits, dict)
        and all(isinstance(splits.get(name), dict) for name in Splits._fields)
        and all(isinstance(splits[name].get("rows"), int) for name in Splits._fields)
    )
