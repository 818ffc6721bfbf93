"""Train and compare in a RUN folder; print every event that writes in there, as JSON.

python watched_run.py RUN
"""

import json
import os
import re
import sys
from functools import partial
from pathlib import Path

import numpy as np

import polyfuse
from polyfuse import durable
from polyfuse.fit.logging import csv

CHANGES = frozenset(
    [
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.link",
        "os.symlink",
        "os.truncate",
        "shutil.rmtree",
    ]
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
TEMPORARY = re.compile(r"\.([^/]+)\.polyfuse-\d+-[0-9a-f]+\.tmp(?=/|$)")


def watch(root: Path, seen: list[tuple[str, str, bool]]) -> None:
    """Record from now on; hooks cannot be removed."""

    def hook(event: str, args: tuple) -> None:
        if event not in CHANGES and not (event == "open" and writes(*args[1:])):
            return
        for path in args[:2]:
            if isinstance(path, str | os.PathLike) and Path(path).is_relative_to(root):
                name = TEMPORARY.sub(r"\1", str(Path(path).relative_to(root)))
                seen.append((event, name, by_durable()))

    sys.addaudithook(hook)


def writes(mode: str | None, flags: int) -> bool:
    return bool(flags & WRITING) or any(letter in (mode or "") for letter in "wax+")


def by_durable() -> bool:
    folder, frame = os.path.dirname(durable.__file__), sys._getframe()
    while frame := frame.f_back:
        if os.path.dirname(frame.f_code.co_filename) == folder:
            return True
    return False


def main(root: Path) -> None:
    seen: list[tuple[str, str, bool]] = []
    watch(root, seen)
    data = polyfuse.Arrays(np.eye(8), np.arange(8) % 2)
    task = polyfuse.Task(
        partial(polyfuse.mlp, inputs=8, classes=2, hidden=4),
        polyfuse.Splits(data, data, data),
        polyfuse.FitOptions(epochs=1, logger=csv),
    )
    with durable.locked(root):
        population = polyfuse.train(polyfuse.kfold(data, folds=2), task, root)
        polyfuse.compare_fusions(population)
        # Another function of that name: its fusion is made anew.
        polyfuse.compare_fusions(population, fusions={"mean_logit": polyfuse.mean_probability})
    (root / "rogue.txt").write_text("not by durable.py")
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
