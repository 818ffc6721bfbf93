"""State dicts: matching names over several of them, telling buffers, taking nested ones apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from polyfuse.dtypes import is_tensor
from polyfuse.errors import CheckpointError, did_you_mean, printable

if TYPE_CHECKING:
    from torch import Tensor

# What wrappers put before, or between, the components of a name.
PREFIXES = ("module", "_orig_mod", "model", "ema")
_ANYWHERE = ("module", "_orig_mod")
_SHOWN = 5


class Match(NamedTuple):
    """Which names of several state dicts belong together.

    Attributes:
        columns: by the first state dict's name, the name in each of them.
        faults: what does not match, a sentence each.
        notes: what was done to match them, a sentence each.
    """

    columns: Mapping[str, tuple[str, ...]]
    faults: Sequence[str]
    notes: Sequence[str]


def match_names(names: Sequence[Iterable[str]], titles: Sequence[str]) -> Match:
    """Match the names of several state dicts, with and without the prefixes of wrappers.

    Names that are equal match. Where they are not all equal, `module.`, `_orig_mod.`, `model.` and
    `ema.` in front, in any nesting, and `module.` and `_orig_mod.` anywhere are set aside, unless
    two names of one state dict would then be the same.

    Args:
        names: of each state dict.
        titles: what to call each one in a message.

    Example:
        >>> match_names([["a.w"], ["module._orig_mod.a.w"]], ["one", "two"]).columns
        {'a.w': ('a.w', 'module._orig_mod.a.w')}
    """
    lists = [list(each) for each in names]
    columns: dict[str, tuple[str, ...]] = {name: (name,) for name in lists[0]}
    faults, notes = [], []
    for title, theirs in zip(titles[1:], lists[1:], strict=True):
        pairs = _paired(lists[0], theirs)
        missing = [name for name in lists[0] if name not in pairs]
        extra = sorted(set(theirs) - set(pairs.values()))
        if missing:
            faults.append(_lacking(title, missing, theirs, f"'{printable(titles[0])}' has"))
        if extra:
            faults.append(_lacking(titles[0], extra, lists[0], f"'{printable(title)}' has"))
        if renamed := [name for name, other in pairs.items() if name != other]:
            notes.append(
                f"'{printable(title)}' names {len(renamed):,} tensors otherwise "
                f"('{printable(pairs[renamed[0]])}' is '{printable(renamed[0])}'); "
                "matched without the prefixes, the result has the first checkpoint's names"
            )
        columns = {k: (*v, pairs[k]) for k, v in columns.items() if k in pairs}
    return Match(columns, faults, notes)


def canonical(name: str) -> str:
    """Return a name without what wrappers put into it.

    Example:
        >>> canonical("module.model.encoder._orig_mod.weight")
        'encoder.weight'
    """
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in PREFIXES:
        del parts[0]
    inner = [part for part in parts[:-1] if part not in _ANYWHERE]
    return ".".join([*inner, parts[-1]])


def _paired(ours: Sequence[str], theirs: Sequence[str]) -> dict[str, str]:
    """Return, by our name, their name of the same tensor."""
    if set(ours) == set(theirs):
        return {name: name for name in ours}
    short = {canonical(name): name for name in ours}, {canonical(name): name for name in theirs}
    if len(short[0]) < len(ours) or len(short[1]) < len(theirs):
        return {name: name for name in ours if name in set(theirs)}
    return {name: short[1][c] for c, name in short[0].items() if c in short[1]}


def _lacking(title: str, names: Sequence[str], known: Sequence[str], who: str) -> str:
    shown = ", ".join(f"'{printable(name)}'" for name in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    near = did_you_mean(names[0], known[:10_000]) if len(names) == 1 else ""
    return f"'{printable(title)}' lacks {len(names):,} that {who}: {shown}{more}{near}"


def role(name: str, names: Iterable[str]) -> str:
    """Tell what a tensor is by its name: a parameter, or a statistic of batch-norm.

    Args:
        name: of the tensor.
        names: all names of its state dict, as a set or a mapping.

    Returns:
        `parameter`, `running_mean`, `running_var` or `counter`.

    Example:
        >>> role("bn.running_var", {"bn.running_mean", "bn.running_var"})
        'running_var'
        >>> role("bn.weight", {"bn.weight"}), role("bn.num_batches_tracked", {})
        ('parameter', 'counter')
    """
    layer, _, last = name.rpartition(".")
    if last == "num_batches_tracked":
        return "counter"
    pair = ("running_mean", "running_var")
    if last in pair and all(f"{layer}.{each}".lstrip(".") in names for each in pair):
        return last
    return "parameter"


def digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return a SHA-256 over names, dtypes, shapes and values; the order of names does not matter.

    Args:
        tensors: by name; any device, any strides.

    Example:
        >>> import torch
        >>> digest([("w", torch.ones(2))]) == digest([("w", torch.zeros(2))])
        False
    """
    import torch

    lines = []
    for name, tensor in tensors:
        plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        values = hashlib.sha256(plain.numpy().data).hexdigest()
        lines.append(repr((name, str(tensor.dtype), tuple(tensor.shape), values)))
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def flatten(tree: Any, prefix: str = "") -> tuple[dict[str, Tensor], Any]:
    """Take a nested state apart: tensors by path, and the rest as JSON-ready data.

    Args:
        tree: dicts (keys str or int), lists, tuples, tensors, numbers, strings, None.
        prefix: put before each path.

    Returns:
        The tensors by path, and a skeleton from which `unflatten` restores the tree.

    Raises:
        CheckpointError: a leaf of another kind.

    Example:
        >>> import torch
        >>> tensors, rest = flatten({"step": 3, "state": {0: torch.ones(2)}})
        >>> sorted(tensors), unflatten(tensors, rest)["state"][0].tolist()
        (['.state.0'], [1.0, 1.0])
    """
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if is_tensor(node):
            while path in tensors:  # {"a.b": x, "a": {"b": y}} has one path twice
                path += "'"
            tensors[path] = node
            return {"tensor": path}
        if isinstance(node, dict) and all(isinstance(key, str | int) for key in node):
            return {"dict": [[key, walk(value, f"{path}.{key}")] for key, value in node.items()]}
        if isinstance(node, list | tuple):
            kind = "list" if isinstance(node, list) else "tuple"
            return {kind: [walk(value, f"{path}.{i}") for i, value in enumerate(node)]}
        if node is None or isinstance(node, bool | int | float | str):
            return node
        raise CheckpointError(
            f"training state holds a {type(node).__name__} at '{path}', which has no safe form; "
            "use an optimiser whose state_dict() has only tensors, numbers and strings"
        )

    return tensors, walk(tree, prefix)


def unflatten(tensors: dict[str, Tensor], skeleton: Any) -> Any:
    """Restore the tree that `flatten` took apart.

    Args:
        tensors: by path.
        skeleton: as `flatten` returned it, also after a trip through JSON.

    Raises:
        CheckpointError: a skeleton that `flatten` did not make.

    Example:
        >>> unflatten({}, {"tuple": [1, None]})
        (1, None)
    """
    try:
        return _restored(tensors, skeleton)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"damaged training state ({printable(repr(error))}); delete its file and run again"
        ) from None


def _restored(tensors: dict[str, Tensor], skeleton: Any) -> Any:
    if not isinstance(skeleton, dict):
        return skeleton
    [(kind, value)] = skeleton.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "dict":
        return {key: _restored(tensors, child) for key, child in value}
    items = [_restored(tensors, child) for child in value]
    return {"list": items, "tuple": tuple(items)}[kind]
