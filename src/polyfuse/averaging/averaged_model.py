"""One average as a module, in place of `torch.optim.swa_utils.AveragedModel`."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse.averaging.averages import Averages
from polyfuse.averaging.base import AveragingRule
from polyfuse.averaging.rules import swa
from polyfuse.averaging.shadows import Shadow
from polyfuse.averaging.states import within
from polyfuse.averaging.structure import Watch, clean, like, tensors_of, unwrap
from polyfuse.errors import PolyfuseError

_NAME = "average"


class AveragedModel(nn.Module):
    """A model whose weights are an average of another's; a drop-in for torch's class of this name.

    It reads and writes torch's checkpoints. Unlike torch's it matches tensors by name, looks
    through wrappers, averages 16-bit weights in fp32, and saves all that a resumed run needs.
    `Averages` keeps several averages at once, and none of the models.

    Args:
        model: to be averaged.
        rule: how; the plain mean by default, as in torch.
        device: where to keep the average and the module; by default where the model is.
        use_buffers: average the floating buffers, too; others are copied at each update.
        options: of `Averages`: `update_every`, `start_step`, `dtype`, `nonfinite`, ...

    Raises:
        PolyfuseError: as `Averages`.

    Example:
        >>> from polyfuse.averaging import ema
        >>> model = nn.Linear(1, 1, bias=False)
        >>> averaged = AveragedModel(model, ema(0.5))
        >>> for value in (1.0, 3.0):
        ...     _ = model.weight.data.fill_(value)
        ...     averaged.update_parameters(model)
        >>> averaged(torch.ones(1)).item()
        2.0
    """

    n_averaged: Tensor

    def __init__(
        self,
        model: nn.Module,
        rule: AveragingRule | None = None,
        *,
        device: torch.device | str | None = None,
        use_buffers: bool = False,
        **options: Any,
    ) -> None:
        """Copy the model; the first update copies its weights again."""
        super().__init__()
        if not (rule is None or isinstance(rule, AveragingRule)):
            raise PolyfuseError(
                f"rule={rule!r} is no rule; give one, as ema(0.999), and the device by its name: "
                "AveragedModel(model, ema(0.999), device='cpu')"
            )
        self._use_buffers = use_buffers
        self._options = {"device": device, "use_buffers": use_buffers, **options}
        self.module = copy.deepcopy(unwrap(model))
        if device is not None:
            self.module.to(device)
        self.register_buffer("n_averaged", torch.tensor(0, dtype=torch.long, device=device))
        self._averages = Averages(self.module, {_NAME: rule or swa()}, **self._options)
        self._followed = [self.module]  # in a list, so that it is no module of this one
        self._buffer_homes: list[tuple[Mapping[str, Any], Mapping[str, Any], str]] = []
        self._extra: dict[str, Any] | None = None
        self._shadow: Shadow | None = None
        self._watch: Watch | None = None
        self._link(pull=True)
        self._register_load_state_dict_pre_hook(self._before_loading)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_after_loading)  # type: ignore[no-untyped-call]

    @property
    def rule(self) -> AveragingRule:
        """The rule of the average."""
        return self._averages.rules[_NAME]

    @torch.no_grad()
    def update_parameters(
        self, model: nn.Module, *, samples: int | None = None, tokens: int | None = None
    ) -> None:
        """Take in a model's weights.

        Args:
            model: of the structure that was given at first; wrapped or not.
            samples: that the step has seen, for rules that count them.
            tokens: likewise.

        Raises:
            TrainingError: as `Averages.update`.
            CheckpointError: likewise.
        """
        if unwrap(model) is not self._followed[0]:
            self._follow(unwrap(model))
        self._link(pull=True)
        self._averages.update(samples=samples, tokens=tokens)
        self._link(pull=False)
        self.n_averaged.fill_(self._averages.updates(_NAME))
        for ours, theirs, key in self._buffer_homes:
            if ours[key] is not None:
                ours[key].copy_(theirs[key])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with the average in it."""
        return self.module(*args, **kwargs)

    def get_extra_state(self) -> dict[str, Any]:
        """Return what torch's checkpoints lack: the rule, the counters, an average in fp32."""
        state = self._averages.state_dict()
        if self._is_linked():
            state["averages"][_NAME]["rows"] = []  # they are the module's
        return state

    def set_extra_state(self, state: Any) -> None:
        """Keep it until the module is loaded, too."""
        self._extra = state

    def __deepcopy__(self, memo: dict[int, Any]) -> "AveragedModel":
        """Return a copy; it does not share the model that this one follows."""
        twin = AveragedModel(self.module, self.rule, **self._options)
        twin.load_state_dict(self.state_dict())
        return twin

    def _follow(self, model: nn.Module) -> None:
        """Read another model from now on."""
        self._averages.follow(model)
        theirs = {clean(name): module for name, module in model.named_modules()}
        averaged = self._own()
        self._buffer_homes = [
            (module._buffers, theirs[clean(name)]._buffers, key)
            for name, module in self.module.named_modules()
            for key in module._buffers
            if f"{clean(name)}.{key}".lstrip(".") not in averaged
        ]
        self._followed = [model]

    def _own(self) -> Mapping[str, Tensor]:
        """Return the module's tensors that are averages."""
        return tensors_of(self.module, use_buffers=self._use_buffers).averaged

    def _is_linked(self) -> bool:
        """Tell whether the module's tensors are the average's memory."""
        is_same = self._shadow is not None and self._shadow is self._averages.memory(_NAME)
        return is_same and self._watch is not None and self._watch.unchanged()

    @torch.no_grad()
    def _link(self, *, pull: bool) -> None:
        """Let the module's tensors be the average's memory; where they cannot, copy it to them.

        Args:
            pull: the module is the one that is up to date, after a move to another device, say.
        """
        if self._is_linked():
            return
        own, self._shadow = self._own(), self._averages.memory(_NAME)
        if not (self._shadow and self._shadow.fits(own)):
            self._shadow = None
            if not pull and self._averages.updates(_NAME):
                self._averages.copy_to(_NAME, own)
            return
        for name, tensor in own.items():
            view = like(tensor, self._shadow.view(name))
            if pull:
                view.copy_(tensor)
            tensor.data = view
        self._watch = Watch(self.module, own.values(), buffers=self._use_buffers)

    def _before_loading(self, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Let a checkpoint of torch's class fit: other names, and nothing beside the module."""
        state.setdefault(f"{prefix}_extra_state", None)
        ours = set(self.module.state_dict())
        for key in [key for key in state if key.startswith(f"{prefix}module.")]:
            name = key.removeprefix(f"{prefix}module.")
            if name not in ours and within(name) in ours:
                state[f"{prefix}module.{within(name)}"] = state.pop(key)


def _after_loading(loaded: AveragedModel, _: Any) -> None:
    """Bring the average to what was loaded."""
    row = {name: tensor.detach() for name, tensor in loaded._own().items()}
    state = loaded._extra
    if state is None:
        state = {"n_averaged": loaded.n_averaged, **row}
    elif not state["averages"][_NAME]["rows"]:
        average = {**state["averages"][_NAME], "rows": [row]}
        state = {**state, "averages": {_NAME: average}}
    loaded._extra = None
    loaded._averages.load_state_dict(state)
    loaded._link(pull=False)
