"""What boosting makes of its members: the weighted vote of SAMME, and the weighted sum."""

from typing import Any

import torch
from torch.nn import functional

from polyfuse.combine.base import SPACES, Array, Members


def boosted_vote(
    predictions: Array, *, weights: Any = None, space: str = "logit", exclusive: bool = True
) -> Array:
    """Turn SAMME's weighted vote into probabilities (Zhu, Zou, Rosset, Hastie 2009).

    A member says 1 for its best class, of equal ones the smaller label, and -1/(K-1) for the rest;
    the probabilities are the softmax of the weighted mean over K - 1, those of scikit-learn's
    `AdaBoostClassifier`. They are flat, exp(K/(K-1)^2) apart at most, and want calibration.

    Args:
        predictions: `(member, sample, ..., class)`, floating.
        weights: `(member,)` that SAMME gave them, 0 or more; equal where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: no members, too few axes, integers, NaN, numbers that are not in this space,
            wrong weights.

    Example:
        >>> import numpy as np
        >>> z = np.array([[[5.0, 0.0]], [[5.0, 0.0]], [[0.0, 1.0]]])
        >>> boosted_vote(z, weights=[1, 1, 2]).tolist()
        [[0.5, 0.5]]
    """
    members = Members(predictions, space=space, exclusive=exclusive, weights=weights)
    decision = members.mean(map(_Coded(members), members.scores()))
    return members.answer(members.softmax(decision / (decision.shape[-1] - 1)))


def boosted_sum(
    predictions: Array, *, weights: Any = None, space: str = "logit", exclusive: bool = True
) -> Array:
    """Add the members' outputs, each times its step, then softmax: `softmax(sum_m w_m z_m)`.

    What gradient boosting ends with (Friedman 2001). The members are parts of one answer, so this
    is no mean: copies of one member give a more confident answer than the member.

    Args:
        predictions: `(member, sample, ..., class)`, floating.
        weights: `(member,)` steps, 0 or more, used as they are; 1 where None.
        space: what the numbers are: "logit", "prob" or "log_prob".
        exclusive: exactly one class is true. False: every number is a label of its own.

    Returns:
        `(sample, ..., class)` probabilities in the input's precision.

    Raises:
        DataError: as `boosted_vote`.

    Example:
        >>> import numpy as np
        >>> boosted_sum(np.array([[[1.0, 0.0]], [[3.0, 0.0]]]), weights=[1, 0.5]).round(3).tolist()
        [[0.924, 0.076]]
    """
    members = Members(
        predictions, space=space, exclusive=exclusive, weights=weights, spaces=tuple(SPACES)
    )
    total = float(len(members)) if weights is None else float(sum(map(float, weights)))
    if space == "value":
        return members.answer(members.mean(members.probabilities()) * total)
    scores = (part.to(members.wide) for part in members.scores())
    return members.answer(members.softmax(members.mean(scores) * total))


class _Coded:
    """Codes a member's best class as 1 and the others as -1/(K-1); NaN is told of."""

    def __init__(self, members: Members[Any]) -> None:
        self.members = members

    def __call__(self, scores: torch.Tensor) -> torch.Tensor:
        odd = scores.isnan() | (scores == torch.inf)
        if not torch.compiler.is_compiling() and bool(odd.any()):
            self.members.blame()
        classes = scores.shape[-1]
        hot = functional.one_hot(scores.argmax(-1), classes).to(self.members.wide)
        return hot - (1 - hot) / (classes - 1)
