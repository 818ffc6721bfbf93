"""Re-estimate batch-norm statistics: what an average of weights needs before it can be used.

The running statistics of averaged checkpoints fit none of them. One pass over training inputs (no
labels) measures them again. Three modes weigh the batches differently:

| mode     | running mean              | running variance                                        |
|----------|---------------------------|---------------------------------------------------------|
| `pooled` | mean of all values        | of all values: `E[var_b] + Var[mean_b]` (Chan), n/(n-1) |
| `sample` | batches by their rows     | mean of the batches' unbiased variances, by their rows  |
| `torch`  | each batch weighs the same| as `torch.optim.swa_utils.update_bn`, to the bit        |

`torch` sets the whole model to train mode, as `update_bn` does, so dropout draws. In the other
modes only batch-norm layers train and the rest is in eval mode: the statistics are those that the
layers see in use, and the same at every call. In all modes a layer is fed by layers that normalise
with the statistics of their own batch, so use batches as large as in training.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from polyfuse.errors import DataError, did_you_mean, printable

MODES = ("pooled", "sample", "torch")
Layer = nn.modules.batchnorm._BatchNorm


def batch_norms(model: nn.Module) -> dict[str, Layer]:
    """Return the batch-norm layers that keep running statistics, by name.

    Example:
        >>> list(batch_norms(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))))
        ['1']
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Layer) and module.running_mean is not None
    }


def reestimate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    mode: str = "pooled",
    device: torch.device | str | None = None,
    inputs: Callable[[Any], Any] | None = None,
) -> None:
    """Measure the running statistics of all batch-norm layers anew, in one pass.

    Modes of all modules, momenta and gradients stay as they are; where it fails, the statistics
    do, too. A layer that no batch reaches keeps its own (`torch` resets it). A model without
    batch-norm is left alone and the loader is not read. In a process group of `torch.distributed`,
    every process brings its own batches, and all get the statistics of all of them.

    Args:
        model: changed in place.
        loader: batches: a tensor, a tuple or list whose first item is one, or a mapping, which
            the model gets as keyword arguments.
        mode: "pooled", "sample" or "torch"; see the top of this file.
        device: to move batches to; by default where the model is.
        inputs: makes the model's arguments of a batch, where it is none of the above: a tensor, a
            tuple of positional or a mapping of keyword arguments.

    Raises:
        DataError: an unknown mode, no batch, a batch of one value a channel, NaN or infinity, a
            layer that is not initialised, or a batch that is no input.

    Example:
        >>> layer = nn.BatchNorm1d(1)
        >>> reestimate(layer, [torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [6.0], [8.0]])])
        >>> layer.running_mean, layer.running_var
        (tensor([4.]), tensor([8.5000]))
    """
    if mode not in MODES:
        known = ", ".join(MODES)
        raise DataError(f"mode={printable(mode)!r}{did_you_mean(str(mode), MODES)}; known: {known}")
    layers = batch_norms(model)
    if not layers:
        return
    _refuse_lazy(layers)
    meters = {name: _METERS[mode](layer, name) for name, layer in layers.items()}
    with _restored(model, layers), torch.no_grad():
        _set_modes(model, layers, mode)
        with _metered(meters.values()):
            _run(model, loader, device or _device(model), inputs)
        for meter in meters.values():
            meter.finish()
        _refuse_unmeasured(meters)


class _Meter:
    """What one layer's batches add up to; this one leaves the sum to the layer, as torch does."""

    def __init__(self, layer: Layer, name: str) -> None:
        self.layer, self.name = layer, name
        self.batches = 0
        self.running_mean, self.running_var, self.tracked = _statistics(layer)
        device = self.running_mean.device
        # Apple's GPUs have no double precision.
        self.zero = torch.zeros(
            (), dtype=torch.float64, device="cpu" if device.type == "mps" else device
        )

    def see(self, layer: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Take note of a batch before the layer does; a hook."""
        values: Tensor = args[0] if args else named["input"]
        if values.ndim < 2:
            return  # the layer says so itself
        if values.numel() < 2 * values.shape[1]:
            raise DataError(
                f"batch-norm layer '{self.name}' gets a batch of shape {tuple(values.shape)}: one "
                "value a channel has no variance; use larger batches, or drop the last, short one"
            )
        self.batches += 1
        self.add(values)

    def add(self, values: Tensor) -> None:
        """Add a batch, `(rows, channels, ...)`."""

    def finish(self) -> None:
        """Give the layer the statistics of all processes, rounded once to its precision."""
        self.batches = int(_summed(self.zero + self.batches))
        if self.batches:
            mean, variance = self.result()
            self.running_mean.copy_(mean)
            self.running_var.copy_(variance)
            self.tracked.fill_(self.batches)

    def result(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance; here the mean by batches, of one process its own."""
        if _alone():
            return self.running_mean, self.running_var
        mine = self.zero + self.tracked
        mean, variance = (
            _summed(self.running_mean.to(mine) * mine),
            _summed(self.running_var.to(mine) * mine),
        )
        return mean / self.batches, variance / self.batches


class _SampleMeter(_Meter):
    """Means of batch statistics, by the rows of each batch."""

    def __init__(self, layer: Layer, name: str) -> None:
        super().__init__(layer, name)
        self.rows, self.means, self.variances = self.zero, self.zero, self.zero

    def add(self, values: Tensor) -> None:
        mean, variance = _moments(values)
        self.rows = self.rows + len(values)
        self.means = self.means + mean.to(self.zero) * len(values)
        self.variances = self.variances + variance.to(self.zero) * len(values)

    def result(self) -> tuple[Tensor, Tensor]:
        rows = _summed(self.rows)
        return _summed(self._each(self.means)) / rows, _summed(self._each(self.variances)) / rows

    def _each(self, value: Tensor) -> Tensor:
        return value.expand(self.running_mean.shape)  # as large as that of the other processes


class _PooledMeter(_Meter):
    """Mean and variance of all values together (Chan, Golub, LeVeque 1979)."""

    def __init__(self, layer: Layer, name: str) -> None:
        super().__init__(layer, name)
        self.count = self.zero
        self.mean, self.squares = self.zero.new_zeros(2, layer.num_features)

    def add(self, values: Tensor) -> None:
        mean, variance = _moments(values)
        count = values.numel() // values.shape[1]
        total = self.count + count
        apart = mean.to(self.zero) - self.mean
        within = variance.to(self.zero) * (count - 1)
        self.squares = self.squares + within + apart.square() * (self.count * count / total)
        self.mean = self.mean + apart * (count / total)
        self.count = total

    def result(self) -> tuple[Tensor, Tensor]:
        if _alone():
            return self.mean, self.squares / (self.count - 1)
        count = _summed(self.count)
        mean = _summed(self.mean * self.count) / count
        squares = _summed(self.squares + self.count * (self.mean - mean).square())
        return mean, squares / (count - 1)


_METERS = {"pooled": _PooledMeter, "sample": _SampleMeter, "torch": _Meter}


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and unbiased variance a channel, by torch's own kernel: the fastest there is."""
    wide = values if values.dtype == torch.float64 else values.float()
    mean, variance = wide.new_zeros(2, values.shape[1])
    nn.functional.batch_norm(wide, mean, variance, training=True, momentum=1.0)
    return mean, variance


def _statistics(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Return the layer's buffers: running mean, running variance, batches that were seen."""
    mean, variance, tracked = layer.running_mean, layer.running_var, layer.num_batches_tracked
    assert mean is not None  # batch_norms took only such
    assert variance is not None
    assert tracked is not None
    return mean, variance, tracked


def _alone() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized())


def _summed(value: Tensor) -> Tensor:
    """Return the sum over all processes of the group."""
    if not _alone():
        value = value.clone()
        torch.distributed.all_reduce(value)
    return value


def _run(model: nn.Module, loader: Iterable[Any], device: Any, inputs: Any) -> None:
    """Feed all batches to the model."""
    batch = None
    for batch in loader:
        given = _default(batch) if inputs is None else inputs(batch)
        if isinstance(given, Mapping):
            model(**{name: _moved(value, device) for name, value in given.items()})
        elif isinstance(given, tuple):
            model(*(_moved(value, device) for value in given))
        else:
            model(_moved(given, device))
    if batch is None:
        raise DataError("the loader gave no batch; a generator is empty after its first use")


def _default(batch: Any) -> Any:
    """Return a model's arguments in a batch, as `update_bn` does, and mappings besides."""
    first = batch[0] if isinstance(batch, Sequence) and len(batch) else batch
    if not isinstance(first, Tensor | Mapping):
        raise DataError(
            f"a batch is a {type(batch).__name__}, not a tensor, a tuple that starts with one, or "
            "a mapping; say what the model takes: inputs=lambda batch: ..."
        )
    return first


def _moved(value: Any, device: Any) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


@contextlib.contextmanager
def _metered(meters: Iterable[_Meter]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for meter in meters:
            hook = meter.layer.register_forward_pre_hook(meter.see, with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _set_modes(model: nn.Module, layers: Mapping[str, Layer], mode: str) -> None:
    """Prepare for the pass: `torch` trains everything, the other modes only the layers."""
    model.train(mode == "torch")
    for layer in layers.values():
        layer.train()
        if mode == "torch":
            layer.momentum = None
            layer.reset_running_stats()


@contextlib.contextmanager
def _restored(model: nn.Module, layers: Mapping[str, Layer]) -> Iterator[None]:
    """Give modes and momenta back; and the statistics, too, where the block fails."""
    modes = {module: module.training for module in model.modules()}
    momenta = {layer: layer.momentum for layer in layers.values()}
    kept = [(value, value.clone()) for layer in momenta for value in _statistics(layer)]
    try:
        yield
    except BaseException:
        for value, before in kept:
            value.copy_(before)
        raise
    finally:
        for layer, momentum in momenta.items():
            layer.momentum = momentum
        for module, training in modes.items():
            module.training = training


def _refuse_lazy(layers: Mapping[str, Layer]) -> None:
    lazy = [name for name, layer in layers.items() if is_lazy(_statistics(layer)[0])]
    if lazy:
        raise DataError(
            f"batch-norm layers are not initialised: {printable(', '.join(lazy))}; "
            "load weights, or run the model once"
        )


def _refuse_unmeasured(meters: Mapping[str, _Meter]) -> None:
    """Refuse a pass that reached no layer, and statistics that are no numbers."""
    seen = [meter for meter in meters.values() if meter.batches]
    if not seen:
        raise DataError(
            f"no batch reached the batch-norm layers {printable(', '.join(meters))}; "
            "give the model inputs that it runs them on"
        )
    bad = [meter.name for meter in seen if not _finite(meter.running_mean, meter.running_var)]
    if bad:
        raise DataError(
            f"statistics of the batch-norm layers {printable(', '.join(bad))} became NaN or "
            "infinite; check weights and inputs for NaN and Inf"
        )


def _finite(*statistics: Tensor) -> bool:
    return all(bool(torch.isfinite(value).all()) for value in statistics)


def _device(model: nn.Module) -> torch.device:
    tensors = (*model.parameters(), *model.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))
