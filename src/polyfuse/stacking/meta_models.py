"""Meta-models: what learns from the columns of one head, of any kind, and predicts."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from torch import nn

from polyfuse.classical import META_ESTIMATORS, estimates, seeded_clone
from polyfuse.errors import DataError, did_you_mean, printable
from polyfuse.fitting import Floats
from polyfuse.stacking.linear import Linear, as_linear
from polyfuse.stacking.networks import FACTORIES, Network, trained
from polyfuse.stacking.skops_files import as_text, from_text

ONLY_NAMED = "stored: "  # begins the name of a meta-model that its document cannot bring back


class Asked(NamedTuple):
    """How meta-models are fitted.

    Attributes:
        target: "classes" or "numbers".
        width: number of classes, or 1.
        standardise: shift and scale each column to mean 0 and deviation 1 of the fitting rows.
        seed: of whatever draws.
        training: options of the loop that trains a module.
    """

    target: str
    width: int
    standardise: bool
    seed: int
    training: Mapping[str, Any]


class Constant(NamedTuple):
    """What fitting rows of a single class teach: that class."""

    def predict(self, columns: Floats) -> Floats:
        """Return `(row, 1)` ones."""
        return np.ones((len(columns), 1))

    def document(self) -> dict[str, Any]:
        """Return nothing: there is nothing to know."""
        return {}


class Estimator(NamedTuple):
    """A fitted estimator of scikit-learn, or of any library with its conventions."""

    estimator: Any

    def predict(self, columns: Floats) -> Floats:
        """Return `(row, class)` probabilities, or `(row, 1)` numbers."""
        if hasattr(self.estimator, "predict_proba"):
            return np.asarray(self.estimator.predict_proba(columns), np.float64)
        return np.asarray(self.estimator.predict(columns), np.float64).reshape(-1, 1)

    def document(self) -> dict[str, Any]:
        """Return it as text without pickle; see `skops_files`."""
        return {"skops": as_text(self.estimator)}


Model = Linear | Constant | Estimator | Network
KINDS = {"linear": Linear, "constant": Constant, "estimator": Estimator, "network": Network}


class Head(NamedTuple):
    """The fitted meta-model of one head.

    Attributes:
        shift: `(column,)` that is taken away from the columns, and
        scale: that they are then divided by.
        classes: `(class,)` that the model knows, or None for numbers.
        width: number of all classes; those that it does not know get 0.
        model: what was fitted.
    """

    shift: Floats
    scale: Floats
    classes: NDArray[np.int64] | None
    width: int
    model: Model

    def predict(self, columns: Floats) -> Floats:
        """Return `(row, class)` probabilities of all classes, or `(row, 1)` numbers."""
        said = self.model.predict((columns - self.shift) / self.scale)
        if self.classes is None:
            return said
        shares = np.zeros((len(said), self.width))
        shares[:, self.classes] = said
        return shares

    def document(self) -> dict[str, Any]:
        """Return what `from_document` makes the same head of, plain and without pickle."""
        kind = next(name for name, cls in KINDS.items() if isinstance(self.model, cls))
        return {
            "shift": self.shift.tolist(),
            "scale": self.scale.tolist(),
            "classes": None if self.classes is None else self.classes.tolist(),
            "width": self.width,
            "kind": kind,
            "model": self.model.document(),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], trusted: Collection[str] = ()) -> Self:
        """Return the head that a document describes.

        Raises:
            DataError: an unknown kind, what does not fit, or code that is not trusted.
        """
        shift, scale = (np.asarray(document[name], np.float64) for name in ("shift", "scale"))
        level = shift.ndim == 1 and shift.shape == scale.shape and np.isfinite(shift + scale).all()
        if not level or not (scale > 0).all():
            raise DataError("shift and scale must be a finite number a column, scale above 0")
        classes, width = document["classes"], int(document["width"])
        known = None if classes is None else np.asarray(classes, np.int64)
        if known is not None and (known.ndim != 1 or not _rise_within(known, width)):
            raise DataError("the classes of a head must rise, and be below its width")
        outputs = 1 if known is None else len(known)
        model = _restored(document, (len(shift), outputs), trusted)
        return cls(shift, scale, known, width, model)


def fit_head(meta: Any, columns: Floats, targets: NDArray[Any], asked: Asked) -> Head:
    """Fit a meta-model on the columns of one head.

    Args:
        meta: a name, an estimator (cloned), a module (copied), or `package.module:factory`.
        columns: `(row, column)`.
        targets: `(row,)` integers, or numbers.
        asked: how.

    Raises:
        DataError: a meta-model that cannot be fitted on this.

    Example:
        >>> x, y = np.arange(8.0)[:, None], np.array([0, 0, 0, 0, 2, 2, 2, 2])
        >>> head = fit_head("logistic", x, y, Asked("classes", 3, True, 0, {}))
        >>> head.predict(x).argmax(-1).tolist(), type(head.model).__name__
        ([0, 0, 0, 0, 2, 2, 2, 2], 'Linear')
    """
    shift, scale = _standard(columns, asked.standardise)
    scaled = (columns - shift) / scale
    if asked.target == "numbers":
        return Head(shift, scale, None, 1, _fitted(meta, scaled, targets, asked))
    classes, codes = np.unique(targets, return_inverse=True)
    model = Constant() if len(classes) == 1 else _fitted(meta, scaled, codes, asked)
    return Head(shift, scale, classes.astype(np.int64), asked.width, model)


def check_meta(meta: Any, target: str) -> None:
    """Refuse what is no meta-model for this target.

    Args:
        meta: a name, an estimator, a module or `package.module:factory`.
        target: "classes" or "numbers".

    Raises:
        DataError: an unknown name, or a meta-model of the other kind.

    Example:
        >>> check_meta("logistic", "classes")
    """
    if _is_network(meta):
        return
    if isinstance(meta, str):
        if meta.startswith(ONLY_NAMED):
            raise DataError(
                f"meta='{printable(meta)}' was only named where this was stored; set_params(meta="
                "...) before fitting anew"
            )
        names = [*META_ESTIMATORS[target], *FACTORIES]
        if meta not in names:
            near = did_you_mean(meta, names)
            raise DataError(
                f"meta='{printable(meta)}' is no meta-model for {target}{near}; it is one of "
                f"{', '.join(names)}, package.module:factory of a torch module, or an estimator or "
                "module itself"
            )
        return
    wanted = "predict_proba" if target == "classes" else "predict"
    if isinstance(meta, type) or not all(hasattr(meta, name) for name in ("fit", "get_params")):
        raise DataError(
            f"meta={printable(repr(meta))} is no estimator; bring LogisticRegression(), say"
        )
    if estimates(meta) not in (target, "unknown") or not hasattr(meta, wanted):
        raise DataError(
            f"meta={printable(repr(meta))} has no {wanted} for {target}; take one that has, or "
            'wrap it: CalibratedClassifierCV(...) gives probabilities; target="numbers" is for '
            "regressors"
        )


def name_of(meta: Any) -> str:
    """Return a meta-model's name for people.

    Example:
        >>> name_of("ridge"), name_of(nn.Linear(2, 2))
        ('ridge', 'Linear')
    """
    if isinstance(meta, str):
        return meta
    return type(meta).__name__ if isinstance(meta, nn.Module) else " ".join(repr(meta).split())


def reusable(meta: Any, trusted: Collection[str] = ()) -> str:
    """Return a stored meta-model's name as one that may be fitted anew, or as one that is refused.

    Example:
        >>> reusable("ridge"), reusable("os:remove"), reusable("LinearSVC()")
        ('ridge', 'stored: os:remove', 'stored: LinearSVC()')
    """
    name = str(meta)
    names = {*META_ESTIMATORS["classes"], *META_ESTIMATORS["numbers"], *FACTORIES, *trusted}
    return name if name in names or name.startswith(ONLY_NAMED) else ONLY_NAMED + name


def _is_network(meta: Any) -> bool:
    if isinstance(meta, str):
        return meta in FACTORIES or (":" in meta and not meta.startswith(ONLY_NAMED))
    return isinstance(meta, nn.Module)


def _fitted(meta: Any, columns: Floats, targets: NDArray[Any], asked: Asked) -> Model:
    if _is_network(meta):
        return trained(meta, columns, targets, seed=asked.seed, training=asked.training)
    source = META_ESTIMATORS[asked.target][meta]() if isinstance(meta, str) else meta
    fitted = Estimator(seeded_clone(source, asked.seed).fit(columns, targets))
    said = fitted.predict(columns)
    width = 1 if asked.target == "numbers" else int(targets.max()) + 1
    if said.shape != (len(columns), width):
        raise DataError(f"{name_of(meta)} predicts shape {said.shape}, not {(len(columns), width)}")
    return as_linear(fitted.estimator, columns, said) or fitted


def _standard(columns: Floats, asked: bool) -> tuple[Floats, Floats]:
    if not asked:
        return np.zeros(columns.shape[1]), np.ones(columns.shape[1])
    deviation = columns.std(0)
    # A column of one value has a deviation of zero, or of rounding errors.
    level = deviation <= 1e-12 * np.abs(columns).max(0, initial=0.0)
    return columns.mean(0), np.where(level, 1.0, deviation)


def _rise_within(classes: NDArray[np.int64], width: int) -> bool:
    inside = len(classes) > 0 and classes[0] >= 0 and classes[-1] < width
    return bool(inside and (np.diff(classes) > 0).all())


def _restored(
    document: Mapping[str, Any], sizes: tuple[int, int], trusted: Collection[str]
) -> Model:
    kind, own = document["kind"], document["model"]
    if kind == "linear":
        linear = Linear.from_document(own)
        got = (linear.weights.shape[1], linear.outputs())
        if got != sizes:
            raise DataError(f"a linear meta-model of sizes {got} does not fit {sizes}")
        return linear
    if kind == "constant" and sizes[1] == 1:
        return Constant()
    if kind == "network":
        return Network.from_document(own, sizes, trusted)
    if kind == "estimator":
        return Estimator(from_text(str(own["skops"]), trusted))
    raise DataError(
        f"'{printable(kind)}' is no kind of meta-model here; it is one of {', '.join(KINDS)}"
    )
