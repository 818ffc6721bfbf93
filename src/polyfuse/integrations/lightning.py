"""Averages in Lightning: a callback for the Trainer of `lightning` and of `pytorch_lightning`."""

from collections.abc import Callable, Mapping
from typing import Any

from polyfuse.averaging import Averages, AveragingRule
from polyfuse.averaging.structure import clean
from polyfuse.errors import CheckpointError, PolyfuseError, printable
from polyfuse.integrations.base import Count, Late, Tracking

# The weights in training, in a checkpoint whose `state_dict` is an average.
OWN = "polyfuse_own_weights"


class AveragingCallback(Late):
    """Keep running averages of a LightningModule, and validate with one of them.

    The averages are updated after each step of the optimiser: not after a batch whose gradients are
    only accumulated, and once a batch where several optimisers step. While the Trainer validates,
    the weights of one average are in the module, in place; a checkpoint that is asked for meanwhile
    is refused, and an average that has not begun is not used.

    **What a checkpoint holds.** By default its `state_dict` has the weights in training, and the
    averages are with the callback's state, so that training resumes to the bit. With
    `checkpoint_with` the `state_dict` has that average, ready for `load_from_checkpoint`; the
    weights in training are kept beside it and come back when training resumes. After training the
    module has its own weights: `callback.averages.model("ema")` is a copy with an average,
    `module.load_state_dict(callback.averages.average("ema"))` puts it in.

    Args:
        rules: by the names of the averages.
        validate_with: the average that the Trainer validates with; None: the module's own weights.
        checkpoint_with: the average that is the `state_dict` of checkpoints; None: own weights.
        samples: samples in a batch, for rules that count them: `lambda batch: len(batch[0])`.
        tokens: likewise.
        options: of `Averages`: `update_every`, `start_step`, `start_epoch`, `use_buffers`,
            `device`, `dtype`, `nonfinite`.

    Raises:
        MissingExtraError: neither `lightning` nor `pytorch_lightning` is installed.
        PolyfuseError: no rules, or no average of a name.

    Example:
        >>> from polyfuse.averaging import ema
        >>> callback = AveragingCallback(
        ...     {"ema": ema(0.999)}, validate_with="ema"
        ... )  # doctest: +SKIP
        >>> trainer = lightning.Trainer(callbacks=[callback])  # doctest: +SKIP
    """

    foreign = (("lightning.pytorch", "Callback"), ("pytorch_lightning", "Callback"))
    extra = "lightning"

    def __init__(
        self,
        rules: Mapping[str, AveragingRule],
        *,
        validate_with: str | None = None,
        checkpoint_with: str | None = None,
        samples: Callable[[Any], int] | None = None,
        tokens: Callable[[Any], int] | None = None,
        **options: Any,
    ) -> None:
        """Keep them; the averages begin with training."""
        self._tracking = Tracking(rules, validate_with, options)
        self.checkpoint_with = self._tracking.known(checkpoint_with)
        self._samples, self._tokens = Count(samples), Count(tokens)
        self._step = 0  # of the Trainer, at the latest update
        self._stage, self._running = "", False
        self._module: Any = None
        self._state: Mapping[str, Any] | None = None  # to go on from

    @property
    def averages(self) -> Averages:
        """The averages.

        Raises:
            PolyfuseError: training has not begun.
        """
        return self._tracking.of()

    # Training

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Note what the Trainer is about to do."""
        self._stage, self._state, self._running = stage, None, False

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin the averages, now that the module is where it will be trained."""
        self._refuse_weights_only(trainer)
        going_on = pl_module is self._module and trainer.global_step == self._step > 0
        if self._state is not None:
            self._begin(pl_module, self._state)
        elif not going_on:
            self._tracking.begin(pl_module)
            self._step = trainer.global_step
        self._module, self._running = pl_module, True

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make up for the end of an epoch: resumed from its last batch, Lightning skips it."""
        self._tracking.reach(trainer.current_epoch)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the weights, if an optimiser has stepped."""
        self._samples.see(batch)
        self._tokens.see(batch)
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self.averages.update(samples=self._samples.taken(), tokens=self._tokens.taken())

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Count the epoch."""
        self._tracking.reach(trainer.current_epoch + 1)

    # Validation

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Put the average in, while fitting; at other times the module's weights are the user's."""
        if self._stage == "fit" and not trainer.sanity_checking:
            self._tracking.swap_in()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Give the module its own weights back, before a checkpoint is saved."""
        self._tracking.close()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give the module its own weights back where validation failed."""
        self._tracking.close()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Give the module its own weights back, whatever happened."""
        self._tracking.close()

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return the averages, for a checkpoint."""
        if self._tracking.averages is None:
            return {}
        counted = {"samples": self._samples.seen, "tokens": self._tokens.seen}
        return {"step": self._step, "counted": counted, "averages": self.averages.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from the state in a checkpoint, if it is training that goes on."""
        if self._stage != "fit" or not state_dict:
            return
        self._state = dict(state_dict)
        if self._running:  # sharded modules are restored after on_fit_start
            self._begin(self._module, self._state)

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Put the average in the place of the weights in training, where that is wanted."""
        name = self.checkpoint_with
        if name is None or not self._tracking.has_begun(name):
            return
        own, average = checkpoint["state_dict"], self.averages.average(name)
        missing = average.keys() - {clean(key) for key in own}
        if missing:
            raise CheckpointError(
                f"the checkpoint lacks {printable(', '.join(sorted(missing)))}, which the average "
                f"{printable(name)!r} has; use checkpoint_with=None for a sharded module"
            )
        checkpoint[OWN] = own
        checkpoint["state_dict"] = {key: average.get(clean(key), own[key]) for key in own}

    def on_load_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Give the module the weights in training back, if it is training that goes on."""
        if self._stage == "fit" and OWN in checkpoint:
            pl_module.load_state_dict(checkpoint[OWN])

    def _begin(self, module: Any, state: Mapping[str, Any]) -> None:
        self._tracking.begin(module, state["averages"])
        self._step = state["step"]
        self._samples.seen, self._tokens.seen = (
            state["counted"][key] for key in ("samples", "tokens")
        )

    def _refuse_weights_only(self, trainer: Any) -> None:
        """Lightning leaves callbacks out of such checkpoints; the average would not get in."""
        only = (getattr(each, "save_weights_only", False) for each in trainer.checkpoint_callbacks)
        if self.checkpoint_with is not None and any(only):
            raise PolyfuseError(
                f"checkpoint_with={printable(self.checkpoint_with)!r}, but a ModelCheckpoint has "
                "save_weights_only=True, so callbacks are left out and its weights would not be "
                "the average; use save_weights_only=False"
            )
