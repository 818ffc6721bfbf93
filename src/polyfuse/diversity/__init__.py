"""How members differ: pairwise measures, ambiguity decompositions, effective number of members.

Members' predictions are `(member, sample, ..., class)` scores or `(member, sample, ...)` integer
classes; positions of heads are cases of their own. Pairwise measures return a `(member, member)`
float64 matrix, NaN where a measure is undefined; `mean_pairwise` sums it up in one number.
`DIVERSITY` lists those measures. Most follow the survey of Kuncheva and Whitaker (2003), where N11
of a pair is the share of samples that both get right, N10 that only the first does, and so on.
"""

from collections.abc import Callable

from polyfuse.diversity.ambiguity import (
    Ambiguity,
    cross_entropy_ambiguity,
    effective_members,
    squared_ambiguity,
)
from polyfuse.diversity.base import Floats
from polyfuse.diversity.pairwise import (
    disagreement,
    double_fault,
    error_correlation,
    kappa,
    mean_pairwise,
    mutual_information,
    q_statistic,
)

__all__ = [
    "DIVERSITY",
    "Ambiguity",
    "cross_entropy_ambiguity",
    "disagreement",
    "double_fault",
    "effective_members",
    "error_correlation",
    "kappa",
    "mean_pairwise",
    "mutual_information",
    "q_statistic",
    "squared_ambiguity",
]

DIVERSITY: dict[str, Callable[..., Floats]] = {
    "disagreement": disagreement,
    "q_statistic": q_statistic,
    "kappa": kappa,
    "double_fault": double_fault,
    "error_correlation": error_correlation,
    "mutual_information": mutual_information,
}
