"""Models of one architecture as one: stacked parameters and buffers, run under vmap."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from polyfuse.errors import TrainingError

_CLIP_EPSILON = 1e-6  # as torch.nn.utils.clip_grad_norm_ has it


class Unstackable(TrainingError):
    """Models that cannot be trained as one; the message says why."""


class Stack:
    """Models in train mode whose parameters and buffers lie in one tensor a name.

    The models go on to hold their own weights: as views of the stack, so that they change with it.

    Args:
        models: of one architecture, on one device.
        loss: `(outputs, labels, *, weights=None) -> scalar`, of one model.

    Raises:
        Unstackable: they differ in more than numbers.

    Example:
        >>> stack = Stack([nn.Linear(2, 2) for _ in range(3)], nn.functional.cross_entropy)
        >>> stack.parameters["weight"].shape
        torch.Size([3, 2, 2])
    """

    def __init__(self, models: Sequence[nn.Module], loss: Callable[..., Tensor]) -> None:
        """Stack them."""
        _refuse_unlike(models)
        for model in models:
            model.train()
        self.models, self.loss = list(models), loss
        try:
            self.parameters, self.buffers = stack_module_state(self.models)
        except RuntimeError as error:
            raise Unstackable(f"they cannot be stacked: {error}") from None
        self.generators: Sequence[torch.Generator] = ()  # of the models' dropout
        self.drawn: Sequence[torch.Generator] = ()  # of those models that are being run
        self.tied = _is_tied(self.models[0])
        self.template = _with_own_masks(copy.deepcopy(self.models[0]), self)
        self._show()

    def __len__(self) -> int:
        """Return the number of models."""
        return len(self.models)

    def losses(
        self,
        places: Sequence[int],
        inputs: Tensor,
        labels: Tensor,
        weights: Tensor | None,
        *,
        shared: bool = False,
    ) -> Tensor:
        """Return each model's loss of its own batch.

        Args:
            places: which models; in order.
            inputs: `(len(places), n, ...)`.
            labels: `(len(places), n, ...)`.
            weights: `(len(places), n)`, or None.
            shared: all have the same rows; inputs and labels are `(n, ...)`.

        Returns:
            `(len(places),)`, with a graph.

        Raises:
            Unstackable: the model or the loss does what a stack cannot do.
        """
        parameters, buffers, index = self.parameters, self.buffers, None
        if len(places) < len(self):
            index = torch.tensor(places, device=labels.device)
            parameters, buffers = (_chosen(each, index) for each in (parameters, buffers))
        self.drawn = [self.generators[place] for place in places] if self.generators else []
        given = (inputs, labels) if weights is None else (inputs, labels, weights)
        try:
            dims = (0, 0, *[None if shared else 0] * 2, 0)[: 2 + len(given)]
            losses = vmap(self._loss, in_dims=dims)(parameters, buffers, *given)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise Unstackable(f"{type(error).__name__} under vmap: {error}") from error
        if index is not None:
            with torch.no_grad():
                for name, buffer in self.buffers.items():
                    buffer[index] = buffers[name]
        return losses

    def _loss(
        self,
        parameters: dict[str, Tensor],
        buffers: dict[str, Tensor],
        inputs: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        tensors = (parameters, buffers)
        outputs = functional_call(self.template, tensors, (inputs,), tie_weights=self.tied)
        given = {} if weights is None else {"weights": weights}
        return self.loss(outputs, labels, **given)

    def clip(self, largest: float) -> None:
        """Scale each model's gradient down to a norm, as `clip_grad_norm_` does."""
        gradients = [p.grad for p in self.parameters.values() if p.grad is not None]
        squares = [g.flatten(1).square().sum(1) for g in gradients]
        norms = torch.stack(squares).sum(0).sqrt()
        factors = (largest / (norms + _CLIP_EPSILON)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factors.view(-1, *[1] * (gradient.dim() - 1)))

    def _show(self) -> None:
        """Make the models' weights views of the stack."""
        for place, model in enumerate(self.models):
            for name, parameter in model.named_parameters():
                parameter.data = self.parameters[name].data[place]
            for name, buffer in model.named_buffers():
                buffer.data = self.buffers[name].data[place]


def _refuse_unlike(models: Sequence[nn.Module]) -> None:
    """Refuse models of different modules, modes, shapes or frozen parts."""
    if len({id(model) for model in models}) < len(models):
        raise TrainingError(
            "the model factory returned the same object twice; let it make a new model each time"
        )
    first = _anatomy(models[0])
    for model in models[1:]:
        other = _anatomy(model)
        if other != first:
            pairs = zip(first, other, strict=False)
            apart = next(((a, b) for a, b in pairs if a != b), ("more parts", "fewer"))
            raise Unstackable(f"the models differ: {apart[0]} and {apart[1]}")


def _anatomy(model: nn.Module) -> list[Any]:
    """Describe all that must be alike; what a module prints has its sizes, rates and modes."""
    parts: list[Any] = [
        (name, type(module).__name__, module.extra_repr()) for name, module in model.named_modules()
    ]
    parts += [(n, tuple(p.shape), p.dtype, p.requires_grad) for n, p in model.named_parameters()]
    return parts + [(n, tuple(b.shape), b.dtype) for n, b in model.named_buffers()]


def _is_tied(model: nn.Module) -> bool:
    """Tell whether a tensor has two names, which takes time to look for in every call."""
    places = [id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False)]
    places += [id(tensor) for _, tensor in model.named_buffers(remove_duplicate=False)]
    return len({*places}) < len(places)


def _chosen(tensors: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: tensor[index] for name, tensor in tensors.items()}


# Dropout ----------------------------------------------------------------------------------------


def _with_own_masks(model: nn.Module, stack: Stack) -> nn.Module:
    """Let dropout draw each model's masks from its own generator, as the model alone would."""
    if isinstance(model, nn.modules.dropout._DropoutNd):
        return _OwnMask(model, stack)
    for name, child in model.named_children():
        setattr(model, name, _with_own_masks(child, stack))
    return model


class _OwnMask(nn.Module):
    """One dropout layer of all models in the stack."""

    def __init__(self, layer: nn.modules.dropout._DropoutNd, stack: Stack) -> None:
        super().__init__()
        self.p, self.train_mode = layer.p, layer.training
        if type(layer) not in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d):
            raise Unstackable(f"it has {type(layer).__name__}, whose masks cannot be drawn apart")
        self.channels = type(layer) is not nn.Dropout
        self.__dict__["stack"] = stack  # not a part of the model

    def forward(self, inputs: Tensor) -> Tensor:
        if self.p == 0 or not self.train_mode:
            return inputs
        if self.p == 1:
            return inputs * 0
        shape = [*inputs.shape[:2], *[1] * (inputs.dim() - 2)] if self.channels else inputs.shape
        mask: Tensor = _Mask.apply(inputs.detach(), 1 - self.p, tuple(shape), self.stack)  # type: ignore[no-untyped-call]
        return inputs * mask


class _Mask(torch.autograd.Function):
    """A dropout mask for each model, drawn by the model's own generator."""

    @staticmethod
    def forward(like: Tensor, keep: float, shape: tuple[int, ...], stack: Stack) -> Tensor:
        raise NotImplementedError  # it is always called under vmap

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, like: Tensor, keep: float, shape: tuple[int, ...], stack: Stack
    ) -> tuple[Tensor, int]:
        masks = like.new_empty((info.batch_size, *shape))
        for mask, generator in zip(masks, stack.drawn, strict=True):
            mask.bernoulli_(keep, generator=generator)
        return masks.div_(keep), 0
