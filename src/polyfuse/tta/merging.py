"""Merge what the views say into one answer: any combiner, logarithms added as logarithms."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.combine import COMBINERS, mean_value, product
from polyfuse.combine.base import Array, Members, Pieces, shares
from polyfuse.errors import DataError, did_you_mean, printable, refuse_unknown
from polyfuse.parameters import one_of
from polyfuse.tta.places import by_place, filled, places_of, plain, stacked
from polyfuse.tta.running import MEANS, Running

Combiner = Callable[..., Any]

RETURNS = ("prob", "log_prob")
_GIVEN = ("weights", "space")  # by other parameters
_OURS = {id(function) for function in COMBINERS.values()}
_MEANS = {id(function) for function in MEANS}


def merge_views(
    outputs: Array | Sequence[Tensor],
    weights: Any = None,
    *,
    combiner: str | Combiner = "mean_probability",
    space: str = "logit",
    returns: str = "prob",
    coverage: Any = None,
    **options: Any,
) -> Any:
    """Merge the outputs of a model for several views of its inputs.

    The combiner names the space in which a mean is taken: `mean_probability` that of probabilities,
    `mean_logit` that of logits, `geometric_mean` that of log-probabilities. Products and geometric
    means are sums of logarithms, so nothing underflows, however many views there are.

    Args:
        outputs: `(view, n, ..., class)`, floating; `(view, n, ...)` for `mean_value`. Or a list of
            tensors, one a view, which our combiners read where they lie.
        weights: `(view,)`, 0 or more; or `(view, class)` for means over classes (Shanmugam et al.
            2021), whose result is renormalised. Equal where None.
        combiner: a function, or a name in `COMBINERS`.
        space: what the numbers are, as in all combiners: "logit", "prob" or "log_prob".
        returns: "prob", or "log_prob": its logarithm, computed without the detour, which is as good
            as logits to whatever takes those.
        coverage: `(view, n or 1, ...)`, without the class axis: the say of each view at each
            place, 0 or more; means use it as a weight, other combiners ask only who has one.
        **options: of the combiner.

    Returns:
        `(n, ..., class)` in the kind and precision of the outputs; decided classes `(n, ...)` int64
        of votes.

    Raises:
        DataError: as the combiner; an unknown one; a place in no view; weights that do not fit.

    Example:
        >>> import numpy as np
        >>> many = np.tile(np.float32([0.98, 0.01, 0.01]), (64, 1, 1))
        >>> merge_views(many, combiner="geometric_mean", space="prob").round(3).tolist()
        [[0.9800000190734863, 0.009999999776482582, 0.009999999776482582]]
    """
    function = combiner_of(combiner)
    one_of("returns", returns, RETURNS)
    given: Any = _as_pieces(outputs) if isinstance(outputs, list | tuple) else outputs
    if coverage is not None and space in ("prob", "log_prob"):
        given = filled(given, coverage, space)
    per_class = weights is not None and plain(weights).ndim == 2
    logs = returns == "log_prob" and id(function) in _MEANS
    if id(function) in _MEANS and (per_class or coverage is not None or logs):
        check_options(function, options)
        running = Running(function, space=space, returns=returns, **options)
        return _mean(running, given, weights, coverage)
    if per_class:
        raise DataError(
            "weights a view and class are for means over classes: mean_probability, mean_logit, "
            f"geometric_mean; got {printable(combiner)}"
        )
    options |= {} if weights is None else {"weights": weights}
    options |= {} if space == "logit" or function is mean_value else {"space": space}
    if coverage is not None:
        answer = by_place(function, given, coverage, options)
    else:
        answer = function(given if id(function) in _OURS else stacked(given), **options)
    return _logged(answer) if returns == "log_prob" else answer


def combiner_of(combiner: str | Combiner) -> Combiner:
    """Return a combiner by its name.

    Raises:
        DataError: there is none of this name.

    Example:
        >>> combiner_of("mean_logit").__name__
        'mean_logit'
    """
    if callable(combiner):
        return combiner
    if combiner not in COMBINERS:
        raise DataError(
            f"unknown combiner '{printable(combiner)}'{did_you_mean(str(combiner), COMBINERS)}; "
            f"known: {', '.join(COMBINERS)}; or give a function"
        )
    return COMBINERS[combiner]


def check_options(combiner: Combiner, options: Iterable[str]) -> None:
    """Refuse options that a combiner does not take.

    Raises:
        PolyfuseError: the first of them.

    Example:
        >>> check_options(COMBINERS["mean_logit"], ["exclusive"])
    """
    parameters = list(inspect.signature(combiner).parameters.values())[1:]
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
        name = str(getattr(combiner, "__name__", type(combiner).__name__))
        refuse_unknown(name, options, [p.name for p in parameters if p.name not in _GIVEN])


def says_of(weights: Any, count: int, classes: int, combiner: Combiner) -> list[Any]:
    """Return the say of each view: a number, or `(class,)` numbers as a tensor.

    Args:
        weights: `(view,)` or `(view, class)`; None for equal ones.
        count: of views.
        classes: of the outputs.
        combiner: one of `MEANS`; of a product weights are exponents, used as they are.

    Raises:
        DataError: they do not fit, are negative, or none is above 0.

    Example:
        >>> says_of([1, 3], 2, 10, mean_value)
        [0.25, 0.75]
    """
    if weights is None:
        return [1.0 if combiner is product else 1 / count] * count
    numbers = plain(weights)
    if numbers.ndim != 2:
        checked = shares(numbers, count)
        return numbers.tolist() if combiner is product else checked
    if numbers.shape != (count, classes) or not np.isfinite(numbers).all() or numbers.min() < 0:
        raise DataError(
            f"weights of shape {numbers.shape} do not fit {count} views and {classes} classes: "
            "give (view,) or (view, class), finite and 0 or more"
        )
    if not numbers.sum(0).all():
        raise DataError(f"class {int(numbers.sum(0).argmin())} has no view with a weight")
    return list(torch.from_numpy(numbers))


def _mean(running: Running, outputs: Any, weights: Any, coverage: Any) -> Any:
    """Return a mean whose weights differ by class or place, or its logarithm."""
    spaces = ("logit", "prob", "log_prob", "value")
    members: Members[Any] = Members(
        outputs, space=running.space, exclusive=running.exclusive, spaces=spaces
    )
    each, classes = members.each, outputs[0].shape[-1]
    says = says_of(weights, len(each), classes, running.combiner)
    seen: Any = [None] * len(each)
    if coverage is not None:
        seen = places_of(coverage, len(each), each[0])
    for output, say, place in zip(each, says, seen, strict=True):
        running.add(output, say.to(output.device) if isinstance(say, Tensor) else say, place)
    return members.back(running.answer(members.blame))


def _as_pieces(outputs: Sequence[Any]) -> Pieces:
    """Return the outputs of each view, not stacked.

    Raises:
        DataError: none, no tensors, of different shapes.
    """
    kinds = [tuple(o.shape) if isinstance(o, Tensor) else type(o).__name__ for o in outputs]
    if len(set(kinds)) != 1 or not isinstance(outputs[0], Tensor):
        raise DataError(
            f"expected a tensor a view, all of one shape; got {printable(kinds)}: undo each view "
            "first"
        )
    return Pieces(outputs)


def _logged(answer: Any) -> Any:
    """Return the logarithm of probabilities.

    Raises:
        DataError: these are decided classes.
    """
    if "int" in str(answer.dtype):
        raise DataError("a vote decides classes, which have no logarithm; use returns='prob'")
    if isinstance(answer, Tensor):
        return answer.log()
    with np.errstate(divide="ignore"):
        return np.log(answer)
