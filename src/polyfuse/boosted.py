"""Fusions of boosting, called with the weights that its members have in their records."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from polyfuse.combine import BOOSTED_COMBINERS
from polyfuse.errors import DataError, printable
from polyfuse.members import Member

Fusion = Callable[..., Any]
_SHOWN = 5  # members that are named


def takes_weights(fusion: Fusion) -> bool:
    """Tell whether a fusion is one of `BOOSTED_COMBINERS`, without weights of its own.

    Example:
        >>> from polyfuse.combine import boosted_sum
        >>> takes_weights(boosted_sum), takes_weights(partial(boosted_sum, weights=[1, 2]))
        (True, False)
    """
    while isinstance(fusion, partial):
        if "weights" in fusion.keywords:
            return False
        fusion = fusion.func
    return fusion in BOOSTED_COMBINERS.values()


def boosted(
    name: str, fusion: Fusion, members: Sequence[Member]
) -> tuple[Fusion, tuple[Member, ...]]:
    """Return a fusion as it is to be called, and the members that it is to be called with.

    Args:
        name: of the fusion, for the error.
        fusion: any; those that take weights get those of the members' records.
        members: that fusions are made of. Those that were added to a population are no part of its
            boosting.

    Raises:
        DataError: the fusion takes weights, and members have none.

    Example:
        >>> boosted("mean_logit", max, ())
        (<built-in function max>, ())
    """
    if not takes_weights(fusion):
        return fusion, tuple(members)
    own = tuple(member for member in members if not member.added)
    lacking = [member.name for member in own if "weight" not in member.record]
    if lacking or not own:
        more = f" and {len(lacking) - _SHOWN} more" if len(lacking) > _SHOWN else ""
        who = printable(", ".join(lacking[:_SHOWN])) + more
        raise DataError(
            f"{printable(name)} takes the weights that boosting gives to its members, and "
            f"{who or 'members that were added'} have none: train by samme, gradient_boosting or "
            f"soft_boosting, bring weights=[...], one a member, or leave {printable(name)} out"
        )
    return partial(fusion, weights=[member.record["weight"] for member in own]), own
