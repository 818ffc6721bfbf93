"""Several running averages of one model, kept up in one pass over its weights."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyfuse import batchnorm
from polyfuse.averaging.base import AveragingRule, Moment, Timing, checked
from polyfuse.averaging.shadows import Shadow, Slot, lay_out, local, runs_of
from polyfuse.averaging.structure import tensors_of, unwrap
from polyfuse.errors import CheckpointError, did_you_mean, printable


class _Track:
    """One average: its rule, its memory, and how far it has come."""

    def __init__(self, rule: AveragingRule, timing: Timing, slots: Mapping[str, Slot]) -> None:
        self.rule = rule
        self.timing = timing
        self.updates = 0  # the initial copy included
        self.begun: tuple[int, int] | None = None  # steps and epochs before the averaging
        self.last = 0  # step of the latest update
        self.copied = 0  # step of the initial copy
        self.shadow = Shadow(slots)
        self.loose: dict[str, Tensor] = {}
        self.statistics: dict[str, Tensor] = {}


class Averages:
    """Running averages of a model while it trains.

    ...
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Mapping[str, AveragingRule],
        *,
        update_every: int | str = 1,
        start_step: int = 0,
        start_epoch: int = 0,
        use_buffers: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        nonfinite: str = "error",
    ) -> None:
        """Take hold of a model; nothing is averaged yet."""
        self._model = unwrap(model)
        self._use_buffers = use_buffers
        self._nonfinite = nonfinite
        self.step = self.epoch = 0
        self._swapped: list[str] = []
        self._device = None if device is None else torch.device(device)
        self._dtype = dtype
        default = checked(Timing(update_every, start_step, start_epoch))
        self._look()
        self._tracks = {}
        for name, rule in rules.items():
            own = {k: v for k, v in rule.timing._asdict().items() if v is not None}
            self._tracks[name] = _Track(rule, default._replace(**own), self._slots)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the averages."""
        return tuple(self._tracks)

    def updates(self, name: str) -> int:
        """Return how many updates an average has seen, the initial copy included."""
        return self._track(name).updates

    def _look(self) -> None:
        self._tensors = tensors_of(self._model, use_buffers=self._use_buffers)
        self._locals = {name: local(t) for name, t in self._tensors.averaged.items()}
        self._slots = lay_out(self._locals, self._device, self._dtype)
        self._runs = runs_of(self._locals, self._slots)

    def _track(self, name: str) -> _Track:
        if name not in self._tracks:
            known = ", ".join(self._tracks)
            near = did_you_mean(name, self._tracks)
            raise CheckpointError(f"no average is called '{printable(name)}'{near}; known: {known}")
        return self._tracks[name]

    def update(self, *, samples: int | None = None, tokens: int | None = None) -> None:
        """Take in the model's weights; call it after every `optimizer.step()`."""
        self.step += 1
        self._take_in([t for t in self._tracks.values() if self._is_due(t)])

    def end_epoch(self) -> None:
        """Count an epoch."""
        self.epoch += 1

    def _is_due(self, track: _Track) -> bool:
        every, start_step, start_epoch = track.timing
        if track.begun is None and self.step > start_step and self.epoch >= start_epoch:
            track.begun = (self.step - 1, self.epoch)
        return track.begun is not None and (self.step - track.begun[0]) % every == 0

    def _take_in(self, due: list[_Track]) -> None:
        with torch.no_grad():
            for track in due:
                step = self.step - track.begun[0]
                if not track.updates:
                    track.copied = step
                moment = Moment(
                    track.updates,
                    step,
                    step - track.last,
                    track.copied,
                    self.epoch - track.begun[1] + 1,
                )
                for name, tensor in self._locals.items():
                    view, rule = track.shadow.view(name), track.rule
                    current = tensor.to(view)
                    if rule.weight:
                        new = rule.update(view, current, moment) if track.updates else current
                        view.copy_(new)
                    else:
                        track.loose[name] = (
                            rule.update(track.loose[name], current, moment)
                            if track.updates
                            else rule.init(current)
                        )
                        value = (
                            rule.value(track.loose[name], track.updates)
                            if rule.value
                            else track.loose[name]
                        )
                        view.copy_(value)
                track.last = step
                track.updates += 1

    def attach(self, optimizer: torch.optim.Optimizer) -> Any:
        """Call `update` after each step of an optimiser."""
        return optimizer.register_step_post_hook(lambda *_: self.update())

    def average(self, name: str) -> dict[str, Tensor]:
        """Return an average as a full state dict."""
        track = self._track(name)
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            for each, tensor in self._tensors.averaged.items():
                value = track.shadow.view(each) if track.updates else tensor
                found[each] = value.to(tensor.dtype).clone()
            for each, tensor in self._tensors.followed.items():
                found[each] = track.statistics.get(each, tensor).detach().clone()
        first = self._tensors.aliases
        return {each: found[first.get(each, each)] for each in self._tensors.order}

    def model(self, name: str) -> nn.Module:
        """Return a copy of the model with an average in it."""
        twin = copy.deepcopy(self._model)
        twin.load_state_dict(self.average(name))
        return twin

    @contextlib.contextmanager
    def applied(self, name: str) -> Iterator[nn.Module]:
        """Put an average into the model for a while."""
        track = self._track(name)
        before = {k: v.detach().clone() for k, v in self._model.state_dict().items()}
        self._model.load_state_dict(self.average(name))
        try:
            yield self._model
        finally:
            self._model.load_state_dict(before)

    def reestimate(self, name: str, loader: Iterable[Any], mode: str = "pooled") -> None:
        """Measure the batch-norm statistics of an average."""
        track = self._track(name)
        with self.applied(name):
            batchnorm.reestimate(self._model, loader, mode=mode)
            layers = batchnorm.batch_norms(self._model)
            track.statistics = {
                each: tensor.detach().clone()
                for each, tensor in self._tensors.followed.items()
                if each.rpartition(".")[0] in layers
            }

    def state_dict(self) -> dict[str, Any]:
        """Return everything."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "averages": {
                name: {
                    "rule": t.rule.name,
                    "options": dict(t.rule.options),
                    "timing": list(t.timing),
                    "updates": t.updates,
                    "begun": t.begun,
                    "last": t.last,
                    "copied": t.copied,
                    "tensors": {each: t.shadow.view(each) for each in self._slots},
                    "loose": dict(t.loose),
                    "statistics": dict(t.statistics),
                }
                for name, t in self._tracks.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take everything back."""
        self.step, self.epoch = state["step"], state["epoch"]
        for name, t in self._tracks.items():
            held = state["averages"][name]
            for key in ("updates", "begun", "last", "copied"):
                setattr(t, key, held[key])
            for each in self._slots:
                t.shadow.view(each).copy_(held["tensors"][each])
            t.loose, t.statistics = dict(held["loose"]), dict(held["statistics"])
