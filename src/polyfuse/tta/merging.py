"""Merge what the views say into one answer: any combiner, logarithms added as logarithms."""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyfuse.combine import (
    COMBINERS,
    geometric_mean,
    mean_logit,
    mean_probability,
    mean_value,
    product,
)
from polyfuse.combine.base import Array, Members, Pieces, as_tensor, shares
from polyfuse.errors import DataError, did_you_mean, printable, refuse_unknown
from polyfuse.parameters import one_of

Combiner = Callable[..., Any]

RETURNS = ("prob", "log_prob")
_BARE = (
    "{} places are in no view with a weight; add the identity, or crops that cover the whole image"
)
_OURS = ("weights", "space")  # given by other parameters
_LOGS = {id(mean_probability), id(mean_logit), id(geometric_mean), id(product)}
_KNOWN = {id(function) for function in COMBINERS.values()}
_MEANS = {*_LOGS, id(mean_value)} - {id(product)}


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
    if isinstance(outputs, list | tuple):
        outputs = _as_pieces(outputs)
    one_of("returns", returns, RETURNS)
    if coverage is not None and space in ("prob", "log_prob"):
        outputs = _filled(outputs, coverage, space)
    per_class = weights is not None and np.ndim(_plain(weights)) == 2
    logs = returns == "log_prob" and id(function) in _LOGS
    own = per_class or coverage is not None or logs or function is mean_value
    if own and id(function) in _LOGS | _MEANS:
        return _mean(function, outputs, weights, space, returns, coverage, options)
    if per_class:
        raise DataError(
            "weights a view and class are for means over classes: mean_probability, mean_logit, "
            f"geometric_mean; got {printable(combiner)}"
        )
    if weights is not None:
        options = {**options, "weights": weights}
    if space != "logit":
        options = {**options, "space": space}
    if coverage is not None:
        answer = _by_pattern(function, outputs, coverage, options)
    else:
        ours = id(function) in _KNOWN
        answer = function(outputs if ours else _stacked(outputs), **options)
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
        >>> check_options(mean_logit, ["exclusive"])
    """
    parameters = list(inspect.signature(combiner).parameters.values())[1:]
    if all(parameter.kind is not parameter.VAR_KEYWORD for parameter in parameters):
        name = str(getattr(combiner, "__name__", type(combiner).__name__))
        refuse_unknown(name, options, [p.name for p in parameters if p.name not in _OURS])


def _mean(
    function: Combiner,
    outputs: Array,
    weights: Any,
    space: str,
    returns: str,
    coverage: Any,
    options: dict[str, Any],
) -> Array:
    """Return a mean whose weights differ by class or place, or its logarithm."""
    values = function is mean_value
    exclusive = options.pop("exclusive", True)
    space = "value" if values else space
    spaces = ("logit", "prob", "log_prob", "value")
    members: Members[Array] = Members(outputs, space=space, exclusive=exclusive, spaces=spaces)
    check_options(function, options)
    if function is mean_logit:
        parts = [scores.to(members.wide) for scores in members.scores()]
    else:
        parts = list(members.probabilities() if values else members.logs())
    says = _says(parts, weights, coverage, own=function is product, pairs=not members.exclusive)
    if values:
        return _finite(members, _sum(parts, says))
    if function is mean_probability:
        logs = [part + say.log() for part, say in zip(parts, says, strict=True)]
        total = torch.stack(logs).logsumexp(0)
    else:
        total = _sum(parts, says)
    result = total.log_softmax(-1)
    return members.answer(result if returns == "log_prob" else result.exp())


def _finite(members: Members[Array], result: Tensor) -> Array:
    """Return a mean of numbers.

    Raises:
        DataError: there is NaN or infinity; the message says where.
    """
    if not torch.compiler.is_compiling() and not bool(result.isfinite().all()):
        members.blame()
    return members.answer(result)


def _sum(parts: list[Tensor], says: list[Tensor]) -> Tensor:
    """Return the weighted sum; without a say there is not even 0 times infinity."""
    total = torch.zeros_like(parts[0])
    for part, say in zip(parts, says, strict=True):
        total += torch.where(say > 0, part, 0) * say
    return total


def _says(
    parts: list[Tensor], weights: Any, coverage: Any, *, own: bool, pairs: bool
) -> list[Tensor]:
    """Return each view's share of the say, to be multiplied with its outputs.

    Args:
        parts: `(n, ..., class)` each, or `(n, ..., label, 2)` with `pairs`.
        weights: as of `merge_views`.
        coverage: as of `merge_views`.
        own: weights are used as they are, not as shares.
        pairs: labels do not exclude each other; each is a pair (no, yes).
    """
    count, like = len(parts), parts[0][..., 0] if pairs else parts[0]
    numbers = np.ones(count) if weights is None else np.asarray(_plain(weights), np.float64)
    if numbers.ndim == 2:
        _check_classes(numbers, count, like.shape[-1])
    elif not own:
        numbers = np.asarray(shares(numbers, count))
    says = [torch.as_tensor(each).to(like) for each in numbers]
    says = _with_coverage(says, coverage, like, own=own)
    return [say[..., None] for say in says] if pairs else says


def _with_coverage(says: list[Tensor], coverage: Any, like: Tensor, *, own: bool) -> list[Tensor]:
    """Multiply with the coverage; divide by the sum over views, unless they are used as they are.

    Raises:
        DataError: a place in no view with a weight.
    """
    if coverage is not None:
        places = _places(coverage, len(says), like)
        says = [say * place for say, place in zip(says, places, strict=True)]
    if own:
        return says
    total = torch.stack(says).sum(0)
    if not bool((total > 0).all()):
        bare = (~(total > 0)).reshape(-1, total.shape[-1]).any(-1)
        raise DataError(_BARE.format(int(bare.sum())))
    return [say / total for say in says]


def _places(coverage: Any, count: int, like: Tensor) -> Tensor:
    """Return the coverage `(view, n or 1, ..., 1)` as a tensor beside the outputs."""
    places = as_tensor(coverage).to(like)
    fits = places.ndim == like.ndim and len(places) == count
    if not fits or not bool((places >= 0).all()):
        raise DataError(
            f"coverage {tuple(places.shape)} does not fit {count} outputs of shape "
            f"{tuple(like.shape)}: give (view, n or 1, ...), without the class axis, 0 or more"
        )
    return places[..., None]


def _check_classes(numbers: Any, count: int, classes: int) -> None:
    if numbers.shape != (count, classes) or not np.isfinite(numbers).all() or numbers.min() < 0:
        raise DataError(
            f"weights of shape {numbers.shape} do not fit {count} views and {classes} classes: "
            "give (view,) or (view, class), finite and 0 or more"
        )
    if not numbers.sum(0).all():
        raise DataError(f"class {int(numbers.sum(0).argmin())} has no view with a weight")


def _by_pattern(function: Combiner, outputs: Array, coverage: Any, options: Any) -> Array:
    """Combine the places that the same views cover, set by set.

    Raises:
        DataError: a place in no view.
    """
    tensor, weights = as_tensor(_stacked(outputs)), options.pop("weights", None)
    seen = _places(coverage, len(tensor), tensor[0])[..., 0] > 0
    kinds, sets = _patterns(seen.reshape(len(seen), -1))
    kinds = kinds.view(seen.shape[1:]).expand(tensor.shape[1:-1]).flatten()
    flat = tensor.reshape(len(tensor), -1, tensor.shape[-1])
    answer: Any = None
    for kind, views in enumerate(sets):
        here = (kinds == kind).nonzero()[:, 0]
        if not len(views):
            raise DataError(_BARE.format(len(here)))
        if weights is not None:
            options = {**options, "weights": np.asarray(_plain(weights))[views.cpu().numpy()]}
        part = function(flat[views][:, here], **options)
        if answer is None:
            answer = part.new_empty((flat.shape[1], *part.shape[1:]))
        answer[here] = part
    shaped = answer.reshape(*tensor.shape[1:-1], *answer.shape[1:])
    result: Array = shaped.numpy() if isinstance(outputs, np.ndarray) else shaped
    return result


def _filled(outputs: Any, coverage: Any, space: str) -> Any:
    """Return outputs that say nothing of what their view does not see: all classes alike."""
    alike = 1 / outputs[0].shape[-1]
    alike = math.log(alike) if space == "log_prob" else alike
    if isinstance(outputs, Pieces):
        seen = _places(coverage, len(outputs), outputs[0]) > 0
        return Pieces(torch.where(s, part, alike) for s, part in zip(seen, outputs, strict=True))
    tensor = as_tensor(outputs)
    filled = torch.where(_places(coverage, len(tensor), tensor[0]) > 0, tensor, alike)
    return filled.numpy() if isinstance(outputs, np.ndarray) else filled


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


def _stacked(outputs: Any) -> Any:
    return torch.stack(list(outputs)) if isinstance(outputs, Pieces) else outputs


def _patterns(seen: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return which set of views sees each place `(place,)`, and these sets."""
    kinds = torch.zeros(seen.shape[1], dtype=torch.int64, device=seen.device)
    for view in seen:  # at most twice as many kinds as before, numbered anew
        kinds = torch.unique(2 * kinds + view, return_inverse=True)[1]
    count = int(kinds.max()) + 1
    first = torch.stack([(kinds == kind).nonzero()[0, 0] for kind in range(count)])
    return kinds, [seen[:, place].nonzero()[:, 0] for place in first]


def _logged(answer: Any) -> Any:
    """Return the logarithm of probabilities.

    Raises:
        DataError: these are decided classes.
    """
    floating = (
        answer.is_floating_point() if isinstance(answer, Tensor) else answer.dtype.kind == "f"
    )
    if not floating:
        raise DataError("a vote decides classes, which have no logarithm; use returns='prob'")
    if isinstance(answer, Tensor):
        return answer.log()
    with np.errstate(divide="ignore"):
        return np.log(answer)


def _plain(weights: Any) -> Any:
    return weights.detach().cpu().numpy() if isinstance(weights, Tensor) else weights
