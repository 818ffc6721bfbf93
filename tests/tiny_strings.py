"""Strings of up to three characters whose heads are unsure where they end, and a head that knows.

Inputs are what heads hear: `(3, 5)` scores of the characters 0 to 3 and "no character", and behind
them one of each length from 0 to 3. Where a string is over, the characters' scores are noise.
"""

import json
import sys

import numpy as np

POSITIONS, CLASSES, BLANK = 3, 5, 4
ROWS = {"train": 80, "val": 120, "test": 100}
NET = """\
import torch
from torch import nn
class Reader(nn.Module):
    def __init__(self, length_head):
        super().__init__()
        self.length_head = length_head
        self.characters, self.lengths = nn.Linear(5, 5), nn.Linear(4, 4)
        for layer in (self.characters, self.lengths):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.dropout = nn.Dropout(0.1)
    def forward(self, inputs):
        heard = self.characters(self.dropout(inputs[:, :15].unflatten(1, (3, 5))))
        if not self.length_head:
            return heard
        lengths = nn.functional.pad(self.lengths(inputs[:, 15:]), (0, 1), value=-1e4)
        return torch.cat([heard, lengths[:, None]], 1)
def reader(length_head: bool = True):
    return Reader(length_head)
"""
TEXT = """\
name: strings
data: {{name: arrays, path: '{data}', blank: 4}}
model: {{name: 'tiny_reader:reader', length_head: {head}}}
training: {{name: kfold, folds: 2}}
fit:
  epochs: 2
  batch_size: 16
  optimizer: {{name: adam, lr: 1e-2}}
  loss: character_cross_entropy
scoreboard: {{replicates: 60}}
"""
LENGTHS = """\
name: lengths
data: {{name: arrays, path: '{data}', blank: 4, target: length}}
model: {{name: mlp, inputs: 19, classes: 4, hidden: 16}}
training: {{name: kfold, folds: 2}}
fit: {{epochs: 12, batch_size: 16, optimizer: {{name: adam, lr: 3e-2}}}}
scoreboard: {{replicates: 50}}
"""


def strings(rows, seed, *, first=(0, 1, 2, 3)):
    """Return inputs and labels; `first` are the characters that strings begin with."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, POSITIONS + 1, rows)
    labels = rng.integers(0, BLANK, (rows, POSITIONS))
    labels[:, 0] = rng.choice(first, rows)
    labels[np.arange(POSITIONS) >= lengths[:, None]] = BLANK
    scores = 4 * np.eye(CLASSES)[labels]
    over = labels == BLANK
    scores[over] = 2.5 * rng.standard_normal((over.sum(), CLASSES))
    scores += 0.5 * rng.standard_normal(scores.shape)
    told = 4 * np.eye(POSITIONS + 1)[lengths] + rng.standard_normal((rows, POSITIONS + 1))
    return np.concatenate([scores.reshape(rows, -1), told], 1).astype(np.float32), labels


def make_strings(file, *, seed=0, **how):
    """Write the data set."""
    held = {}
    for number, (split, rows) in enumerate(ROWS.items(), seed):
        inputs, held[f"{split}_labels"] = strings(rows, number, **how)
        held[f"{split}_inputs"] = inputs
    np.savez(file, **held)


def make_net(folder):
    """Write the module of the net; whoever calls it takes the folder from `sys.path` again."""
    (folder / "tiny_reader.py").write_text(NET)
    sys.path.append(str(folder))


def make_recipe(folder, steps=None, *, head=True, more="", **decoding):
    """Write a recipe, and the data set where there is none, into a folder; return the recipe.

    Its net is to be imported: see `make_net`.
    """
    if not (folder / "data.npz").exists():
        make_strings(folder / "data.npz")
    text = TEXT.format(data=folder / "data.npz", head=json.dumps(head)) + more
    if steps is not None:
        text += f"decoding: {json.dumps({'steps': steps, **decoding})}\n"
    recipe = folder / "strings.yaml"
    recipe.write_text(text)
    return recipe


def make_lengths(folder, data=None):
    """Write the recipe of a length model of the same rows, or of other ones."""
    recipe = folder / "lengths.yaml"
    recipe.write_text(LENGTHS.format(data=data or folder / "data.npz"))
    return recipe
