"""The ways to combine by name: what each needs, which tasks it fits, how it is made."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polyfuse.combine import CLASS_COMBINERS, COMBINERS, VALUE_COMBINERS, bayesian_weights
from polyfuse.combining.base import KINDS, Metric, outward
from polyfuse.combining.fits import Fixed, Weighted
from polyfuse.dynamic_selection import DynamicSelection
from polyfuse.errors import DataError, did_you_mean, printable, refuse_unknown
from polyfuse.fitting import Floats, Labels, held_out
from polyfuse.greedy_selection import METRICS as GREEDY
from polyfuse.greedy_selection import GreedySelection
from polyfuse.sequences import SEQUENCE_COMBINERS
from polyfuse.simplex import LOSSES, SimplexWeights
from polyfuse.stacking import Blender, Stacker

Array = NDArray[Any]
CLASSES = tuple(name for name, kind in KINDS.items() if kind.classes)
ORDERED = ("median", "trimmed_mean", "winsorised_mean")  # of numbers as well as of classes
_MEANS = {
    "regression": "value",
    "mean_variance": "mixture_moments",
    "quantiles": "quantile_average",
}
_LIKELIHOOD_FLOOR = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class Wish:
    """What a combination is made for.

    Attributes:
        kind: of the task, in `KINDS`.
        metric: that decides, of (prediction as it goes out, labels).
        metric_name: its name.
        lower_is_better: of the metric.
        costs: `(member,)`.
        seed: of whatever draws.
        folds: of whatever fits within a fit.
        groups: of the rows of `val`, or None.
        blank: the class that means "no character", or None.
        priced: whether costs were given.
    """

    kind: str
    metric: Metric
    metric_name: str
    lower_is_better: bool
    costs: Floats
    seed: int = 0
    folds: int = 5
    groups: Labels | None = None
    blank: int | None = None
    priced: bool = False

    @property
    def mean(self) -> str:
        """The mean that fits the task, a name in `fits.MEANS`."""
        return _MEANS.get(self.kind, "probability")


class Method(NamedTuple):
    """One way to combine.

    Attributes:
        make: returns an object with `fit` and `predict_proba`, given a `Wish` and options.
        options: names that `make` takes.
        kinds: of tasks that it fits.
        fitted: its validation score is cross-fitted.
        says: what it does.
    """

    make: Callable[..., Any]
    options: tuple[str, ...]
    kinds: tuple[str, ...]
    fitted: bool
    says: str


def chosen_methods(asked: Sequence[str] | str, kind: str, decided: bool) -> dict[str, Method]:
    """Return methods by name; "all" is all that fit the task.

    Args:
        asked: names in `METHODS`.
        kind: of the task.
        decided: the members say classes, not probabilities.

    Raises:
        DataError: unknown ones, or such that do not fit the task; all at once.

    Example:
        >>> list(chosen_methods(["mean", "caruana"], "multiclass", False))
        ['mean', 'caruana']
    """
    names = [asked] if isinstance(asked, str) else list(dict.fromkeys(asked))
    fitting = {n: m for n, m in METHODS.items() if kind in m.kinds and (n in VOTES or not decided)}
    if "all" in names:
        return {n: m for n, m in fitting.items() if n not in ALIASES}
    faults = []
    for name in names:
        if name not in METHODS:
            near = did_you_mean(name, METHODS)
            faults.append(f"there is no method '{printable(name)}'{near}")
        elif name not in fitting:
            what = "decided classes" if decided else f"the task {kind}"
            faults.append(f"{name} does not fit {what}, which takes {', '.join(fitting)}")
    if faults or not names:
        raise DataError("\n".join(faults or ["no method is named: all, or " + ", ".join(fitting)]))
    return {name: fitting[name] for name in names}


def options_of(
    settings: Mapping[str, Any], methods: Mapping[str, Method]
) -> dict[str, dict[str, Any]]:
    """Return each method's own options out of `method.option` and `option`, for all that take it.

    Raises:
        PolyfuseError: an option that nothing takes.

    Example:
        >>> options_of({"caruana.rounds": 5}, {"caruana": METHODS["caruana"]})
        {'caruana': {'rounds': 5}}
    """
    found: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for key, value in settings.items():
        name, dot, option = key.rpartition(".")
        if dot and name not in methods:
            raise DataError(
                f"'{printable(key)}' sets an option of {printable(name)}, which is not asked for"
                f"{did_you_mean(name, methods)}; add --method {printable(name)}"
            )
        takers = [name] if dot else [n for n, m in methods.items() if option in m.options]
        known = [o for n in takers or methods for o in methods[n].options]
        refuse_unknown(name or " and ".join(methods), [option], list(dict.fromkeys(known)))
        for taker in takers:
            found[taker][option] = value
    return found


def _fixed(combiner: str, wish: Wish, **options: Any) -> Fixed:
    taken = inspect.signature({**COMBINERS, **SEQUENCE_COMBINERS}[combiner]).parameters
    if "space" in taken:
        options["space"] = "prob" if KINDS[wish.kind].classes else "value"
    if "blank" in taken:
        if wish.blank is None:
            raise DataError("strings end at a class of no character; say which: --blank CLASS")
        options["blank"] = wish.blank
    return Fixed(combiner=combiner, options=options)


def _mean(wish: Wish, **options: Any) -> Fixed:
    by_kind = {**_MEANS, "regression": "mean_value"}
    return _fixed(by_kind.get(wish.kind, "mean_probability"), wish, **options)


def _best(wish: Wish) -> Weighted:
    def find(predictions: Array, labels: Array) -> Floats:
        sign = -1 if wish.lower_is_better else 1
        scores = [sign * wish.metric(outward(wish.kind, one), labels).value for one in predictions]
        return np.asarray(np.eye(len(scores))[int(np.argmax(scores))])

    return Weighted(mean=wish.mean, find=find)


def _bayes(wish: Wish, prior: Any = None) -> Weighted:
    def find(predictions: Array, labels: Array) -> Floats:
        own = held_out(predictions, labels).gathered()
        logs = np.log(np.maximum(own, _LIKELIHOOD_FLOOR))
        return np.asarray(bayesian_weights(logs, prior=prior))

    return Weighted(mean="probability", find=find)


def _caruana(wish: Wish, **options: Any) -> Weighted:
    greedy = GreedySelection(**{"seed": wish.seed, **_aim(wish, GREEDY, "metric"), **options})

    def find(predictions: Array, labels: Array) -> Floats:
        priced = wish.costs if greedy.penalty or greedy.budget is not None else None
        return greedy.fit(_numbers(wish, predictions), labels, priced).weights_

    return Weighted(mean=wish.mean, find=find)


def _simplex(wish: Wish, **options: Any) -> Weighted:
    aim = _aim(wish, LOSSES, "loss")
    simplex = SimplexWeights(**{**(aim if isinstance(aim["loss"], str) else {}), **options})

    def find(predictions: Array, labels: Array) -> Floats:
        return simplex.fit(_numbers(wish, predictions), labels).weights_

    return Weighted(mean=wish.mean, find=find)


def _stack(make: type[Stacker], wish: Wish, **options: Any) -> Stacker:
    target = "classes" if KINDS[wish.kind].classes else "numbers"
    own = {"holdout": 0.5} if make is Blender else {}
    return make(**{**own, "target": target, "seed": wish.seed, **options})


def _dynamic(wish: Wish, **options: Any) -> DynamicSelection:
    return DynamicSelection(**options)


def _aim(wish: Wish, known: Sequence[str], option: str) -> dict[str, Any]:
    """Return what a fit minimises: the metric that decides, where it can."""
    if not KINDS[wish.kind].classes:
        return {option: "mse"}
    if wish.metric_name in known:
        return {option: wish.metric_name}

    def metric(prediction: Array, labels: Array) -> Any:
        return wish.metric(outward(wish.kind, prediction), labels)

    return {option: metric, "higher_is_better": not wish.lower_is_better}


def _numbers(wish: Wish, predictions: Array) -> Array:
    """Return what weights are fitted on: of distributions their means."""
    return predictions[..., 0] if wish.kind == "mean_variance" else predictions


def _taken(function: Callable[..., Any], *hidden: str) -> tuple[str, ...]:
    own = {"predictions", "logits", "space", "exclusive", "wish", *hidden}
    return tuple(name for name in inspect.signature(function).parameters if name not in own)


def _says(function: Callable[..., Any]) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _combiners() -> dict[str, Method]:
    """Return the combiners that have nothing to fit, under their own names."""
    kinds = dict.fromkeys(CLASS_COMBINERS, CLASSES)
    kinds |= dict.fromkeys(ORDERED, (*CLASSES, "regression"))
    kinds |= dict.fromkeys(SEQUENCE_COMBINERS, ("multi_head",))
    kinds |= {"mean_value": ("regression",), "mixture_moments": ("mean_variance",)}
    kinds |= {"quantile_average": ("quantiles",)}
    known = {**CLASS_COMBINERS, **SEQUENCE_COMBINERS, **VALUE_COMBINERS}
    return {
        name: Method(partial(_fixed, name), _taken(f, "blank"), kinds[name], False, _says(f))
        for name, f in known.items()
    }


# Names that say what another one says; `all` leaves them out.
ALIASES = (
    "mean_probability",
    "geometric_mean",
    "hard_vote",
    "position_vote",
    "bayesian_average",
    "mean_value",
    "mixture_moments",
    "quantile_average",
)
# What makes sense of members that say classes, not probabilities.
VOTES = ("vote", "hard_vote", "position_vote", "best", "caruana")
_HIDDEN = ("target", "uncovered", "passthrough", "training")
_BAYES = Method(_bayes, ("prior",), CLASSES, True, "weights by the members' held-out likelihoods")
METHODS: dict[str, Method] = {
    "mean": Method(_mean, ("weights",), tuple(KINDS), False, "the plain mean that fits the task"),
    "vote": Method(partial(_fixed, "hard_vote"), ("weights",), CLASSES, False, "one vote a member"),
    "best": Method(_best, (), tuple(KINDS), True, "the one member that is best"),
    "caruana": Method(
        _caruana,
        _taken(GreedySelection, "uncovered"),
        (*CLASSES, "regression", "mean_variance"),
        True,
        "greedy selection with replacement: whole-numbered weights, many of them zero",
    ),
    "simplex": Method(
        _simplex,
        _taken(SimplexWeights, "uncovered"),
        (*CLASSES, "regression", "mean_variance"),
        True,
        "the weights of least loss",
    ),
    "bayes": _BAYES,
    "stack": Method(
        partial(_stack, Stacker),
        _taken(Stacker, *_HIDDEN),
        (*CLASSES, "regression"),
        True,
        "a meta-model on the members' predictions",
    ),
    "blend": Method(
        partial(_stack, Blender),
        _taken(Blender, *_HIDDEN),
        (*CLASSES, "regression"),
        True,
        "a meta-model on a hold-out part of the rows",
    ),
    "dynamic": Method(
        _dynamic,
        _taken(DynamicSelection, "space", "uncovered"),
        CLASSES,
        True,
        "for each row, the members that do well on rows like it",
    ),
    **_combiners(),
    "bayesian_average": _BAYES,
}
