"""State dicts: taking nested training state apart into tensors and plain data, and back."""

from typing import Any

from torch import Tensor

from polyfuse.errors import CheckpointError, printable


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
        if isinstance(node, Tensor):
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
