"""The arithmetic of boosting: rounds of SAMME, its decision, residuals, and the size of a step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from polyfuse.errors import TrainingError

Floats = NDArray[np.float64]
SMALLEST = 1e-5  # probability that SAMME.R takes the logarithm of
LARGEST = 100.0  # times the mean weight: the most that SAMME.R gives to one row
PERFECT = "it reads every learning row right"
_EPS = float(np.finfo(np.float64).eps)
_HALVINGS = 40


class Round(NamedTuple):
    """What a round of SAMME came to.

    Attributes:
        error: weighted share of the rows that the member has wrong.
        weight: of the member in the vote; 0 where it is to be dropped.
        weights: `(row,)` float64, of the next round, with a sum of 1.
        ended: why boosting ends here, for a person; empty where it goes on.
    """

    error: float
    weight: float
    weights: Floats
    ended: str = ""


def samme_round(
    wrong: NDArray[np.bool_],
    weights: Floats,
    *,
    classes: int,
    learning_rate: float = 1.0,
    last: bool = False,
) -> Round:
    """Return a member's weight, and the rows' weights of the round after it.

    SAMME (Zhu, Zou, Rosset, Hastie 2009, algorithm 2): with the weighted error e of K classes the
    member has the weight `a = rate (ln((1 - e) / e) + ln(K - 1))`, and the rows that it has wrong
    weigh `exp(a)` times as much. An e of 0 ends it with the weight 1; an e of `1 - 1/K` and more is
    no better than guessing, and ends it without the member. As scikit-learn's `AdaBoostClassifier`
    does it: what weighs 0 stays so, and nothing else falls below the machine epsilon.

    Args:
        wrong: `(row,)` where the member is wrong.
        weights: `(row,)` of this round, 0 or more, with a sum of 1.
        classes: K, 2 or more.
        learning_rate: above 0.
        last: no round comes after it; the rows' weights stay as they are.

    Raises:
        TrainingError: fewer than two classes, or a rate that is not above 0.

    Example:
        >>> said = samme_round(np.array([True, False, False, False]), np.full(4, 0.25), classes=2)
        >>> said.error, round(said.weight, 4), said.weights.round(4).tolist()
        (0.25, 1.0986, [0.5, 0.1667, 0.1667, 0.1667])
    """
    _check(classes, learning_rate)
    error = float(np.average(wrong, weights=weights))
    if error <= 0:
        return Round(0.0, 1.0, weights, PERFECT)
    if error >= 1 - 1 / classes:
        bound = f"not below {1 - 1 / classes:.4g}, what guessing among {classes} classes has"
        return Round(error, 0.0, weights, f"its weighted error is {error:.4g}, {bound}")
    weight = learning_rate * (np.log((1 - error) / error) + np.log(classes - 1))
    if last:
        return Round(error, float(weight), weights)
    return Round(error, float(weight), _raised(weights, weight * wrong))


def samme_r_round(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    weights: Floats,
    *,
    learning_rate: float = 1.0,
    last: bool = False,
) -> Round:
    """Return the rows' weights of the round after a member, by its probabilities.

    SAMME.R, which only the preprint of SAMME has and scikit-learn has given up: with a class coded
    as y = 1 and the others as -1/(K-1), a row's weight is multiplied by
    `exp(-rate (K-1)/K y^T ln p)`. Every member weighs 1. The exponent of a net that is all but sure
    explodes: p counts as 1e-5 at least, and no row weighs more than 100 times the mean.

    Args:
        probabilities: `(row, class)`.
        labels: `(row,)`.
        weights: `(row,)` of this round, 0 or more, with a sum of 1.
        learning_rate: above 0.
        last: no round comes after it; the rows' weights stay as they are.

    Raises:
        TrainingError: fewer than two classes, or a rate that is not above 0.

    Example:
        >>> p = np.array([[0.8, 0.2], [0.8, 0.2]])
        >>> samme_r_round(p, np.array([0, 1]), np.full(2, 0.5)).weights.round(2).tolist()
        [0.2, 0.8]
    """
    classes = probabilities.shape[-1]
    _check(classes, learning_rate)
    error = float(np.average(probabilities.argmax(-1) != labels, weights=weights))
    if error <= 0:
        return Round(0.0, 1.0, weights, PERFECT)
    if last:
        return Round(error, 1.0, weights)
    logs = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST))
    coded = np.where(np.arange(classes) == labels[:, None], 1, -1 / (classes - 1))
    exponents = -learning_rate * (classes - 1) / classes * (coded * logs).sum(-1)
    raised = np.minimum(_raised(weights, exponents), LARGEST / len(weights))
    return Round(error, 1.0, raised / raised.sum())


def samme_decision(
    decided: NDArray[np.int64], weights: NDArray[np.floating[Any]], *, classes: int
) -> Floats:
    """Return the decision function of SAMME.

    It is `sum_m a_m y_m / sum_m a_m`, where y_m is 1 at the class that member m has decided for and
    -1/(K-1) elsewhere. The combiner `boosted_vote` makes its probabilities: softmax of the decision
    over K - 1.

    Args:
        decided: `(member, sample, ...)` classes.
        weights: `(member,)`, 0 or more, not all 0.
        classes: K, 2 or more.

    Returns:
        `(sample, ..., class)` from -1/(K-1) to 1. For two classes scikit-learn's
        `decision_function` is the second column minus the first.

    Example:
        >>> samme_decision(np.array([[1], [1], [0]]), np.array([1.0, 2.0, 1.0]), classes=2).tolist()
        [[-0.5, 0.5]]
    """
    coded = np.where(np.arange(classes) == decided[..., None], 1.0, -1 / (classes - 1))
    total: Floats = np.tensordot(weights, coded, 1) / np.sum(weights)
    return total


def pseudo_residuals(loss: Callable[[Tensor], Tensor], outputs: Tensor) -> Tensor:
    """Return what would lower the loss of each sample fastest (Friedman 2001, algorithm 1).

    Args:
        loss: from outputs to the mean loss over the samples; differentiable, labels and all known.
        outputs: `(sample, ...)`; no gradient flows on from here.

    Returns:
        `(sample, ...)` minus the derivative of each sample's own loss: for cross-entropy the
        one-hot label less the probabilities.

    Raises:
        TrainingError: the loss does not depend on the outputs, or its derivative is not finite.

    Example:
        >>> from torch.nn.functional import cross_entropy
        >>> label = torch.tensor([1])
        >>> pseudo_residuals(lambda z: cross_entropy(z, label), torch.zeros(1, 4)).tolist()
        [[-0.25, 0.75, -0.25, -0.25]]
    """
    leaf = outputs.detach().requires_grad_()
    with torch.enable_grad():
        value = loss(leaf)
        if value.shape != ():
            raise TrainingError(
                f"the loss has shape {tuple(value.shape)}; return one number, the mean over the "
                "samples"
            )
        if not value.requires_grad:
            raise TrainingError(
                "the loss has no derivative by the outputs, so boosting cannot follow it; bring a "
                "loss that is made of torch's differentiable operations"
            )
        (slope,) = torch.autograd.grad(value, leaf)
    if not bool(slope.isfinite().all()):
        raise TrainingError("the derivative of the loss is NaN or infinite; lower the shrinkage")
    return -len(outputs) * slope


def line_search(
    loss: Callable[[Tensor], Tensor], outputs: Tensor, change: Tensor, *, largest: float = 10.0
) -> float:
    """Return the step along a change of the outputs that has the least loss.

    The root of the derivative, by doubling and halving: the minimum where the loss is convex along
    the line, as cross-entropy and squared error are.

    Args:
        loss: from outputs to the mean loss.
        outputs: `(sample, ...)`.
        change: of the same shape.
        largest: step, above 0, that is taken where the loss falls as far as there. Rows that are
            told apart without fault let cross-entropy fall for ever.

    Returns:
        From 0, where the loss does not fall at all, to `largest`.

    Raises:
        TrainingError: `largest` is not above 0.

    Example:
        >>> target = torch.tensor([3.0, 5.0])
        >>> squares = lambda z: (z - target).square().mean()
        >>> round(line_search(squares, torch.zeros(2), torch.tensor([1.0, 1.0])), 4)
        4.0
    """
    if not 0 < largest < np.inf:
        raise TrainingError(f"largest step {largest}; type a number above 0, such as 10")

    def slope(step: float) -> float:
        leaf = torch.tensor(step, dtype=outputs.dtype, requires_grad=True)
        with torch.enable_grad():
            (found,) = torch.autograd.grad(loss(outputs + leaf * change), leaf)
        return float(found)

    if not slope(0.0) < 0:
        return 0.0
    low, high = 0.0, min(1.0, largest)
    while slope(high) < 0:
        if high >= largest:
            return largest
        low, high = high, min(2 * high, largest)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        if high - low <= 1e-6 * high:
            break
    return low


def squared_error(outputs: Tensor, targets: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Return the squared distance to the targets, a mean over samples of sums over outputs.

    Args:
        outputs: `(sample, ...)`.
        targets: of the same shape.
        weights: `(sample,)`, of a mean of 1, or None.

    Example:
        >>> float(squared_error(torch.zeros(2, 3), torch.ones(2, 3)))
        3.0
    """
    each = (outputs - targets).square().flatten(1).sum(1)
    return (each if weights is None else each * weights).mean()


def soft_boosting_loss(
    outputs: Tensor,
    labels: Tensor,
    *,
    weights: Tensor | None = None,
    shrinkage: float = 1.0,
    detach: bool = True,
) -> Tensor:
    """Return the loss of members that boost each other while all are trained (Feng et al. 2020).

    It is `sum_m |o_m - r_m|^2`, a mean over samples, where `r_m` is the one-hot label less
    `softmax(shrinkage * sum_{j<m} o_j)`: every member fits what those before it leave.

    Args:
        outputs: `(member, sample, ..., class)`.
        labels: `(sample, ...)` classes.
        weights: `(sample,)`, of a mean of 1, or None.
        shrinkage: of each member's part in the sum.
        detach: whether targets are mere numbers. Else members also learn to leave targets that
            those after them can fit.

    Example:
        >>> out = torch.zeros(2, 1, 2)
        >>> float(soft_boosting_loss(out, torch.tensor([0])))
        1.0
    """
    before = shrinkage * (outputs.cumsum(0) - outputs)
    hot = functional.one_hot(labels, outputs.shape[-1]).to(outputs.dtype)
    targets = hot - before.softmax(-1)
    targets = targets.detach() if detach else targets
    each = (outputs - targets).square().flatten(2).sum((0, 2))
    return (each if weights is None else each * weights).mean()


def _check(classes: int, learning_rate: float) -> None:
    if classes < 2:
        raise TrainingError(f"{classes} classes; boosting needs two or more to tell apart")
    if not 0 < learning_rate < np.inf:
        raise TrainingError(f"learning_rate={learning_rate}; type a number above 0, such as 1.0")


def _raised(weights: Floats, exponents: Floats) -> Floats:
    """Return weights times `exp(exponents)` with a sum of 1; no overflow, and zeros stay zeros."""
    there = weights > 0
    logs = np.log(weights, where=there, out=np.full(len(weights), -np.inf)) + exponents
    raised = np.exp(logs - logs.max())
    raised /= raised.sum()
    floored: Floats = np.where(there, np.maximum(raised, _EPS), 0.0)
    return floored
