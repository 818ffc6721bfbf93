"""The tensors of a model by name: wrappers set aside, shared ones once, changes noticed at once."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from polyfuse.errors import CheckpointError, did_you_mean, printable

# What torch puts into names for modules that are compiled, checkpointed or sharded by FSDP1.
_WRAPPERS = ("_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
_SHOWN = 5


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DataParallel, DistributedDataParallel and `torch.compile`.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> unwrap(nn.DataParallel(model)) is model
        True
    """
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def clean(name: str) -> str:
    """Return a tensor's name without what compiled or sharded modules put into it.

    Example:
        >>> clean("encoder._orig_mod.0.weight")
        'encoder.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


class Tensors(NamedTuple):
    """What a model holds.

    Attributes:
        averaged: floating and complex parameters, and floating buffers where asked for, by their
            first name.
        followed: what is taken from the model as it is: other buffers and integer parameters.
        aliases: the first name of a tensor, by each other name that it has.
        order: all names of the model's state dict, in its order.
    """

    averaged: Mapping[str, Tensor]
    followed: Mapping[str, Tensor]
    aliases: Mapping[str, str]
    order: Sequence[str]


def tensors_of(model: nn.Module, *, use_buffers: bool = False) -> Tensors:
    """Return the tensors of an unwrapped model's state dict, by name.

    Args:
        model: unwrapped.
        use_buffers: average the floating buffers, too.

    Raises:
        CheckpointError: tensors without values: lazy ones, or on the meta device; all are named.

    Example:
        >>> found = tensors_of(nn.BatchNorm1d(2))
        >>> list(found.averaged), list(found.followed)
        (['weight', 'bias'], ['running_mean', 'running_var', 'num_batches_tracked'])
    """
    averaged: dict[str, Tensor] = {}
    followed: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    firsts: dict[int, str] = {}
    order = []
    for name, tensor in _named(model):
        order.append(name)
        first = firsts.setdefault(id(tensor), name)
        if first != name:
            aliases[name] = first
            continue
        wanted = use_buffers or isinstance(tensor, nn.Parameter)
        moves = wanted and (tensor.is_floating_point() or tensor.is_complex())
        (averaged if moves else followed)[name] = tensor
    _refuse_empty({**averaged, **followed})
    return Tensors(averaged, followed, aliases, order)


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the persistent tensors, shared ones under each name, in the state dict's order."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        own = chain(module._parameters.items(), module._buffers.items())
        for key, tensor in own:
            if tensor is not None and key not in module._non_persistent_buffers_set:
                yield clean(f"{prefix}.{key}" if prefix else key), tensor


def _refuse_empty(tensors: Mapping[str, Tensor]) -> None:
    lazy = [name for name, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise CheckpointError(
            f"the model has tensors that are not initialised: {some(lazy)}; "
            "run it once, or load weights, before averaging"
        )
    meta = [name for name, tensor in tensors.items() if tensor.is_meta]
    if meta:
        raise CheckpointError(
            f"the model has tensors on the meta device, which hold no values: {some(meta)}; "
            "materialise it first: model.to_empty(device=...), then load weights"
        )


def differences(
    expected: Mapping[str, Sequence[int]],
    found: Mapping[str, Sequence[int]],
    titles: tuple[str, str],
) -> list[str]:
    """Return how tensors differ in name or shape, a sentence each.

    Args:
        expected: shapes by name.
        found: likewise.
        titles: what to call the two in a message.

    Example:
        >>> differences({"w": [2]}, {"w": [3]}, ("the average", "the model"))
        ["'w' has shape (2,) in the average and (3,) in the model"]
    """
    faults = []
    for mine, theirs, one, other in ((expected, found, *titles), (found, expected, *titles[::-1])):
        if lacking := [name for name in mine if name not in theirs]:
            near = did_you_mean(lacking[0], theirs) if len(lacking) == 1 else ""
            faults.append(f"{other} lacks {some(lacking)}, which {one} has{near}")
    for name, shape in expected.items():
        if name in found and tuple(found[name]) != tuple(shape):
            faults.append(
                f"'{printable(name)}' has shape {tuple(shape)} in {titles[0]} "
                f"and {tuple(found[name])} in {titles[1]}"
            )
    return faults


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of tensors.

    Example:
        >>> shapes_of({"w": torch.zeros(2, 3)})
        {'w': (2, 3)}
    """
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def some(names: Sequence[str]) -> str:
    """Return names for a message, the first few of them.

    Example:
        >>> some(["a", "b"])
        "'a', 'b'"
    """
    shown = ", ".join(f"'{printable(name)}'" for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else shown


class Watch:
    """Tells in microseconds whether a model still consists of the very same tensors.

    Walking a model by name takes as long as averaging a small one. So the modules' dictionaries are
    compared with what they held, object by object, and the tensors by address, shape and strides.

    Args:
        model: unwrapped.
        tensors: those whose memory matters.
        buffers: whether buffers matter, too; some models replace theirs at each step.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> watch = Watch(model, model.parameters())
        >>> before = watch.unchanged()
        >>> model.weight.data = torch.zeros(2, 1)
        >>> before, watch.unchanged()
        (True, False)
    """

    def __init__(
        self, model: nn.Module, tensors: Iterable[Tensor], *, buffers: bool = False
    ) -> None:
        """Remember what is there."""
        homes: list[dict[str, Any]] = []
        for module in model.modules():
            homes += [module._parameters, module._modules]
            homes += [module._buffers] if buffers else []
        self._homes = [home for home in homes if home]
        self._empty = [home for home in homes if not home]
        self._keys = self._now()
        self._values = list(self._held())
        self._tensors = list(tensors)
        self._is_sharded = any(hasattr(tensor, "to_local") for tensor in self._tensors)
        self._places = [tensor.detach() for tensor in self._own()]
        self._dtypes = [tensor.dtype for tensor in self._places]

    @torch.no_grad()
    def unchanged(self) -> bool:
        """Tell whether nothing was added, taken away, replaced, moved or reshaped."""
        own = self._own()
        return (
            not any(self._empty)
            and self._now() == self._keys
            and all(map(is_, self._held(), self._values))
            and [tensor.dtype for tensor in own] == self._dtypes
            and all(map(Tensor.is_set_to, own, self._places))
        )

    def _now(self) -> list[str]:
        return list(chain.from_iterable(self._homes))

    def _held(self) -> Iterator[Any]:
        return chain.from_iterable(map(dict.values, self._homes))

    def _own(self) -> Sequence[Any]:
        if not self._is_sharded:
            return self._tensors
        return [t.to_local() if hasattr(t, "to_local") else t for t in self._tensors]


def like(tensor: Tensor, values: Tensor) -> Tensor:
    """Return local values as the kind of tensor that they are of: complex, or sharded.

    Args:
        tensor: a model's.
        values: as `local` gives them; they are shared.

    Example:
        >>> like(torch.zeros(1, dtype=torch.complex64), torch.ones(1, 2))
        tensor([1.+1.j])
    """
    if tensor.is_complex():
        values = torch.view_as_complex(values)
    if not hasattr(tensor, "to_local"):
        return values
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    return DTensor.from_local(
        values,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def reshard(model: nn.Module) -> None:
    """Let FSDP2 drop gathered parameters, which would outlive a change of the sharded ones."""
    for module in model.modules():
        if hasattr(module, "reshard") and hasattr(module, "unshard"):
            module.reshard()  # type: ignore[operator]
