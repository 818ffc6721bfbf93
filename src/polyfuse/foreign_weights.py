"""A checkpoint from elsewhere as a model of its own: names and shapes checked, then applied."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from polyfuse.checkpoints import load_checkpoint
from polyfuse.data.base import Splits
from polyfuse.determinism import seeded
from polyfuse.errors import CheckpointError, printable
from polyfuse.inference import (
    check_labels,
    lengths_of,
    milliseconds_per_image,
    predict,
    predict_heads,
)
from polyfuse.statedict import digest, match_names

_SHOWN = 20  # shapes that are written out


class Loaded(NamedTuple):
    """A model with the weights of a checkpoint.

    Attributes:
        model: in eval mode.
        source: file and SHA-256 of the tensors.
        notes: what was done to match them, a sentence each.
    """

    model: nn.Module
    source: Mapping[str, Any]
    notes: tuple[str, ...]


class Applied(NamedTuple):
    """What a model says.

    Attributes:
        logits: by split, `(row, ..., class)` float32; NaN on train where it has no say.
        lengths: of a length head, by val and test, `(row, positions + 1)`; empty without one.
    """

    logits: Mapping[str, NDArray[np.float32]]
    lengths: Mapping[str, NDArray[np.float32]]


def loaded(path: str | Path, factory: Callable[[], nn.Module], *, key: str | None = None) -> Loaded:
    """Read a checkpoint of any format into the model that a factory makes.

    Names may have the prefixes of wrappers, as `module.`; nothing in the file is executed.

    Args:
        path: of the checkpoint.
        factory: makes the model.
        key: the state dict inside the file, where it is not the usual one.

    Raises:
        CheckpointError: no checkpoint; names or shapes that do not fit the model, all at once.

    Example:
        >>> loaded.__name__
        'loaded'
    """
    state = load_checkpoint(path, key)
    with seeded(0):
        model = factory()
    own = model.state_dict()
    match = match_names([own, state], ["the model", str(path)])
    faults = list(match.faults)
    faults += _shape_faults(own, {name: state[pair[1]] for name, pair in match.columns.items()})
    if faults:
        fix = "name the model that it was saved of: --model package.module:function"
        raise CheckpointError("\n".join([*faults, fix]))
    model.load_state_dict({name: state[theirs] for name, (_, theirs) in match.columns.items()})
    source = {"file": Path(path).name, "sha256": digest(state.items())}
    return Loaded(model.eval(), source, tuple(match.notes))


def _shape_faults(own: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> list[str]:
    faults = [
        f"'{printable(name)}' is {tuple(tensor.shape)} in the checkpoint and "
        f"{tuple(own[name].shape)} in the model"
        for name, tensor in theirs.items()
        if tensor.shape != own[name].shape
    ]
    more = len(faults) - _SHOWN
    return [*faults[:_SHOWN], *([f"and {more:,} more"] if more > 0 else [])]


def applied(model: nn.Module, splits: Splits, learned: NDArray[np.int64] | None) -> Applied:
    """Return a model's logits by split; on train of the rows that it is known not to have seen.

    Args:
        model: in eval mode.
        splits: the data.
        learned: training rows that it learned from; None where they are unknown: no row is told.

    Raises:
        DataError: the model's output does not fit the labels.

    Example:
        >>> from polyfuse import Arrays
        >>> data = Arrays(np.zeros((3, 4)), [0, 1, 0])
        >>> applied(nn.Linear(4, 2), Splits(data, data, data), None).logits["train"].shape
        (3, 2)
    """
    check_labels(model, splits.val, np.arange(min(2, len(splits.val))))
    heads = {name: predict_heads(model, getattr(splits, name)) for name in ("val", "test")}
    logits = {name: said.characters for name, said in heads.items()}
    train = np.full((len(splits.train), *logits["val"].shape[1:]), np.nan, np.float32)
    if learned is not None:
        unseen = np.setdiff1d(np.arange(len(train)), learned)
        if len(unseen):
            train[unseen] = predict(model, splits.train, unseen)
    return Applied({"train": train, **logits}, lengths_of(heads))


def costs(model: nn.Module, splits: Splits) -> tuple[int, float]:
    """Return a model's number of parameters, and its milliseconds a sample.

    Example:
        >>> from polyfuse import Arrays
        >>> data = Arrays(np.zeros((3, 4)), [0, 1, 0])
        >>> costs(nn.Linear(4, 2), Splits(data, data, data))[0]
        10
    """
    time = milliseconds_per_image(model, splits.val)
    return sum(p.numel() for p in model.parameters()), time
