"""What an ensemble does with members' outputs: combiner, options, weights, calibrators."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polyfuse.calibration import CalibratedPool
from polyfuse.combine import COMBINERS, mean_probability, mean_value
from polyfuse.combine.base import shares
from polyfuse.ensemble.calibrators import module_of
from polyfuse.ensemble.means import Mean, as_mean
from polyfuse.errors import DataError, did_you_mean, printable, refuse_unknown

_OURS = {id(function) for function in COMBINERS.values()}


@dataclass(frozen=True)
class Rule:
    """How outputs become one answer.

    Attributes:
        combiner: maps `(member, n, ..., classes)` to `(n, ...)`.
        options: of the combiner.
        mean: the combiner as a mean that is added up member by member; None where it is none.
        weights: `(member,)` or `(member, class)` float64 that sum to 1 over members; as they were
            given where the combiner is no mean; None for equal ones.
        calibrators: of the members' mean, or with `per_member` of each member.
    """

    combiner: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    mean: Mean | None = None
    weights: Tensor | None = None
    calibrators: tuple[nn.Module, ...] = ()
    per_member: bool = False

    @property
    def ours(self) -> bool:
        """Tell whether the combiner is one of `COMBINERS`: it reads members unstacked."""
        return id(self.combiner) in _OURS

    @property
    def quick(self) -> bool:
        """Tell whether this is a mean of which nothing more is made."""
        return self.mean is not None and not self.calibrators

    @property
    def least_axes(self) -> int:
        """Return how many axes a member's output has at least."""
        exclusive = self.options.get("exclusive", True) and self.combiner is not mean_value
        return 2 if exclusive else 1

    @property
    def name(self) -> str:
        """Return what the combiner is called."""
        return str(getattr(self.combiner, "__name__", type(self.combiner).__name__))


def rule_of(combiner: Any, weights: Any, options: Mapping[str, Any], count: int) -> Rule:
    """Return the rule for whatever stands for a combiner.

    Args:
        combiner: a function, its name in `COMBINERS`, `package.module:function`, a fitted
            combination, or an array of weights.
        weights: of the members, where the combiner does not bring its own.
        options: of the combiner.
        count: of members.

    Raises:
        DataError: none of these, not fitted, options that it does not take, wrong weights.

    Example:
        >>> rule_of("mean_logit", [1, 3], {}, 2).weights.tolist()
        [0.25, 0.75]
    """
    if isinstance(combiner, str):
        combiner = _named(combiner)
    if callable(combiner):
        return _of_function(combiner, weights, dict(options), count)
    if weights is not None:
        raise DataError(
            f"{type(combiner).__name__} brings its own weights: leave out weights=, or give a "
            "combiner by its name"
        )
    return _of_fitted(combiner, dict(options), count)


def _of_fitted(fitted: Any, options: dict[str, Any], count: int) -> Rule:
    if isinstance(fitted, CalibratedPool):
        refuse_unknown("a calibrated pool", options, [])
        return _calibrated(fitted, count)
    found = getattr(fitted, "weights_", None)
    if found is None and hasattr(fitted, "fit"):
        raise DataError(
            f"this {type(fitted).__name__} has no weights_: call fit(...) first; if it is no "
            "weighted mean, wrap its predict_proba in a function of (member, n, classes) logits"
        )
    numbers = "mse" in (getattr(fitted, "metric", None), getattr(fitted, "loss", None))
    mean = mean_value if numbers else mean_probability
    return _of_function(mean, fitted if found is None else found, options, count)


def _of_function(combiner: Any, weights: Any, options: dict[str, Any], count: int) -> Rule:
    if isinstance(combiner, partial) and not combiner.args and id(combiner.func) in _OURS:
        combiner, options = combiner.func, {**combiner.keywords, **options}
    weights = options.pop("weights", None) if weights is None else weights
    if weights is not None:
        options["weights"] = None
    _check_options(combiner, options)
    options.pop("weights", None)
    mean = as_mean(combiner, options)
    if weights is None:
        return Rule(combiner, options, mean)
    checked = _checked(weights, count, per_class=mean is not None and combiner is mean_probability)
    given = checked if mean is not None else np.asarray(_plain(weights), np.float64)
    return Rule(combiner, options, mean, torch.tensor(given, dtype=torch.float64))


def _calibrated(fitted: CalibratedPool, count: int) -> Rule:
    """Return mean and calibration of a fitted pool.

    Raises:
        DataError: not fitted, or on another number of members.
    """
    found = fitted.fitted("calibrators_")
    if fitted.per_member and len(found) != count:
        raise DataError(f"this CalibratedPool was fitted on {len(found)} members; got {count}")
    pooled = _of_function(mean_probability, fitted.weights, {}, count)
    # A member without a weight was not calibrated, and is not asked.
    modules = tuple(nn.Identity() if one is None else module_of(one) for one in found)
    return Rule(
        pooled.combiner,
        mean=pooled.mean,
        weights=pooled.weights,
        calibrators=modules,
        per_member=fitted.per_member,
    )


def _named(name: str) -> Any:
    """Return a combiner by its name, or the user's own.

    Raises:
        DataError: there is none, or it cannot be imported.
    """
    if name in COMBINERS:
        return COMBINERS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise DataError(
            f"unknown combiner '{printable(name)}'{did_you_mean(name, COMBINERS)}; known: "
            f"{', '.join(COMBINERS)}, or package.module:function"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a user's module may raise anything
        raise DataError(f"cannot import '{printable(name)}': {printable(error)}") from error
    if not callable(found):
        raise DataError(f"'{printable(name)}' is a {type(found).__name__}; name a function")
    return found


def _check_options(combiner: Any, options: Mapping[str, Any]) -> None:
    """Refuse options that a combiner does not take; a module's are its forward's."""
    function = combiner.forward if isinstance(combiner, nn.Module) else combiner
    try:
        parameters = list(inspect.signature(function).parameters.values())[1:]
    except (TypeError, ValueError):  # some builtins do not tell
        return
    if all(p.kind is not p.VAR_KEYWORD for p in parameters):
        title = str(getattr(combiner, "__name__", type(combiner).__name__))
        refuse_unknown(title, options, [p.name for p in parameters])


def _checked(weights: Any, count: int, *, per_class: bool) -> Any:
    """Return weights that sum to 1 over members.

    Raises:
        DataError: of another number, negative, not finite, or none above 0.
    """
    numbers = np.asarray(_plain(weights), np.float64)
    if numbers.ndim != 2:
        return shares(numbers, count)
    fits = per_class and len(numbers) == count
    if not fits or not np.isfinite(numbers).all() or numbers.min() < 0 or not numbers.sum(0).all():
        raise DataError(
            f"weights of shape {numbers.shape} do not fit {count} members: give (member,), or for "
            "mean_probability (member, class): finite, 0 or more, and not all 0 in a class"
        )
    return numbers / numbers.sum(0)


def _plain(weights: Any) -> Any:
    """Return weights as NumPy understands them.

    Raises:
        DataError: they are no numbers.
    """
    plain = weights.detach().cpu().numpy() if isinstance(weights, Tensor) else weights
    try:
        return np.asarray(plain, np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"expected a combiner (a function, a name, a fitted combination) or weights, got "
            f"{printable(repr(weights), 80)}"
        ) from None
