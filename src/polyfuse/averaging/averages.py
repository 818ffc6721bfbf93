"""Several running averages of one model, kept up in one pass over its weights."""

import contextlib
import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from polyfuse import batchnorm
from polyfuse.averaging import states
from polyfuse.averaging.alarms import Alarm
from polyfuse.averaging.base import AveragingRule, Moment, Timing, check_options
from polyfuse.averaging.shadows import Shadow, local
from polyfuse.averaging.structure import like, tensors_of, unwrap
from polyfuse.averaging.subject import Subject
from polyfuse.averaging.swapping import copies, put, put_in, unsaved
from polyfuse.averaging.tracks import Track
from polyfuse.errors import PolyfuseError, did_you_mean, printable

Due = list[tuple[Track, Moment]]


class Averages:
    """Running averages of a model while it trains.

    Call `update` after every optimiser step; the first one that is due is the initial copy. Before
    it, an average is the model as it is. Parameters are matched by name; DataParallel,
    DistributedDataParallel and `torch.compile` are looked through, and of a model that FSDP2
    shards each process averages its part. Averages are kept in fp32 where the model's precision is
    lower, and rounded when they are asked for.

    Buffers are the model's at the time of asking; integer ones always. Batch-norm statistics fit
    an average once they are measured anew: `reestimate`.

    Args:
        model: its parameters may be frozen, tied, of any dtype and memory format.
        rules: by the names that the averages shall have.
        update_every: steps between updates, or "epoch"; for rules that are not `timed` themselves.
        start_step: steps before averaging begins; likewise.
        start_epoch: epochs before averaging begins; likewise.
        use_buffers: average the floating buffers, too.
        device: where to keep averages; by default where the parameters are. With "cpu" for a
            model on a GPU the weights are copied without waiting, and averaged at the next call.
        dtype: to average in, float32 or float64.
        nonfinite: what to do about NaN or infinity in the weights: "error" and "warn" skip the
            update, "ignore" does not look. Each update looks at the next part of the weights.
        looks: updates in which all weights are looked at; 1 looks at all of them each time, which
            takes half as long again. Averages are looked at before they are given or saved.

    Raises:
        CheckpointError: a model that is not initialised, or on the meta device.
        PolyfuseError: no rules, or an option out of its range.

    Example:
        >>> from polyfuse.averaging import ema, swa
        >>> model = nn.Linear(1, 1, bias=False)
        >>> averages = Averages(model, {"ema": ema(0.9), "swa": swa()})
        >>> for value in (1.0, 2.0, 3.0):
        ...     _ = model.weight.data.fill_(value)
        ...     averages.update()
        >>> averages.average("ema"), averages.average("swa")
        ({'weight': tensor([[1.2900]])}, {'weight': tensor([[2.]])})
        >>> with averages.applied("swa"):
        ...     model(torch.ones(1)).item()
        2.0
        >>> model.weight.item()
        3.0
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
        looks: int = 32,
    ) -> None:
        """Allocate the averages; nothing is averaged yet."""
        check_options(rules, dtype, nonfinite, looks)
        self.step = 0
        self.epoch = 0
        self._alarm = Alarm(nonfinite)
        self._settings: dict[str, Any] = {
            "use_buffers": use_buffers,
            "device": None if device is None else torch.device(device),
            "dtype": dtype,
            "looks": looks,
        }
        self._within: str | None = None  # what is applied
        self._undo = contextlib.ExitStack()
        self._waiting: Due = []  # updates whose weights are on their way
        self._subject = Subject(unwrap(model), **self._settings)
        times, slots = Timing(update_every, start_step, start_epoch), self._subject.slots
        self._tracks = {name: Track(rule, times, slots) for name, rule in rules.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the averages."""
        return tuple(self._tracks)

    @property
    def rules(self) -> dict[str, AveragingRule]:
        """The rules by the averages' names."""
        return {name: track.rule for name, track in self._tracks.items()}

    def updates(self, name: str) -> int:
        """Return how many updates an average has seen, the initial copy included."""
        return self._track(name).updates

    def update(self, *, samples: int | None = None, tokens: int | None = None) -> None:
        """Take in the model's weights; call it after every `optimizer.step()`.

        Args:
            samples: that the step has seen, for rules that count them.
            tokens: likewise.

        Raises:
            TrainingError: NaN or infinity in the weights; the parameters are named.
            CheckpointError: parameters whose names or shapes have changed.
            PolyfuseError: an average is applied, or a rule lacks its samples or tokens.
        """
        self._refuse_applied("update the averages")
        self.step += 1
        for track in self._tracks.values():
            track.count(samples, tokens)
        self._take_in(end=False)

    def end_epoch(self) -> None:
        """Count an epoch; call it after the last update of each.

        Raises:
            TrainingError: as `update`, where an average is updated each epoch.
            CheckpointError: likewise.
        """
        self._refuse_applied("end an epoch")
        self._take_in(end=True)
        self.epoch += 1

    def attach(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        samples: int | None = None,
        tokens: int | None = None,
    ) -> RemovableHandle:
        """Update after each step of an optimiser; return the handle whose `remove()` ends it.

        Args:
            optimizer: of the model.
            samples: that each step sees.
            tokens: likewise.
        """
        return optimizer.register_step_post_hook(
            lambda *_: self.update(samples=samples, tokens=tokens)
        )

    def average(self, name: str) -> dict[str, Tensor]:
        """Return an average as a full state dict: a copy, in the model's dtypes.

        Raises:
            PolyfuseError: no average has this name, or one is applied.
            TrainingError: the average holds NaN or infinity.
        """
        track = self._ready(name, "read an average")
        averaged, followed, first, order = self._subject.tensors
        found = {**copies(followed), **copies(self._subject.buffers())}
        for each, tensor in averaged.items():
            value = track.value(each) if track.updates else local(tensor)
            found[each] = like(tensor, value.to(local(tensor).dtype, copy=True))
        found |= copies(track.statistics)
        return {each: found[first.get(each, each)] for each in order}

    def copy_to(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write an average into tensors of the parameters' names, and into no others.

        Raises:
            PolyfuseError: as `average`.
            TrainingError: as `average`.
        """
        track, own = self._ready(name, "read an average"), self._subject.locals()
        for each, tensor in tensors.items():
            local(tensor).copy_(track.value(each) if track.updates else own[each])

    def memory(self, name: str) -> Shadow | None:
        """Return the memory that an average is, where a rule keeps nothing else."""
        track = self._track(name)
        return track.shadow if track.is_plain else None

    def model(self, name: str) -> nn.Module:
        """Return a copy of the model with an average in it.

        Raises:
            PolyfuseError: as `average`, or the model is sharded and has no copies.
            TrainingError: as `average`.
        """
        if any(hasattr(t, "to_local") for t in self._subject.tensors.averaged.values()):
            raise PolyfuseError(
                "a sharded model cannot be copied; use `with averages.applied(...)`, or average()"
            )
        found = self.average(name)
        twin = copy.deepcopy(self._subject.model)
        theirs = tensors_of(twin)
        put(found, {**theirs.averaged, **theirs.followed})
        return twin

    @contextlib.contextmanager
    def applied(self, name: str, *, saving: bool = False) -> Iterator[nn.Module]:
        """Put an average into the model for a while, in place; yield the model.

        Weights and average trade places, without a copy of the model; only where their dtypes
        differ, or a rule keeps several updates, the weights are copied. They come back when the
        block ends, also by an error. Inside, another average may be applied, and the model refuses
        to give its state dict, which would save averaged weights as if they were its own.

        Args:
            name: of the average.
            saving: let the model give its state dict all the same.

        Raises:
            PolyfuseError: no average has this name.
            CheckpointError: parameters whose names or shapes have changed.
            TrainingError: the average holds NaN or infinity.
        """
        outer = self._within
        self._track(name)
        self._leave()
        try:
            self._settle()
            self._renew()
            self._alarm.check(name, self._tracks[name])
            self._enter(name)
            with contextlib.nullcontext() if saving else unsaved(self._subject.model):
                yield self._subject.model
        finally:
            self._leave()
            if outer:
                self._enter(outer)

    def reestimate(
        self, name: str, loader: Iterable[Any], mode: str = "pooled", **options: Any
    ) -> None:
        """Measure the batch-norm statistics of an average, until its next update.

        Args:
            name: of the average.
            loader: batches; see `polyfuse.batchnorm.reestimate`.
            mode: "pooled", "sample" or "torch".
            options: `device` and `inputs`.

        Raises:
            DataError: as `polyfuse.batchnorm.reestimate`.
            PolyfuseError: no average has this name, or one is applied.
        """
        track = self._ready(name, "measure statistics")
        model, own = self._subject.model, self._subject.buffers()
        layers = batchnorm.batch_norms(model)
        norms = {key: tensor for key, tensor in own.items() if key.rpartition(".")[0] in layers}
        with self.applied(name):
            before = copies(norms)
            batchnorm.reestimate(model, loader, mode=mode, **options)
            track.statistics = copies(norms)
            put(before, norms)

    def state_dict(self) -> dict[str, Any]:
        """Return rules, counters and averages: all that a resumed run needs, to the bit.

        Tensors share the averages' memory, as in torch; the rest is plain data.

        Raises:
            PolyfuseError: an average is applied: the weights would be saved as the average.
            TrainingError: an average holds NaN or infinity.
        """
        for name in self._tracks:
            self._ready(name, "save the averages")
        return states.write(self._tracks, self._subject.tensors.averaged, self.step, self.epoch)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state, or from a checkpoint of torch's `AveragedModel`.

        Args:
            state: of `state_dict`; or of torch's, for one average.

        Raises:
            CheckpointError: other rules, names or shapes, all of them named; nothing is changed.
        """
        self._refuse_applied("load averages")
        self._waiting = []
        self._renew()
        with torch.no_grad():
            counts = states.read(state, self._tracks, self._subject.tensors.averaged)
        self.step, self.epoch = counts

    def follow(self, model: nn.Module) -> None:
        """Go on with another object of the same model.

        Raises:
            CheckpointError: parameters of other names or shapes.
        """
        self._refuse_applied("follow another model")
        self._settle()
        self._hold(unwrap(model))

    def _hold(self, model: nn.Module) -> None:
        """Take hold of a model's tensors, and move the averages where they have to."""
        known = self._subject.shapes
        self._subject = Subject(model, known=known, **self._settings)
        for track in self._tracks.values():
            track.move(self._subject.slots)

    def _renew(self) -> None:
        """Look again where the model's tensors are, if anything has changed."""
        if not self._subject.is_same():
            self._hold(self._subject.model)

    def _track(self, name: str) -> Track:
        if name not in self._tracks:
            near = did_you_mean(str(name), self._tracks)
            known = ", ".join(self._tracks)
            raise PolyfuseError(f"no average is called '{printable(name)}'{near}; known: {known}")
        return self._tracks[name]

    def _ready(self, name: str, purpose: str) -> Track:
        """Return an average that is up to date and holds only numbers."""
        track = self._track(name)
        self._refuse_applied(purpose)
        self._settle()
        self._renew()
        self._alarm.check(name, track)
        return track

    def _refuse_applied(self, purpose: str) -> None:
        if self._within is not None:
            raise PolyfuseError(
                f"cannot {purpose} while '{printable(self._within)}' is applied to the model; "
                "do it after the `with` block"
            )

    def _enter(self, name: str) -> None:
        """Put an average into the model."""
        self._undo = put_in(self._tracks[name], self._subject)
        self._within = name

    def _leave(self) -> None:
        """Give the model its own weights back."""
        self._within = None
        with torch.no_grad():
            self._undo.close()

    def _take_in(self, *, end: bool) -> None:
        """Update what is due."""
        due = [t for t in self._tracks.values() if t.is_due(self.step, self.epoch, end=end)]
        if not due:
            return
        self._settle()
        self._renew()
        moments = [(track, track.moment(self.step, self.epoch)) for track in due]
        if mirror := self._subject.mirror:
            mirror.start()
            self._waiting = moments
        else:
            self._mix(moments)

    def _settle(self) -> None:
        """Finish an update whose weights were on their way."""
        if self._waiting and (mirror := self._subject.mirror):
            moments, self._waiting = self._waiting, []
            mirror.wait()
            self._mix(moments)

    @torch.no_grad()
    def _mix(self, moments: Due) -> None:
        shares = [track.share(moment) for track, moment in moments if not track.is_loose]
        if not self._alarm.lets_pass(self._subject.lookout, self._tracks, self.step):
            return
        if shares:
            self._subject.feed.give(shares)
        for track, moment in moments:
            if track.is_loose:
                track.take_loose(self._subject.sources, moment)
            track.advance(moment)
