"""The members as modules: functions wrapped, and everything else refused at once."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from polyfuse.ensemble.base import name_of
from polyfuse.errors import DataError, printable


class Function(nn.Module):
    """A plain function as a member; of a module's own method, the module comes along.

    Example:
        >>> Function(max)(1, 2)
        2
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Keep the function."""
        super().__init__()
        owner = getattr(function, "__self__", None)
        self.owner = owner if isinstance(owner, nn.Module) else None
        self.name = str(getattr(function, "__name__", type(function).__name__))
        self.function = None if self.owner is not None else function

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        """Return what the function returns."""
        function = self.function or getattr(self.owner, self.name)
        return function(*inputs, **keywords)

    def extra_repr(self) -> str:
        """Return the function's name."""
        return self.name


def modules_of(members: Any) -> list[nn.Module]:
    """Return the members as modules.

    Raises:
        DataError: none, or what is neither a module nor a function, all of them at once.

    Example:
        >>> modules_of([nn.Linear(1, 2), max])
        [Linear(in_features=1, out_features=2, bias=True), Function(max)]
    """
    if not isinstance(members, Iterable) or isinstance(members, str):
        raise DataError(f"members is one {type(members).__name__}; give a list: [model, ...]")
    each = list(members)
    wrong = [f"member {i} is {printable(repr(m), 60)}" for i, m in enumerate(each) if not _runs(m)]
    if wrong:
        raise DataError(
            f"{'; '.join(wrong)}; members are modules or functions: build the models and load "
            "their weights first"
        )
    if not each:
        raise DataError("an ensemble needs at least one member; got none")
    return [one if isinstance(one, nn.Module) else Function(one) for one in each]


def check_places(members: Iterable[nn.Module]) -> None:
    """Refuse members of several dtypes or devices.

    Raises:
        DataError: each member's.
    """
    said = [(name_of(i, m), " and ".join(sorted(_places(m)))) for i, m in enumerate(members)]
    held = {place for _, place in said if place}
    if len(held) > 1:
        listed = "; ".join(f"{name} is {place}" for name, place in said if place)
        raise DataError(
            f"members differ in dtype or device: {listed}. Move and cast the whole ensemble: "
            ".to(device, dtype)"
        )


def _runs(member: Any) -> bool:
    return callable(member) and not isinstance(member, type)


def _places(member: nn.Module) -> set[str]:
    """Return dtype and device of a member's floating parameters."""
    return {
        f"{str(p.dtype).removeprefix('torch.')} on {p.device}"
        for p in member.parameters()
        if p.is_floating_point()
    }
