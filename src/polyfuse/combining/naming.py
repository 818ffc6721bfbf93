"""Names of members: what tells their files apart; and which file belongs to which member."""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from polyfuse.errors import DataError, did_you_mean, printable

_SPLITS = ("val", "valid", "validation", "test", "oof", "pred", "preds", "predictions", "new")
_JOINTS = "_-. "


def member_names(entries: Sequence[Any]) -> list[str]:
    """Return a name for each member: of files what tells them apart, of arrays their number.

    Example:
        >>> member_names(["val/cnn.npy", "val/mlp.csv"]), member_names(["a/val.npy", "b/val.npy"])
        (['cnn', 'mlp'], ['a', 'b'])
        >>> member_names([None, None])
        ['member_0', 'member_1']
    """
    if not all(isinstance(entry, str | Path) for entry in entries):
        named = [getattr(entry, "name", None) for entry in entries]
        if all(isinstance(name, str) for name in named) and len(set(named)) == len(named):
            return [str(name) for name in named]
        return [f"member_{number}" for number in range(len(entries))]
    parts = [PurePath(entry).parts for entry in entries]
    stems = [(*part[:-1], PurePath(part[-1]).stem) for part in parts]
    while len({stem[-1] for stem in stems}) == 1 < min(len(stems), *map(len, stems)):
        stems = [stem[:-1] for stem in stems]  # a/val.npy and b/val.npy
    short = ["/".join(name) for name in _without_shared(stems)]
    if len(set(short)) == len(short) and all(short):
        return short
    return [str(entry) for entry in entries]


def _without_shared(names: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Drop the leading parts that all names share."""
    shared = 0
    for parts in zip(*(name[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared += 1
    return [name[shared:] for name in names]


def bare(name: str) -> str:
    """Return a name without the split that it begins or ends with.

    Example:
        >>> bare("cnn_val"), bare("test-cnn"), bare("val")
        ('cnn', 'cnn', 'val')
    """
    for word in _SPLITS:
        for joint in _JOINTS:
            for cut in (name.removesuffix(joint + word), name.removeprefix(word + joint)):
                if cut not in (name, ""):
                    return cut
    return name


def matched(
    wanted: Sequence[str], found: Sequence[str], what: str, needed: Sequence[str] | None = None
) -> tuple[dict[str, int], list[str]]:
    """Return which of the files that were found belongs to each member, and what to say of it.

    Args:
        wanted: names of the members.
        found: names of the files.
        what: they are, for the message: "test predictions".
        needed: of the members those that may not be missing; all where None.

    Returns:
        Place in `found` by member, and notes.

    Raises:
        DataError: members that are missing, files that belong to none, or to two.

    Example:
        >>> matched(["cnn_val", "mlp_val"], ["mlp_test", "cnn_test"], "test predictions")
        ({'cnn_val': 1, 'mlp_val': 0}, [])
    """
    for key in (str, bare):
        places = {key(name): place for place, name in enumerate(found)}
        keys = {name: key(name) for name in wanted}
        known = {name: places[k] for name, k in keys.items() if k in places}
        alone = len(places) == len(found) and len(set(keys.values())) == len(keys)
        strangers = set(places) - set(keys.values())
        missing = [name for name in needed or wanted if name not in known]
        if alone and not strangers and not missing:
            return known, []
    if len(found) == len(wanted) and not {bare(n) for n in wanted} & {bare(n) for n in found}:
        return (
            {name: place for place, name in enumerate(wanted)},
            [f"The {what} are matched with the members by their order, since no name fits"],
        )
    raise DataError(_unmatched(wanted, found, what, needed or wanted))


def _unmatched(
    wanted: Sequence[str], found: Sequence[str], what: str, needed: Sequence[str]
) -> str:
    have, want = {bare(name) for name in found}, {bare(name) for name in wanted}
    missing = [name for name in needed if bare(name) not in have]
    strange = [name for name in found if bare(name) not in want]
    doubled = len(have) < len(found) or len(want) < len(wanted)
    lines = [f"the {what} lack '{printable(n)}'{did_you_mean(n, found)}" for n in missing]
    lines += [f"the {what} have '{printable(n)}', which is no member" for n in strange]
    lines += ["two names are the same but for the split"] * doubled
    fix = f"bring one file a member, named as the members are: {', '.join(map(printable, wanted))}"
    return "\n".join([*lines, fix])
