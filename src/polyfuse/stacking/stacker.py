"""Stacking: a meta-model that learns from members' out-of-fold predictions."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from polyfuse.classical import META_ESTIMATORS, classifier_tags
from polyfuse.errors import DataError
from polyfuse.fitting import Floats, array_of
from polyfuse.leaks import refuse_trained
from polyfuse.parameters import Parameters, one_of
from polyfuse.stacking.documents import (
    checked_parameters,
    no_document,
    packed,
    plain_parameters,
    unpacked,
)
from polyfuse.stacking.features import FEATURES, as_columns, as_values, beside, input_columns
from polyfuse.stacking.folds import folds_of, within
from polyfuse.stacking.layers import FINALS, Column, Fit, check_layers
from polyfuse.stacking.meta_models import Asked, check_meta
from polyfuse.stacking.networks import check_training
from polyfuse.stacking.rows import (
    TARGETS,
    Rows,
    groups_of,
    is_plain,
    is_plain_shape,
    members_of,
    rows_of,
)


@dataclass(kw_only=True, eq=False)
class Stacker(Parameters):
    """A meta-model on members' predictions of rows that they did not train on.

    The predictions that it is fitted on are out of fold: NaN where a member has no say. With
    `layers`, each layer's own predictions are made out of fold, too, and feed the next one. Heads
    (axes between sample and class) and outputs of numbers have a meta-model each.

    Args:
        meta: "logistic", "trees", "boosting" or "mlp" of classes; "ridge", "nonnegative", "trees",
            "boosting" or "mlp" of numbers; an estimator, which is cloned; an `nn.Module`, which is
            copied; or `package.module:factory`, called with `inputs=` and `classes=`. None is the
            first of these names. A `random_state` of None is `seed`.
        target: "classes" or "numbers".
        features: of classes: "log_prob", "logit" or "prob".
        clip: nearest that a probability comes to 0 before its logarithm; None is 1 / fitting rows
            (0.25 at most): a zero of a tree then weighs no more than it can know.
        drop_column: of two classes leave out the first where it only repeats the second.
        standardise: bring each column to mean 0 and deviation 1, by the rows that are fitted on.
        passthrough: learn from the inputs, too.
        layers: of meta-models between members and `meta`, each a sequence.
        folds: a number, a splitter of scikit-learn, or pairs of row numbers, by which layers (and
            `final="mean"`) are predicted out of fold.
        ordered: rows come in the order of time, and each fold is predicted from earlier rows;
            rows that no fold predicts are left out of the next layer.
        final: new rows are predicted by meta-models that are fitted once more on all rows
            ("refit"), or by the mean of those of the folds ("mean").
        training: of a module: see `networks.trained`.
        seed: of folds, and of all that draws.
        uncovered: rows that some member has no say on: "leave_out" or "error".

    Attributes:
        layers_: fitted layers, the last of one column.
        classes_: labels of the columns of `predict_proba`; None for numbers.
        shape_: of a sample's predictions: `(member, ..., class)`.
        clip_: what `clip` came to.
        rows_: `(n,)` booleans, the rows that were fitted on.
        out_of_fold_: with `final="mean"`, `(n, ..., class)` predictions by meta-models that were
            not fitted on that row, NaN where there is none; else None. Where there are layers a
            score on these flatters a little; `cross_fitted` gives one that does not.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 3, 90)
        >>> good = np.full((90, 3), 0.1) + 0.7 * np.eye(3)[labels]
        >>> stacker = Stacker().fit([good, rng.dirichlet([1, 1, 1], 90)], labels)
        >>> float((stacker.predict([good, rng.dirichlet([1, 1, 1], 90)]) == labels).mean())
        1.0
        >>> print(stacker.summary())
        logistic on 6 log_prob columns a head, clipped at 0.0111; fitted on 90 rows (0 left out);
        predicts new rows by a refit on all of them
    """

    meta: Any = None
    target: str = "classes"
    features: str = "log_prob"
    clip: float | None = None
    drop_column: bool = True
    standardise: bool = True
    passthrough: bool = False
    layers: Sequence[Sequence[Any]] = ()
    folds: Any = 5
    ordered: bool = False
    final: str = "refit"
    training: Mapping[str, Any] | None = None
    seed: int = 0
    uncovered: str = "leave_out"
    layers_: tuple[tuple[Column, ...], ...] = field(init=False, repr=False)
    classes_: NDArray[Any] | None = field(init=False, repr=False)
    shape_: tuple[int, ...] = field(init=False, repr=False)
    clip_: float = field(init=False, repr=False)
    rows_: NDArray[np.bool_] = field(init=False, repr=False)
    out_of_fold_: Floats | None = field(init=False, repr=False)

    def fit(
        self,
        predictions: Any,
        labels: Any,
        *,
        inputs: Any = None,
        groups: Any = None,
        trained: Any = None,
    ) -> Self:
        """Fit on rows that no member trained on.

        Args:
            predictions: `(member, sample, ..., class)` probabilities, or a sequence of members;
                for numbers `(member, sample, ...)`; NaN where a member has no say. Fold members of
                one base model are one member: see `join_folds`. Or, of classes, plain features
                `(sample, feature)`.
            labels: `(sample, ...)` integers below the number of classes, or numbers; of plain
                features any labels.
            inputs: `(sample, ...)` numbers, for `passthrough`.
            groups: `(sample,)`; no fold cuts one.
            trained: `(member, sample)` booleans, True where that member learned from that row.

        Raises:
            DataError: what does not fit, rows that members trained on, unknown parameters.
        """
        _check(self)
        if not is_plain(predictions, self.target):
            refuse_trained(predictions, trained, "this stacking")
        elif trained is not None:
            raise DataError(
                "trained= is of members, and plain features (sample, feature) have none"
            )
        rows = rows_of(predictions, labels, self.target, self.uncovered)
        self.shape_, self.classes_, self.rows_ = rows.shape, rows.classes, rows.covered
        self.clip_ = min(1 / len(rows.targets), 0.25) if self.clip is None else self.clip
        beside_columns = self._inputs(inputs, rows.covered)
        self._climb(rows, beside_columns, self._folds(rows, labels, groups))
        return self

    def predict_proba(self, predictions: Any, *, inputs: Any = None) -> Floats:
        """Return the meta-model's probabilities, `(sample, ..., class)` float64.

        Args:
            predictions: of the same members. Rows that some member has no say on (NaN) are NaN.
            inputs: `(sample, ...)`, for `passthrough`.

        Raises:
            DataError: not fitted, fitted on numbers, other members, or no probabilities.
        """
        self.fitted("layers_")
        if self.target == "numbers":
            raise DataError('target="numbers" predicts no probabilities: call predict()')
        return self._said(predictions, inputs)

    def predict(self, predictions: Any, *, inputs: Any = None) -> NDArray[Any]:
        """Return the classes, or the numbers (NaN where some member has no say).

        Raises:
            DataError: see `predict_proba`; rows that some member has no say on have no class.
        """
        self.fitted("layers_")
        said = self._said(predictions, inputs)
        if self.target == "numbers":
            return said
        gone = np.asarray(np.isnan(said).any(-1))
        if gone.any():
            raise DataError(
                f"{int(gone.reshape(len(gone), -1).any(1).sum())} rows have no class, since a "
                "member has no say on them; leave them out, or use predict_proba"
            )
        return np.asarray(self.fitted("classes_")[said.argmax(-1)])

    def summary(self) -> str:
        """Return what was fitted on what, in words."""
        layers, rows = self.fitted("layers_"), self.rows_
        chain = " -> ".join(" + ".join(column.name for column in layer) for layer in layers)
        width = len(layers[0][0].models[0][0].shift)
        kind = self.features if self.target == "classes" else "value"
        kind = "plain" if is_plain_shape(self.shape_, self.target) else kind
        clipped = f", clipped at {self.clip_:.3g}" if kind in ("log_prob", "logit") else ""
        models = len(layers[-1][0].models)
        how = "a refit on all of them" if self.final == "refit" else f"the mean of {models} folds"
        return (
            f"{chain} on {width} {kind} columns a head{clipped}; fitted on {rows.sum()} rows "
            f"({(~rows).sum()} left out);\npredicts new rows by {how}"
        )

    def document(self) -> dict[str, Any]:
        """Return parameters and what was found, plain and without pickle, for JSON.

        Linear meta-models and modules that a factory makes are numbers; other estimators go through
        skops. Estimators among the parameters are only named: what is read back predicts, and to
        fit anew needs a `meta`.

        Raises:
            DataError: not fitted, or a module that came as an object.
            MissingExtraError: an estimator that is not linear, and skops is not installed.
        """
        layers = [[column.document() for column in layer] for layer in self.fitted("layers_")]
        labels = None if self.classes_ is None else self.classes_.tolist()
        found = {"shape": list(self.shape_), "classes": labels, "clip": self.clip_}
        found |= {"rows": packed(self.rows_), "layers": layers}
        return {"parameters": plain_parameters(self.get_params()), "found": found}

    @classmethod
    def from_document(cls, document: Mapping[str, Any], trusted: Collection[str] = ()) -> Self:
        """Return the fitted object that a document describes; `out_of_fold_` is not kept.

        Args:
            document: as `document()` gives it, also after JSON.
            trusted: names of types and factories in it that may run.

        Raises:
            DataError: what is no such document, or code that is not trusted.
            MissingExtraError: it holds an estimator, and skops is not installed.
        """
        made = cls(**checked_parameters(document, cls, trusted))
        with no_document("stacking"):
            found = document["found"]
            made.layers_ = tuple(
                tuple(Column.from_document(column, trusted) for column in layer)
                for layer in found["layers"]
            )
            made.shape_ = tuple(map(int, found["shape"]))
            labels = found["classes"]
            made.classes_ = None if labels is None else np.asarray(labels)
            made.clip_, made.out_of_fold_ = float(found["clip"]), None
            made.rows_ = unpacked(found["rows"])
            one_of("target", made.target, TARGETS)
            one_of("features", made.features, FEATURES)
            made._check_found()
        return made

    @property
    def n_features_in_(self) -> int:
        """How many plain features were fitted on; members' predictions have no such number."""
        if not is_plain_shape(getattr(self, "shape_", ()), self.target):
            raise AttributeError("n_features_in_ is there after fitting on features")
        return self.shape_[0]

    def __sklearn_tags__(self) -> Any:
        return classifier_tags()

    def _check_found(self) -> None:
        """Refuse what a document brought where its parts do not fit each other."""
        classes = 1 if self.classes_ is None else len(self.classes_)
        plain = is_plain_shape(self.shape_, self.target)
        inner = self.shape_ if plain or self.target == "numbers" else self.shape_[:-1]
        fits = min(self.shape_) >= 1 and (inner == self.shape_ or self.shape_[-1] == classes)
        fits &= (self.classes_ is None) == (self.target == "numbers") and 0 < self.clip_ < 0.5
        if not fits or not self.layers_ or len(self.layers_[-1]) != 1:
            raise DataError("samples, classes, clip and layers do not fit each other")
        halved = self.drop_column and classes == 2 and self.features != "log_prob"
        each = 1 if halved else classes
        heads = 1 if plain else math.prod(inner[1:])
        first = self.shape_[0] * (1 if plain else each)
        check_layers(self.layers_, first, each, heads, classes, self.passthrough)

    def _climb(self, rows: Rows, inputs: Floats | None, folds: Any) -> None:
        """Fit layer after layer; each learns from what the one before says out of fold."""
        count, asked = len(rows.targets), self._asked(rows)
        columns = beside(self._columns(rows.members), inputs)
        usable, fitted = np.ones(count, bool), []
        for layer in self.layers:
            fit = Fit(columns, rows.targets, usable, within(folds, usable))
            pairs = [fit.out_of_fold(meta, asked, self.final) for meta in layer]
            fitted.append(tuple(column for column, _ in pairs))
            said = np.stack([own for _, own in pairs])
            usable = np.asarray(~np.isnan(said).any((0, 2, 3)))
            columns = beside(self._columns(said), inputs)
        meta, self.out_of_fold_ = self._meta(), None
        if self.final == "mean":
            fit = Fit(columns, rows.targets, usable, within(folds, usable))
            last, outside = fit.out_of_fold(meta, asked, "mean")
            self.out_of_fold_ = self._scattered(outside, rows.covered)
        else:
            last = Fit(columns, rows.targets, usable, []).column(meta, asked)
        self.layers_ = (*fitted, (last,))

    def _said(self, predictions: Any, inputs: Any) -> Floats:
        members, covered = members_of(predictions, self.target, self.fitted("shape_"))
        own = self._inputs(inputs, covered)
        for layer in self.layers_:
            columns = beside(self._columns(members), own)
            members = np.stack([column.predict(columns) for column in layer])
        return self._scattered(members[0], covered)

    def _columns(self, members: Floats) -> Floats:
        if members.shape[-1] == 1:
            return as_values(members[..., 0])
        return as_columns(members, self.features, self.clip_, self.drop_column)

    def _scattered(self, said: Floats, covered: NDArray[np.bool_]) -> Floats:
        """Return `(row, head, class)` as `(n, ..., class)`, NaN where rows are not covered."""
        whole = np.full((len(covered), *said.shape[1:]), np.nan)
        whole[covered] = said
        heads = self.shape_[1:-1] if self.target == "classes" else self.shape_[1:]
        last = said.shape[-1:] if self.target == "classes" else ()
        return whole.reshape(len(covered), *heads, *last)

    def _inputs(self, inputs: Any, covered: NDArray[np.bool_]) -> Floats | None:
        if inputs is None and not self.passthrough:
            return None
        if inputs is None or not self.passthrough:
            came = "came with" if inputs is not None else "needs inputs= and came without:"
            raise DataError(f"passthrough={self.passthrough} {came} inputs; bring both or none")
        return input_columns(inputs, len(covered))[covered]

    def _asked(self, rows: Rows) -> Asked:
        width = 1 if rows.classes is None else len(rows.classes)
        return Asked(self.target, width, self.standardise, self.seed, self.training or {})

    def _meta(self) -> Any:
        return next(iter(META_ESTIMATORS[self.target])) if self.meta is None else self.meta

    def _folds(self, rows: Rows, labels: Any, groups: Any) -> Any:
        known = groups_of(groups, len(rows.covered))
        if not self.layers and self.final == "refit":
            return []
        plain = is_plain_shape(self.shape_, self.target)
        return folds_of(
            self.folds,
            rows.targets[:, 0] if plain else array_of(labels),
            rows.covered,
            groups=known,
            ordered=self.ordered,
            seed=self.seed,
        )


def _check(asked: Stacker) -> None:
    """Refuse parameters that are out of range or unknown."""
    one_of("target", asked.target, TARGETS)
    one_of("features", asked.features, FEATURES)
    one_of("final", asked.final, FINALS)
    if asked.clip is not None and not 0 < asked.clip < 0.5:
        raise DataError(f"clip={asked.clip} must be above 0 and below 0.5, or None for 1 / rows")
    empty = [number for number, layer in enumerate(asked.layers) if not _is_layer(layer)]
    if empty:
        raise DataError(
            f"layers[{empty[0]}] is no sequence of meta-models; write "
            'layers=[["logistic", "trees"]] for one layer of two'
        )
    metas = [asked.meta] if asked.meta is not None else []
    for meta in [*metas, *(meta for layer in asked.layers for meta in layer)]:
        check_meta(meta, asked.target)
    check_training(asked.training or {})


def _is_layer(layer: Any) -> bool:
    return isinstance(layer, Sequence) and not isinstance(layer, str) and len(layer) > 0
