"""A recipe of one second: 3x4x6 images of three classes in an .npz file, two folds of an MLP."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from polyfuse.cli import app

CLASSES = 3
SHAPE = (CLASSES, 4, 6)
ROWS = {"train": 40, "val": 20, "test": 12}
TEXT = """\
name: tiny
data: {{name: arrays, path: '{data}'}}
model: {{name: mlp, inputs: 72, classes: 3, hidden: 8}}
training: {{name: kfold, folds: 2}}
fit:
  epochs: 2
  batch_size: 8
  optimizer: {{name: adam, lr: 1e-2}}
fusions: [mean_probability, hard_vote]
scoreboard: {{replicates: 50}}
quick: {{fit.epochs: 1}}
"""


def images(rows, seed):
    """Return uint8 images whose channel `label` is bright, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.arange(rows) % CLASSES
    pixels = random.integers(0, 120, (rows, *SHAPE), dtype=np.uint8)
    pixels[np.arange(rows), labels] += 100
    return pixels, labels


def held_out_images():
    """Return the test split's images, uint8."""
    return images(ROWS["test"], 2)[0]


def make_data(file, **changes):
    """Write the data set; `changes` replace arrays, None leaves one out."""
    held = {}
    for seed, (split, rows) in enumerate(ROWS.items()):
        pixels, held[f"{split}_labels"] = images(rows, seed)
        held[f"{split}_inputs"] = pixels / np.float32(255)
    np.savez(file, **{k: v for k, v in {**held, **changes}.items() if v is not None})


def make_recipe(folder, **changes):
    """Write data set and recipe into a folder; return the recipe."""
    make_data(folder / "data.npz", **changes)
    recipe = folder / "tiny.yaml"
    recipe.write_text(TEXT.format(data=folder / "data.npz"))
    return recipe


def digests(root):
    """Return SHA-256 by relative path; the leaderboard without the times it measured."""
    return {
        str(path.relative_to(root)): hashlib.sha256(_bytes(path)).hexdigest()
        for path in sorted(Path(root).rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def _bytes(path):
    if path.name != "leaderboard.json":
        return path.read_bytes()
    document = json.loads(path.read_text())
    for row in document["rows"]:
        del row["milliseconds"]
    return json.dumps(document).encode()


def polyfuse(*arguments):
    """Call the command line in this process."""
    return CliRunner().invoke(app, [str(a) for a in arguments], prog_name="polyfuse")


def refused(*arguments):
    """Return the message of a command that must fail with exit code 1 and no traceback."""
    result = polyfuse(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    return result.stderr


# Batch-norm in a net whose hidden layer is narrow: averages of it need its statistics.
NET = """\
import torch
def net():
    return torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(72, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(),
        torch.nn.Linear(8, 3),
    )
"""


def recipe_of_net(folder, name):
    """Write a module with a net of batch-norm, importable from now on; return the recipe's path and
    its text, changed to that net. Whoever calls it takes the folder from `sys.path` again."""
    (folder / f"{name}.py").write_text(NET)
    sys.path.append(str(folder))
    recipe = make_recipe(folder)
    known = "{name: mlp, inputs: 72, classes: 3, hidden: 8}"
    return recipe, recipe.read_text().replace(known, f"'{name}:net'")
