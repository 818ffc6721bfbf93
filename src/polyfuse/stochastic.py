"""Several members out of one net at inference: Monte Carlo dropout and Monte Carlo batch-norm.

Everything is in eval mode but the layers that draw. What they draw is drawn once a member and is
the same for all rows: each member is a function, a net with some units missing, or with the
statistics of one training batch. So its answer for a row depends neither on the batch around it nor
on its size.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.batchnorm import batch_norms
from polyfuse.determinism import seeded
from polyfuse.errors import TrainingError

Dropout = nn.modules.dropout._DropoutNd


def dropouts(model: nn.Module) -> dict[str, Dropout]:
    """Return the layers that drop something, by name.

    Example:
        >>> list(dropouts(nn.Sequential(nn.Dropout(0.0), nn.Linear(2, 2), nn.Dropout(0.5))))
        ['2']
    """
    named = model.named_modules()
    return {name: layer for name, layer in named if isinstance(layer, Dropout) and layer.p > 0}


def mc_dropout(model: nn.Module, *, seed: int) -> nn.Module:
    """Return a net that drops units in eval mode, too: one sample of MC dropout (Gal 2016).

    The mask is drawn once for all rows ("consistent" MC dropout, Kirsch et al. 2019): over samples,
    mean and variance of each row are those of masks of its own. In train mode, the net draws as
    ever. Only dropout that is a module draws, not `functional.dropout`; its input has the rows on
    the first axis.

    Args:
        model: stays as it is, in its mode; the sample shares its parameters and buffers.
        seed: decides the masks, on any device.

    Raises:
        TrainingError: the net has no dropout layer; or, when it is run, one whose input has
            something else than the rows on the first axis.

    Example:
        >>> net = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 1)).eval()
        >>> rows = torch.ones(2, 8)
        >>> first, other = (mc_dropout(net, seed=seed)(rows) for seed in (0, 1))
        >>> bool(first[0] == first[1]), bool((first == other).any())
        (True, False)
    """
    refuse_without_dropout(model)
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    sample = copy.deepcopy(model, tensors)
    root = _Rows()
    # First of all hooks, so that a dropout layer that is the whole net finds the rows counted.
    sample.register_forward_pre_hook(root, with_kwargs=True)
    for place, layer in enumerate(dropouts(sample).values()):
        layer.register_forward_hook(_Mask((seed, place), root), with_kwargs=True)
    return sample


def refuse_without_dropout(model: nn.Module) -> None:
    """Refuse a net in which nothing is dropped.

    Raises:
        TrainingError: it has no dropout layer.

    Example:
        >>> refuse_without_dropout(nn.Dropout(0.5))
    """
    if not dropouts(model):
        raise TrainingError(
            "the model has no dropout layer (nn.Dropout and its kin, with p above 0), so all "
            "samples would be the same; build it with dropout, or name another strategy"
        )


def refuse_without_batchnorm(model: nn.Module) -> None:
    """Refuse a net without batch-norm statistics.

    Raises:
        TrainingError: it has no batch-norm layer.

    Example:
        >>> refuse_without_batchnorm(nn.BatchNorm1d(2))
    """
    if not batch_norms(model):
        raise TrainingError(
            "the model has no batch-norm layer that keeps statistics, so all samples would be the "
            "same; build it with batch-norm, or name another strategy"
        )


def use_statistics_of(model: nn.Module, batch: Tensor) -> None:
    """Give batch-norm layers the statistics of one batch: MC batch-norm (Teye et al. 2018).

    In eval mode, the model then normalises any row as this batch is normalised in train mode: by
    its mean and its biased variance. All other layers are in eval mode meanwhile.

    Args:
        model: its statistics are changed in place; its mode is restored.
        batch: inputs, two rows or more.

    Raises:
        TrainingError: the model has no batch-norm layer.

    Example:
        >>> layer = nn.BatchNorm1d(1)
        >>> use_statistics_of(layer, torch.tensor([[1.0], [3.0]]))
        >>> layer.running_mean, layer.running_var
        (tensor([2.]), tensor([1.]))
    """
    refuse_without_batchnorm(model)
    layers = batch_norms(model).values()
    momenta = [layer.momentum for layer in layers]
    hooks = [layer.register_forward_hook(_biased) for layer in layers]
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.momentum = 1.0  # the batch's statistics alone
        with torch.no_grad():
            model(batch)
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, momentum, hook in zip(layers, momenta, hooks, strict=True):
            layer.momentum = momentum
            hook.remove()


def _biased(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
    """Turn the unbiased variance that torch keeps into the one that it normalises with."""
    values = output.numel() // output.shape[1]
    layer.get_buffer("running_var").mul_((values - 1) / values)


class _Rows:
    """Counts the rows of a pass, before anything else of it is run."""

    def __init__(self) -> None:
        self.passes, self.rows = 0, 1

    def __call__(self, net: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        tensors = [v for v in (*args, *named.values()) if isinstance(v, Tensor) and v.ndim]
        self.passes += 1
        self.rows = len(tensors[0]) if tensors else 1


class _Mask:
    """What a dropout layer does to every row, in eval mode: the same in each pass."""

    def __init__(self, key: tuple[int, ...], root: _Rows) -> None:
        self.key, self.root = key, root
        self.masks: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self.passes = self.call = 0

    def __call__(
        self, layer: Dropout, args: tuple[Any, ...], named: Mapping[str, Any], output: Tensor
    ) -> Tensor | None:
        """Return the layer's input, dropped; a forward hook."""
        if layer.training:
            return None
        values: Tensor = args[0] if args else named["input"]
        self._refuse_other_axes(values)
        # A layer that a pass calls again draws anew, and the next pass the same in the same order.
        self.call = self.call + 1 if self.passes == self.root.passes else 0
        self.passes = self.root.passes
        factor, shift = self._mask(layer, tuple(values.shape[1:]))
        return values * factor.to(values) + shift.to(values)

    def _mask(self, layer: Dropout, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return factor and shift of a row: what the layer in train mode does to ones and zeros."""
        place = (self.call, *shape)
        if place not in self.masks:
            twin = copy.copy(layer)
            twin.training, twin.inplace = True, False
            with torch.no_grad():
                zero, one = (self._drawn(twin, torch.full((1, *shape), v)) for v in (0.0, 1.0))
            self.masks[place] = (one - zero, zero)
        return self.masks[place]

    def _drawn(self, twin: nn.Module, row: Tensor) -> Tensor:
        with seeded(*self.key, self.call):
            dropped: Tensor = twin.forward(row)  # without its hooks
        return dropped

    def _refuse_other_axes(self, values: Tensor) -> None:
        if not values.ndim or len(values) % self.root.rows:
            raise TrainingError(
                f"a dropout layer gets a tensor of shape {tuple(values.shape)} where the batch has "
                f"{self.root.rows} rows; MC dropout needs the rows on its first axis"
            )
