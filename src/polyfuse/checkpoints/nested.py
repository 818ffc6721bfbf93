"""Which of the dicts in a saved training state is the state dict, and what else is told there."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from polyfuse.checkpoints.pickles import Global, Opaque
from polyfuse.checkpoints.torch_zip import TensorRecord, Unreadable
from polyfuse.dtypes import is_tensor
from polyfuse.errors import CheckpointError, did_you_mean, printable

# Of several, the first of these is taken; otherwise the only one there is. Never an EMA.
ORDER = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "weights",
    "params",
)
_EMA = re.compile(r"(^|[._])(ema|shadow)([._]|$)", re.IGNORECASE)
_OPTIMIZER = re.compile(r"optim|sched|scaler", re.IGNORECASE)
_METRICS = re.compile(r"metric|score|result|eval|valid|best|loss|acc|extra_state", re.IGNORECASE)
_STEPS = ("global_step", "step", "iteration", "iter", "num_updates")
_DEPTH, _DICTS, _SHOWN = 6, 10_000, 20

InTensor = Callable[[Any], float | int | None]


class Choice(NamedTuple):
    """The state dict that was chosen.

    Attributes:
        key: of it, dotted; empty where it is the whole file.
        state: the dict.
        keys: of all there were to choose from, with how many tensors each has.
    """

    key: str
    state: Mapping[Any, Any]
    keys: dict[str, int]


def holds_tensor(value: Any) -> bool:
    """Tell whether it is a tensor: one that a file states, or one that torch has loaded.

    Example:
        >>> holds_tensor(3.0)
        False
    """
    stated = isinstance(value, TensorRecord | Unreadable)
    return stated or is_tensor(value)


def choose(shown: str, tree: Any, key: str | None, index: int | None) -> Choice:
    """Find the state dict in what was saved.

    Args:
        shown: name of the file, printable.
        tree: what was saved.
        key: of the state dict, dotted; the first of `ORDER`, or the only one, where not given.
        index: which one, where several were saved as a list.

    Raises:
        CheckpointError: no state dict, none of that name or number, or several and no choice.

    Example:
        >>> import torch
        >>> saved = {"epoch": 3, "state_dict": {"w": torch.ones(2)}}
        >>> choose("a.pt", saved, None, None).key
        'state_dict'
    """
    if isinstance(tree, list | tuple) and not holds_tensor(tree):
        tree, index = _item(shown, tree, index), None
    found = dict(_dicts(tree))
    # A lone loss or accuracy may be a tensor too, but makes no state dict.
    real = {p: node for p, node in found.items() if p in ORDER or not _only_numbers(node)}
    dicts = real or found
    keys = {path: _count(found) for path, found in dicts.items()}
    if not dicts:
        raise CheckpointError(f"'{shown}' holds no state dict: {_instead(shown, tree)}")
    path = _default(shown, keys) if key is None else _asked(shown, keys, key)
    state = dicts[path]
    if isinstance(state, Mapping):
        if index is not None:
            where = f"'{printable(path)}' in '{shown}'" if path else f"'{shown}'"
            raise CheckpointError(f"{where} is one state dict, no list; leave [{index}] away")
        return Choice(path, state, keys)
    return Choice(path, _item(shown, state, index), keys)


def _item(shown: str, items: Sequence[Any], index: int | None) -> Any:
    """Return one of several state dicts."""
    if index is not None and 0 <= index < len(items):
        return items[index]
    last = len(items) - 1
    names = f"'{shown}[0]' to '{shown}[{last}]'" if last > 0 else f"'{shown}[0]'"
    fact = "holds an empty list" if last < 0 else f"holds a list; name one of it: {names}"
    raise CheckpointError(f"'{shown}' {fact}")


def _dicts(tree: Any) -> Iterator[tuple[str, Any]]:
    """Yield the dicts that hold tensors, and lists of such, that are reached by text keys."""
    level, entered, counts = [("", tree)], set[int](), dict[int, int]()
    for _ in range(_DEPTH):
        below: list[tuple[str, Any]] = []
        for path, node in level[:_DICTS]:
            if id(node) not in counts:
                counts[id(node)] = _count(node)
            if counts[id(node)]:
                yield path, node
            if isinstance(node, dict) and id(node) not in entered:  # it may be inside of itself
                entered.add(id(node))
                below += _children(path, node)
        level = below


def _children(path: str, node: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, child in node.items():
        nests = isinstance(child, dict | list | tuple) and not holds_tensor(child)
        if nests and isinstance(name, str) and not _OPTIMIZER.search(name):
            yield f"{path}.{name}" if path else name, child


def _count(node: Any) -> int:
    """Return how many tensors a dict holds by name, or how many such dicts a list holds."""
    if isinstance(node, dict):
        return sum(holds_tensor(v) and isinstance(k, str) for k, v in node.items())
    if isinstance(node, list | tuple) and not holds_tensor(node):
        return sum(isinstance(item, dict) and _count(item) > 0 for item in node)
    return 0


def _default(shown: str, keys: Mapping[str, int]) -> str:
    """Return the state dict to take where none was asked for."""
    plain = [path for path in keys if not _EMA.search(path)]
    named = [path for path in ORDER if path in plain]
    if named or len(plain) == 1:
        return (named or plain)[0]
    what = "several state dicts" if plain else "only an average (EMA)"
    raise CheckpointError(f"'{shown}' holds {what}; choose with --key: {_listed(keys)}")


def _only_numbers(found: Any) -> bool:
    if not isinstance(found, dict):
        return False
    tensors = [value for value in found.values() if holds_tensor(value)]
    return all(getattr(value, "shape", None) in ((), (1,)) for value in tensors)


def _asked(shown: str, keys: Mapping[str, int], key: str) -> str:
    """Return the state dict of this key, or the one below it."""
    if key in keys:
        return key
    below = {path[len(key) + 1 :]: n for path, n in keys.items() if path.startswith(f"{key}.")}
    if below:
        return f"{key}.{_default(shown, below)}"
    near = did_you_mean(key, list(keys)[:1000])
    raise CheckpointError(
        f"'{shown}' holds no state dict '{printable(key)}'{near}; it holds {_listed(keys)}"
    )


def _listed(keys: Mapping[str, int]) -> str:
    parts = [
        f"'{printable(path)}' ({n:,})" if path else f"the file itself ({n:,})"
        for path, n in list(keys.items())[:_SHOWN]
    ]
    more = len(keys) - len(parts)
    return ", ".join(parts) + (f" and {more:,} more" if more > 0 else "")


def _instead(shown: str, tree: Any) -> str:
    """Say what was saved that is no state dict, and what to do."""
    modules = [name for name, value in _items(tree) if _is_module(value)]
    if modules:
        key = f"['{modules[0]}']" if modules[0] else ""
        return (
            f"a whole nn.Module was pickled{f' under {modules}' if key else ''}, and loading one "
            "runs code of its file; where you trust it, type: torch.save(torch.load("
            f"'{shown}', weights_only=False){key}.state_dict(), 'weights.pt')"
        )
    if holds_tensor(tree):
        return "it is one tensor; save it with a name: torch.save({'weight': tensor}, 'weights.pt')"
    inside = ", ".join(f"'{printable(name)}' ({kind(value)})" for name, value in _items(tree))
    return f"{inside or kind(tree)}; save one with torch.save(model.state_dict(), 'weights.pt')"


def _items(tree: Any) -> list[tuple[str, Any]]:
    if not isinstance(tree, dict):
        return [("", tree)] if isinstance(tree, Opaque) else []
    return [(printable(name), value) for name, value in list(tree.items())[:_SHOWN]]


def _is_module(value: Any) -> bool:
    return isinstance(value, Opaque) and "_modules" in value.attributes


def kind(value: Any) -> str:
    """Return what a value is, in words.

    Example:
        >>> kind([1, 2]), kind(0.5), kind(None)
        ('list of 2', 'float', 'None')
    """
    if isinstance(value, Unreadable):
        return f"{value.kind} tensor"
    if holds_tensor(value) and not isinstance(value, Unreadable):
        return "tensor"
    if isinstance(value, Opaque):
        return printable(value.made_by)
    if isinstance(value, Global):
        return printable(value)
    if isinstance(value, dict | list | tuple | set):
        return f"{'dict' if isinstance(value, dict) else type(value).__name__} of {len(value):,}"
    return "None" if value is None else type(value).__name__


def facts(tree: Any, choice: Choice, in_tensor: InTensor) -> dict[str, Any]:
    """Return what a training state tells beside its weights, as plain data.

    Args:
        tree: what was saved.
        choice: the state dict in it.
        in_tensor: returns the number in a tensor of one element, else None.

    Returns:
        `key`, `keys`; `ema`: the keys that hold averages; `epoch` and `step`, where there are;
        `metrics`: numbers by name; `other`: the other values at the top, and what they are;
        `ignored`: the values in the state dict that are no tensors, and what they are.

    Example:
        >>> import torch
        >>> saved = {"epoch": 3, "best": 0.5, "model": {"w": torch.ones(2), "n": 1}}
        >>> found = facts(saved, choose("a.pt", saved, None, None), lambda tensor: None)
        >>> found["epoch"], found["metrics"], found["ignored"]
        (3, {'best': 0.5}, {'n': 'int'})
    """
    top = tree if isinstance(tree, dict) and tree is not choice.state else {}
    found: dict[str, Any] = {"key": choice.key, "keys": choice.keys}
    found["ema"] = [path for path in choice.keys if _EMA.search(path)]
    numbers = _numbers(top or _without_tensors(tree), in_tensor)
    for fact, names in (("epoch", ("epoch",)), ("step", _STEPS)):
        values = [numbers.pop(name) for name in names if name in numbers]
        found |= {fact: values[0]} if values else {}
    found["metrics"] = _metrics(top, in_tensor) | numbers
    chosen = choice.key.partition(".")[0]
    found["other"] = {str(name): kind(value) for name, value in top.items() if name != chosen}
    found["ignored"] = {
        str(name): kind(value)
        for name, value in choice.state.items()
        if not holds_tensor(value) or not isinstance(name, str)
    }
    return found


def _without_tensors(tree: Any) -> dict[Any, Any]:
    """Return the rest of a state dict: its tensors of one element are weights, not metrics."""
    items = tree.items() if isinstance(tree, dict) else ()
    return {name: value for name, value in items if not holds_tensor(value)}


def _numbers(found: Any, in_tensor: InTensor) -> dict[str, float | int]:
    """Return the finite numbers in a dict."""
    items = list(found.items())[:1000] if isinstance(found, dict) else []
    values = {name: _number(value, in_tensor) for name, value in items if isinstance(name, str)}
    return {name: value for name, value in values.items() if value is not None}


def _number(value: Any, in_tensor: InTensor) -> float | int | None:
    """Return a finite number that JSON can hold; None for anything else."""
    if holds_tensor(value):
        value = in_tensor(value)
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return value if plain and abs(value) < 1 << 63 else None


def _metrics(top: Mapping[Any, Any], in_tensor: InTensor) -> dict[str, float | int]:
    """Return the numbers in dicts at the top that are named like metrics, and by Lightning."""
    found: dict[str, float | int] = {}
    for name, value in top.items():
        if isinstance(name, str) and isinstance(value, dict) and _METRICS.search(name):
            found |= _numbers(value, in_tensor)
    callbacks = top.get("callbacks")
    for state in callbacks.values() if isinstance(callbacks, dict) else ():
        if isinstance(state, dict) and "best_model_score" in state:
            score = _numbers(state, in_tensor)
            found |= {key: score[key] for key in ("best_model_score",) if key in score}
            if "current_score" in score and isinstance(state.get("monitor"), str):
                found[state["monitor"]] = score["current_score"]
    return found
