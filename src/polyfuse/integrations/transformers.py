"""Averages in Transformers: a callback for its Trainer."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from polyfuse import durable
from polyfuse.averaging import Averages, AveragingRule
from polyfuse.checkpoints import safetensors
from polyfuse.errors import CheckpointError, printable
from polyfuse.integrations.base import Late, Tracking
from polyfuse.statedict import flatten, unflatten

STATE = "averages.safetensors"  # of a checkpoint, to resume from
MODELS = "averages"  # its folder of averages as models


class AveragingCallback(Late):
    """Keep running averages of a model that a Trainer trains, and evaluate one of them.

    The averages are updated after each step of the optimiser. While the Trainer evaluates during
    training, the weights of one average are in the model, in place, for all evaluation sets; the
    model gets its own back before anything is saved or loaded. An average that has not begun is
    not used.

    **What a checkpoint holds.** `checkpoint-N/model.safetensors` has the weights in training. Each
    average lies beside it as a model, `checkpoint-N/averages/ema`, ready for `from_pretrained`; and
    `checkpoint-N/averages.safetensors` has all that a resumed training needs, to the bit. So
    `load_best_model_at_end` loads the weights in training of the checkpoint whose average was best.

    `Trainer.evaluate()` after training takes the model as it is: say
    `with callback.averages.applied("ema"): trainer.evaluate()`.

    Args:
        rules: by the names of the averages. Samples are counted as rows of full batches, tokens
            where `TrainingArguments` has `include_num_input_tokens_seen`.
        validate_with: the average that is evaluated; None: the model's own weights.
        save: the averages that lie beside each checkpoint as models; None: all.
        resume_from: the checkpoint that training resumes from, where it is not
            `output_dir/checkpoint-N`.
        anew: begin new averages, even where training resumes.
        options: of `Averages`: `update_every`, `start_step`, `start_epoch`, `use_buffers`,
            `device`, `dtype`, `nonfinite`.

    Raises:
        MissingExtraError: `transformers` is not installed.
        PolyfuseError: no rules, or no average of a name.

    Example:
        >>> from polyfuse.averaging import ema
        >>> callback = AveragingCallback(
        ...     {"ema": ema(0.999)}, validate_with="ema"
        ... )  # doctest: +SKIP
        >>> trainer = Trainer(model, arguments, callbacks=[callback])  # doctest: +SKIP
    """

    foreign = (("transformers", "TrainerCallback"),)
    extra = "transformers"

    def __init__(
        self,
        rules: Mapping[str, AveragingRule],
        *,
        validate_with: str | None = None,
        save: Sequence[str] | None = None,
        resume_from: str | Path | None = None,
        anew: bool = False,
        **options: Any,
    ) -> None:
        """Keep them; the averages begin with training."""
        self._tracking = Tracking(rules, validate_with, options)
        self.save = [str(self._tracking.known(name)) for name in (rules if save is None else save)]
        self.resume_from, self.anew = resume_from, anew
        self._tokens = 0  # at the latest update
        self._hooks: list[Any] = []

    @property
    def averages(self) -> Averages:
        """The averages.

        Raises:
            PolyfuseError: training has not begun.
        """
        return self._tracking.of()

    def on_train_begin(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, **others: Any
    ) -> None:
        """Begin the averages, or go on with those of the checkpoint."""
        self._release()
        self._tracking.begin(model, self._saved(args, state))
        self._tokens = state.num_input_tokens_seen

        def own(*given: Any) -> None:
            self._tracking.close()

        self._hooks = [
            model.register_state_dict_pre_hook(own),  # type: ignore[no-untyped-call]
            model.register_load_state_dict_pre_hook(own),  # type: ignore[no-untyped-call]
        ]

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Give the model its own weights back, to train them."""
        self._tracking.close()

    def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Take in the weights after a step of the optimiser; evaluation may follow."""
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seen, self._tokens = state.num_input_tokens_seen - self._tokens, state.num_input_tokens_seen
        counted = args.include_num_input_tokens_seen not in (False, "no")
        self.averages.update(samples=rows, tokens=seen if counted else None)
        self._prepare(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Count the epoch; evaluation may follow."""
        self._tracking.close()
        self._tracking.reach(int(state.epoch + 1e-6))
        self._prepare(control)

    def on_save(
        self, args: Any, state: Any, control: Any, *, model: nn.Module, **others: Any
    ) -> None:
        """Put the averages beside the checkpoint that was saved just now."""
        self._tracking.close()
        if not state.is_world_process_zero:
            return
        folder = _folder(args, state)
        if not folder.is_dir():
            raise CheckpointError(
                f"there is no '{printable(folder)}' to put the averages in; "
                "a search of hyperparameters has its checkpoints elsewhere: train without it"
            )
        tensors, skeleton = flatten(self.averages.state_dict())
        note = {"step": state.global_step, "tokens": self._tokens, "skeleton": skeleton}
        safetensors.write(folder / STATE, tensors, note)
        for name in self.save:
            if self._tracking.has_begun(name):
                self._write(folder / MODELS / name, name, model)

    def on_train_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        """Give the model its own weights back for good."""
        self._release()

    def _prepare(self, control: Any) -> None:
        """Put the average in, if the Trainer is about to evaluate."""
        if control.should_evaluate:
            self._tracking.swap_in(saving=True)

    def _release(self) -> None:
        self._tracking.close()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _write(self, folder: Path, name: str, model: Any) -> None:
        """Write an average as a model, as the Trainer writes the model itself."""
        durable.make_folder(folder.parent)
        with durable.new_folder(folder) as fresh:
            if hasattr(model, "save_pretrained"):
                with self.averages.applied(name, saving=True):
                    model.save_pretrained(fresh)
            else:
                safetensors.write(fresh / "model.safetensors", self.averages.average(name))
            durable.remove_folder(folder)  # of an earlier training that came as far

    def _saved(self, args: Any, state: Any) -> Any:
        """Return the averages' state in the checkpoint that training resumes from."""
        if state.global_step == 0 or self.anew:
            return None
        file = Path(self.resume_from or _folder(args, state)) / STATE
        if not file.is_file():
            raise CheckpointError(
                f"training resumes at step {state.global_step}, but there is no "
                f"'{printable(file)}' with the averages; say AveragingCallback(resume_from=...) "
                "for the checkpoint's folder, or anew=True to begin them here"
            )
        tensors, note = safetensors.read(file)
        step = note.get("step") if isinstance(note, dict) else None
        if step != state.global_step or "skeleton" not in note:
            raise CheckpointError(
                f"'{printable(file)}' has the averages of step {printable(step)}, but training "
                f"resumes at step {state.global_step}; name the folder of that checkpoint"
            )
        return unflatten(tensors, note["skeleton"])


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"
