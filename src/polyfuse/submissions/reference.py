"""Compare a submission with what it must be like: names of the columns, ids, their order."""

from collections import Counter
from collections.abc import Sequence

from polyfuse.submissions.base import Fault, Submission, shown


def reference_of(files: Sequence[Submission]) -> Submission:
    """Return the file that the others are held against: the first whose ids most of them have.

    Example:
        >>> one, two, three = (Submission(n, ("id", "x"), ids, ["1"] * len(ids))
        ...                    for n, ids in (("a", ["p"]), ("b", ["p", "q"]), ("c", ["q", "p"])))
        >>> reference_of([one, two, three]).name
        'b'
    """
    kinds = [(frozenset(one.ids), one.columns) for one in files]
    counts = Counter(kinds)
    return files[kinds.index(max(kinds, key=counts.__getitem__))]


def unlike(one: Submission, reference: Submission, *, ordered: bool = False) -> list[Fault]:
    """Return how a submission differs from another in columns and ids.

    Args:
        one: to be judged.
        reference: a sample submission, or the file that stands for all others.
        ordered: rows must come in the same order, too.

    Example:
        >>> sample = Submission("sample", ("id", "x"), ["p", "q"], ["0", "0"])
        >>> [f.kind for f in unlike(Submission("a", ("id", "y"), ["p", "p"], ["1", "2"]), sample)]
        ['columns', 'duplicate_ids', 'missing_ids']
    """
    if one is reference:
        return _twice(one)
    faults = [*_columns(one, reference), *_twice(one), *_ids(one, reference)]
    if ordered and not faults and list(one.ids) != list(reference.ids):
        pairs = zip(one.ids, reference.ids, strict=True)
        row, here, there = next((i, a, b) for i, (a, b) in enumerate(pairs, 1) if a != b)
        fact = (
            f"the rows come in another order than in {reference.name}: row {row:,} is "
            f"{shown([here])} and not {shown([there])}; sort them"
        )
        faults.append(Fault(one.name, "order", fact))
    return faults


def _columns(one: Submission, reference: Submission) -> list[Fault]:
    if one.columns == reference.columns:
        return []
    header = "; is the header missing?" if one.columns[0] in set(reference.ids) else ""
    fact = (
        f"its columns are {shown(one.columns)}, those of {reference.name} "
        f"{shown(reference.columns)}{header or '; name them so'}"
    )
    return [Fault(one.name, "columns", fact)]


def _twice(one: Submission) -> list[Fault]:
    twice = [name for name, count in Counter(one.ids).items() if count > 1]
    fact = f"ids more than once, {len(twice):,}: {shown(twice)}; keep one row each"
    return [Fault(one.name, "duplicate_ids", fact)] if twice else []


def _ids(one: Submission, reference: Submission) -> list[Fault]:
    own, wanted = set(one.ids), set(reference.ids)
    missing = [name for name in reference.ids if name not in own]
    strange = [name for name in dict.fromkeys(one.ids) if name not in wanted]
    faults = []
    if missing:
        fact = (
            f"ids of {reference.name} that it lacks, {len(missing):,}: {shown(missing)}; add them"
        )
        faults.append(Fault(one.name, "missing_ids", fact))
    if strange:
        fact = f"ids that {reference.name} lacks, {len(strange):,}: {shown(strange)}; drop them"
        faults.append(Fault(one.name, "unknown_ids", fact))
    return faults
