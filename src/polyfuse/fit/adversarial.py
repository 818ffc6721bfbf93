"""Inputs that are changed to raise the loss, to train on beside the true ones."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from polyfuse.batchnorm import batch_norms
from polyfuse.errors import TrainingError

Bound = float | Sequence[float]


def fgsm(
    inputs: Tensor, gradient: Tensor, *, eps: Bound, low: Bound = 0.0, high: Bound = 1.0
) -> Tensor:
    """Step against the model, by the sign of the gradient (Goodfellow et al. 2015, section 4).

    `clip(x + eps sign(dL/dx), low, high)`. All numbers are in the space of the inputs as the model
    gets them: of images that were normalised by a mean and a deviation a channel, the bounds are
    `(0 - mean) / deviation` and `(1 - mean) / deviation`, one number a channel. No input is moved
    by more than `eps`; one that lay outside the bounds before (an augmentation may put it there)
    stays where it was, or comes nearer.

    Args:
        inputs: `(n, ...)` floats.
        gradient: of the loss with respect to them, up to a positive factor.
        eps: how far each number may move, more than 0; one for all, or one a channel (axis 1).
        low: smallest number an input may become; likewise.
        high: largest.

    Raises:
        TrainingError: an `eps` that is not above 0, or bounds with nothing between them.

    Example:
        >>> x, slope = torch.tensor([[0.5, 0.99, 0.2]]), torch.tensor([[2.0, 1.0, -3.0]])
        >>> [round(v, 2) for v in fgsm(x, slope, eps=0.1)[0].tolist()]
        [0.6, 1.0, 0.1]
    """
    bounds = [_a_channel(bound, inputs) for bound in (eps, low, high)]
    if not bool((bounds[0] > 0).all()) or not bool((bounds[1] < bounds[2]).all()):
        raise TrainingError(
            f"adversary: eps={eps}, low={low}, high={high}; type eps > 0 and low < high"
        )
    far, least, most = (bound.to(inputs.device) for bound in bounds)
    moved = inputs + far * gradient.sign()
    return torch.maximum(torch.minimum(moved, most.maximum(inputs)), least.minimum(inputs))


ADVERSARIES: dict[str, Callable[..., Tensor]] = {"fgsm": fgsm}


def attacked(
    adversary: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, gradient: Tensor | None
) -> Tensor:
    """Return what an adversary makes of a batch, once it is seen to fit the model.

    Raises:
        TrainingError: the loss does not depend on the inputs, or the adversary changes their shape.

    Example:
        >>> attacked(lambda x, slope: x + slope, torch.ones(2), torch.ones(2))
        tensor([2., 2.])
    """
    if gradient is None:
        raise TrainingError("adversary: the loss has no gradient with respect to the inputs")
    changed = adversary(inputs.detach(), gradient.detach())
    if changed.shape != inputs.shape or changed.dtype != inputs.dtype:
        raise TrainingError(
            f"adversary: it maps {inputs.dtype} of {tuple(inputs.shape)} to {changed.dtype} of "
            f"{tuple(changed.shape)}; it must return the same shape and dtype"
        )
    return changed.detach()


def attackable(inputs: Tensor) -> Tensor:
    """Return a batch that takes a gradient.

    Raises:
        TrainingError: whole numbers, such as tokens, which cannot be moved a little.

    Example:
        >>> attackable(torch.ones(2)).requires_grad
        True
    """
    if not inputs.is_floating_point():
        raise TrainingError(
            f"adversary: the inputs are {inputs.dtype}, and only floats can be moved a little"
        )
    return inputs.detach().requires_grad_()


@contextlib.contextmanager
def statistics_kept(model: nn.Module) -> Iterator[None]:
    """Let batch-norm normalise by the batch inside the block, and remember nothing of it.

    So the running statistics are those of true inputs alone, which is what a trained model gets.

    Example:
        >>> net = nn.BatchNorm1d(2)
        >>> with statistics_kept(net):
        ...     _ = net(torch.rand(4, 2))
        >>> int(net.num_batches_tracked)
        0
    """
    layers = [layer for layer in batch_norms(model).values() if layer.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def _a_channel(bound: Bound, inputs: Tensor) -> Tensor:
    """Return a bound so that it broadcasts: one number, or one a channel."""
    value = torch.as_tensor(bound, dtype=inputs.dtype)
    if value.ndim == 0:
        return value
    if value.ndim > 1 or inputs.ndim < 2 or len(value) != inputs.shape[1]:
        raise TrainingError(
            f"adversary: {len(value)} bounds for inputs of shape {tuple(inputs.shape)}; type one "
            "number, or one a channel (axis 1)"
        )
    return value.view(-1, *[1] * (inputs.ndim - 2))
