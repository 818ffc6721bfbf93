"""Layers of meta-models: what each predicts out of fold is what the next one learns from."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from polyfuse.errors import DataError
from polyfuse.fitting import Floats
from polyfuse.stacking.folds import Folds
from polyfuse.stacking.meta_models import Asked, Head, fit_head, name_of

FINALS = ("refit", "mean")


class Column(NamedTuple):
    """One meta-model of a layer, fitted.

    Attributes:
        name: for people.
        models: `(model, head)`: one that was fitted on all rows, or one a fold, whose predictions
            are averaged.
    """

    name: str
    models: tuple[tuple[Head, ...], ...]

    def predict(self, columns: Floats) -> Floats:
        """Return `(row, head, class)` of `(head, row, column)`."""
        said = [_predicted(heads, columns) for heads in self.models]
        return np.asarray(sum(said[1:], said[0]) / len(said))

    def document(self) -> dict[str, Any]:
        """Return what `from_document` makes the same of."""
        models = [[head.document() for head in heads] for heads in self.models]
        return {"name": self.name, "models": models}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], trusted: Collection[str] = ()) -> Self:
        """Return the column that a document describes; see `Head.from_document`."""
        models = tuple(
            tuple(Head.from_document(head, trusted) for head in heads)
            for heads in document["models"]
        )
        return cls(str(document["name"]), models)


class Fit(NamedTuple):
    """Rows that a layer is fitted on.

    Attributes:
        columns: `(head, row, column)`; NaN where `usable` is False.
        targets: `(row, head)`.
        usable: `(row,)` booleans.
        folds: within the usable rows.
    """

    columns: Floats
    targets: NDArray[Any]
    usable: NDArray[np.bool_]
    folds: Folds

    def heads(self, meta: Any, rows: NDArray[Any], asked: Asked) -> tuple[Head, ...]:
        """Fit one meta-model a head on these rows."""
        return tuple(
            fit_head(meta, columns[rows], self.targets[rows, head], asked)
            for head, columns in enumerate(self.columns)
        )

    def column(self, meta: Any, asked: Asked) -> Column:
        """Fit on all rows, and predict none out of fold."""
        return Column(name_of(meta), (self.heads(meta, self.usable, asked),))

    def out_of_fold(self, meta: Any, asked: Asked, final: str) -> tuple[Column, Floats]:
        """Fit a meta-model fold by fold.

        Args:
            meta: see `fit_head`.
            asked: how.
            final: "refit": it predicts new rows by a model fitted on all rows; "mean": by the mean
                of the models of the folds.

        Returns:
            The column, and `(row, head, class)` predictions of rows by models that were not fitted
            on them: the mean where several folds predict a row, NaN where none does.
        """
        models = [self.heads(meta, fit, asked) for fit, _ in self.folds]
        total = np.zeros((*self.targets.shape, asked.width))
        count = np.zeros(len(total))
        for heads, (_, held) in zip(models, self.folds, strict=True):
            total[held] += _predicted(heads, self.columns[:, held])
            count[held] += 1
        with np.errstate(invalid="ignore"):
            said: Floats = total / count[:, None, None]
        whole = (
            self.column(meta, asked) if final == "refit" else Column(name_of(meta), tuple(models))
        )
        return whole, said


def check_layers(
    layers: Sequence[Sequence[Column]],
    columns: int,
    each: int,
    heads: int,
    width: int,
    passthrough: bool,
) -> None:
    """Refuse layers that cannot follow each other.

    Args:
        layers: as a document had them.
        columns: of a head that the first layer learns from, without inputs.
        each: columns that one meta-model gives the next layer.
        heads: of every model.
        width: classes, or 1.
        passthrough: inputs are among the columns of each layer; elsewhere there are none.

    Raises:
        DataError: a number of heads, classes or columns that does not fit.
    """
    inputs = set()
    for layer in layers:
        models = [model for column in layer for model in column.models]
        own = [head for model in models for head in model]
        fits = all(column.models for column in layer) and all(len(m) == heads for m in models)
        if not own or not fits or any(head.width != width for head in own):
            raise DataError(f"a layer does not fit {heads} heads of {width} classes")
        inputs |= {len(head.shift) - columns for head in own}
        columns = len(layer) * each
    if len(inputs) != 1 or min(inputs) < 0 or (min(inputs) > 0) != passthrough:
        raise DataError(
            f"layers learn from {sorted(inputs)} columns beside those of members, with "
            f"passthrough={passthrough}"
        )


def _predicted(heads: Sequence[Head], columns: Floats) -> Floats:
    return np.stack([head.predict(own) for head, own in zip(heads, columns, strict=True)], 1)
