"""Members of one architecture as one vmapped call over their stacked parameters.

The parameters are stacked anew at every call, so that there is nothing to go stale: whatever
changes the members, in place or not, shows in the next answer.
"""

import copy
import operator
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.parameter import is_lazy

from polyfuse.ensemble.base import Call
from polyfuse.ensemble.outputs import Select, selected

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HELD = {"_parameters", "_buffers", "_modules", *_HOOKS}
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


class Unlike(Exception):
    """The members are not one architecture; the message says why."""


class Seen:
    """Modules as they were when they were compared; every call looks, so it is done in few steps.

    Example:
        >>> net = nn.Linear(1, 1)
        >>> seen = Seen([net])
        >>> seen.changed(), bool(net.eval()) and seen.changed()
        (False, True)
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        """Note attributes, submodules, how many tensors there are, and where hooks would be."""
        self.live = [m.__dict__ for m in modules] + [m._modules for m in modules]
        self.then = [dict(live) for live in self.live]
        self.tensors = [held for m in modules for held in (m._parameters, m._buffers)]
        self.sizes = list(map(len, self.tensors))
        self.hooks = [getattr(module, name) for module in modules for name in _HOOKS]

    def changed(self) -> bool:
        """Tell whether an attribute, the mode, a submodule or a hook is another one now."""
        try:
            same = all(map(operator.eq, self.live, self.then))
        except (RuntimeError, ValueError):  # an array took the place of an attribute
            return True
        return not same or any(self.hooks) or list(map(len, self.tensors)) != self.sizes


class Vmapped:
    """One vmapped call instead of a loop over members.

    Args:
        members: of one class, with the same names, shapes, dtypes, devices, attributes and mode.
        select: of their outputs.

    Raises:
        Unlike: they differ, or vmap could not answer as the loop does.
    """

    def __init__(self, members: Sequence[nn.Module], select: Sequence[Select]) -> None:
        """Compare the members, and note what each tensor is called."""
        if len({id(one) if callable(one) else one for one in select}) > 1:
            raise Unlike("members have different select=")
        self.select = select[0]
        self.seen = Seen([module for member in members for module in member.modules()])
        _check_alike(members)
        self.slots = _slots(members)
        self.shared = [all(t is row[0] for t in row) for row in map(_read, self.slots.values())]
        if all(self.shared):
            raise Unlike("members share all parameters, or have none")
        try:
            self.base = copy.deepcopy(members[0]).to("meta")
        except Exception as error:  # a user's module may raise anything
            raise Unlike(f"a member cannot be copied: {error}") from error
        self.kept: list[Tensor] = []
        self.lock = threading.Lock()  # a call borrows self.base and self.kept

    def changed(self) -> bool:
        """Tell whether the members have to be compared again."""
        return self.seen.changed()

    def __call__(self, call: Call, randomness: str = "error") -> Tensor:
        """Return all members' logits, `(member, n, ..., classes)`.

        Raises:
            Unlike: an output is no tensor, or a member changes its buffers.
            Exception: whatever torch says it cannot vmap.
        """
        with self.lock:
            tensors = self._stacked()
            state = dict(zip(self.slots, tensors, strict=True))
            dims = {n: None if same else 0 for n, same in zip(self.slots, self.shared, strict=True)}

            def one(state: dict[str, Tensor]) -> Tensor:
                given = list(state.values())
                output = selected(functional_call(self.base, state, *call), self.select)
                if isinstance(output, str):
                    raise Unlike(f"a member {output}")
                if any(now is not was for now, was in zip(state.values(), given, strict=True)):
                    raise Unlike("a member replaces its buffers")
                return output

            copies = [t for t, same in zip(tensors, self.shared, strict=True) if not same]
            before = [made._version for made in copies]
            answer: Tensor = vmap(one, in_dims=(dims,), randomness=randomness)(state)
            if before != [made._version for made in copies]:
                raise Unlike("a member writes into its buffers")
            return answer

    def _stacked(self) -> list[Tensor]:
        """Return one tensor a slot: stacked, or the shared one."""
        rows = list(map(_read, self.slots.values()))
        if torch.is_grad_enabled():  # gradients flow back to the members
            pairs = zip(rows, self.shared, strict=True)
            return [row[0] if same else torch.stack(row) for row, same in pairs]
        if not self._fits(rows):
            with torch.inference_mode(False):
                self.kept = [row[0].new_empty((len(row), *row[0].shape)) for row in rows]
        for row, same, kept in zip(rows, self.shared, self.kept, strict=True):
            if not same:
                torch.stack(row, out=kept)
        pairs_kept = zip(rows, self.shared, self.kept, strict=True)
        return [row[0] if same else kept for row, same, kept in pairs_kept]

    def _fits(self, rows: Sequence[Sequence[Tensor]]) -> bool:
        """Tell whether the memory kept from the last call suits these tensors."""
        return len(self.kept) == len(rows) and all(
            kept.shape[1:] == row[0].shape
            and kept.dtype == row[0].dtype
            and kept.device == row[0].device
            for kept, row in zip(self.kept, rows, strict=True)
        )


Slot = tuple[dict[str, Any], str]


def _slots(members: Sequence[nn.Module]) -> dict[str, list[Slot]]:
    """Return where each named tensor of every member is kept."""
    slots: dict[str, list[Slot]] = {}
    for member in members:
        for prefix, module in member.named_modules(remove_duplicate=False):
            for held in (module._parameters, module._buffers):
                for name, tensor in held.items():
                    if tensor is not None:
                        path = f"{prefix}.{name}" if prefix else name
                        slots.setdefault(path, []).append((held, name))
    return slots


def _read(slots: Sequence[Slot]) -> list[Tensor]:
    return [held[name] for held, name in slots]


def _hooked(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in _HOOKS)


def _check_alike(members: Sequence[nn.Module]) -> None:
    """Refuse members whose code or tensors are not the same.

    Raises:
        Unlike: naming the first difference of each member.
    """
    first = list(members[0].named_modules(remove_duplicate=False))
    for number, member in enumerate(members):
        there = list(member.named_modules(remove_duplicate=False))
        if [path for path, _ in there] != [path for path, _ in first]:
            raise Unlike(f"member {number} has other submodules than member 0")
        for (path, module), (_, model) in zip(there, first, strict=True):
            fault = _fault(module, model)
            if fault:
                raise Unlike(f"member {number}{'.' * bool(path)}{path} {fault}")


def _fault(module: nn.Module, model: nn.Module) -> str:
    """Say why one module's forward may not stand for the other's; nothing if it may."""
    if type(module) is not type(model):
        return f"is a {type(module).__name__}, member 0's a {type(model).__name__}"
    if isinstance(module, torch.jit.ScriptModule):
        return "is a ScriptModule"
    if _hooked(module):
        return "has hooks"
    if module.training and any(buffer is not None for buffer in module._buffers.values()):
        return "updates its buffers while training; call .eval()"
    for name in ("_parameters", "_buffers"):
        if list(_kinds(getattr(module, name))) != list(_kinds(getattr(model, name))):
            return "has tensors of other names, shapes, dtypes or devices than member 0's"
    mine, its = module.__dict__, model.__dict__
    odd = [n for n in mine.keys() | its.keys() if n not in _HELD and not _same(n, mine, its)]
    return f"has another {', '.join(sorted(odd))} than member 0's" if odd else ""


def _kinds(tensors: dict[str, Tensor | None]) -> Iterator[tuple[Any, ...]]:
    for name, tensor in tensors.items():
        if tensor is None or is_lazy(tensor):
            yield name, tensor  # a lazy one is like no other
        else:
            yield name, type(tensor), tensor.shape, tensor.dtype, tensor.device


def _same(name: str, mine: dict[str, Any], its: dict[str, Any]) -> bool:
    return name in mine and name in its and _equal(mine[name], its[name])


def _equal(one: Any, other: Any) -> bool:
    """Tell whether two attributes surely mean the same."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[k], other[k]) for k in one)
    if isinstance(one, set | frozenset):
        return bool(one == other) and all(isinstance(item, _PLAIN) for item in one)
    return isinstance(one, _PLAIN) and bool(one == other)
