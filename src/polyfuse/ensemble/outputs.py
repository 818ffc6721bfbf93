"""Logits in what members return: a tensor, a tuple, a dict, or an object of Hugging Face's kind."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polyfuse.errors import DataError, printable

Select = int | str | Callable[[Any], Any] | None


class Kind(NamedTuple):
    """What outputs have to have in common."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, output: Tensor) -> "Kind":
        """Return the kind of an output."""
        return cls(output.shape, output.dtype, output.device)

    def __str__(self) -> str:
        """Return what is to be read in a message."""
        return f"{tuple(self.shape)} {str(self.dtype).removeprefix('torch.')} on {self.device}"


def selectors(select: Any, count: int) -> list[Select]:
    """Return one choice a member.

    Raises:
        DataError: a choice of a wrong type, or another number of them than of members.

    Example:
        >>> selectors("logits", 2)
        ['logits', 'logits']
    """
    each = list(select) if isinstance(select, list | tuple) else [select] * count
    wrong = [repr(one) for one in each if not _is_select(one)]
    if wrong:
        raise DataError(
            f"select is {printable(', '.join(wrong))}; give an index (0), a key or attribute "
            "('logits'), a function of the output, or a list of these, one a member"
        )
    if len(each) != count:
        raise DataError(f"select lists {len(each)} choices for {count} members; give one each")
    return each


def selected(output: Any, select: Select) -> Tensor | str:
    """Return a member's logits, or what is wrong with its output.

    A tensor is taken as it is, but for a function, which is always asked.

    Example:
        >>> selected((torch.zeros(1), "more"), 0)
        tensor([0.])
        >>> selected((torch.zeros(1), "more"), None)
        'returned a tuple (Tensor, str)'
    """
    if isinstance(output, Tensor) and not callable(select):
        return output
    found = output
    if callable(select):
        found = select(output)
    elif select is not None:
        found = _looked_up(output, select)
    if isinstance(found, Tensor):
        return found
    chosen = "" if select is None else f", in which select={select!r} finds {_described(found)}"
    return f"returned {_described(output)}{chosen}"


def check_same(outputs: Sequence[Kind | str], names: Sequence[str]) -> None:
    """Refuse outputs that are no tensors, or of different shapes, dtypes or devices.

    Raises:
        DataError: all of them, with the members' names.
    """
    if all(output == outputs[0] for output in outputs) and isinstance(outputs[0], Kind):
        return
    if any(isinstance(output, str) for output in outputs):
        said = [f"{n} {o}" for n, o in zip(names, outputs, strict=True) if isinstance(o, str)]
        raise DataError(
            f"{'; '.join(said)}: no tensor; choose the logits with select=0 (of a tuple), "
            "select='logits' (a key or an attribute), a function, or a list of these, one a member"
        )
    said = [f"{name} {output}" for name, output in zip(names, outputs, strict=True)]
    raise DataError(
        f"the members' outputs differ: {'; '.join(said)}. All have to map the same inputs to one "
        "shape, dtype and device: choose the same part with select=, and move and cast the "
        "whole ensemble: .to(device, dtype)"
    )


def _is_select(one: Any) -> bool:
    return one is None or callable(one) or (isinstance(one, int | str) and one is not True)


def _looked_up(output: Any, select: int | str) -> Any:
    """Return the item or attribute of this name; nothing where there is none."""
    try:
        if isinstance(select, str) and not isinstance(output, Mapping):
            return getattr(output, select, None)
        return output[select]
    except (LookupError, TypeError):
        return None


def _described(value: Any) -> str:
    if value is None:
        return "nothing"
    name = type(value).__name__
    if isinstance(value, Mapping):
        return printable(f"a {name} with keys {', '.join(map(str, value))}")
    if isinstance(value, tuple | list):
        return f"a {name} ({', '.join(type(item).__name__ for item in value)})"
    return f"a {name}"
