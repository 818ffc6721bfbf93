"""The Transformers callback in the real Trainer: updates, evaluation, checkpoints, resuming."""

import shutil
from functools import partial

import pytest
import torch
from expected import close, mean, of_ema
from torch import nn

import tiny
from polyfuse.averaging import ema, half_life, swa, tanh_ema
from polyfuse.checkpoints import safetensors
from polyfuse.errors import CheckpointError, MissingExtraError, PolyfuseError
from polyfuse.integrations import base
from polyfuse.integrations.transformers import STATE, AveragingCallback

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
ROWS = [
    {"x": torch.randn(4, generator=torch.Generator().manual_seed(i)), "labels": i % 3}
    for i in range(24)
]


class Config(transformers.PretrainedConfig):
    model_type = "tiny"


class Net(transformers.PreTrainedModel):
    """Notes its weights whenever it runs in eval mode."""

    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        self.evaluated = []
        self.post_init()

    def forward(self, x, labels=None):
        if not self.training:
            self.evaluated.append(weights(self))
        logits = self.body(x)
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Recorder(transformers.TrainerCallback):
    """Notes the weights after each step of the optimiser."""

    def __init__(self):
        self.steps = []

    def on_step_end(self, args, state, control, *, model, **others):
        self.steps.append(weights(model))


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def trainer(callback, folder, *, model=None, callbacks=(), data=ROWS, held_out=None, **options):
    fixed = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 0.05}
    quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "use_cpu": True}
    each = {"eval_strategy": "epoch", "save_strategy": "no", "dataloader_pin_memory": False}
    recorder = Recorder()
    run = transformers.Trainer(
        model=model or Net(Config()),
        args=transformers.TrainingArguments(str(folder), **{**fixed, **quiet, **each, **options}),
        train_dataset=data,
        eval_dataset=held_out or data[:4],
        callbacks=[recorder, callback, *callbacks],
    )
    run.steps = recorder.steps
    return run


# Updates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_update_follows_each_step_of_the_optimiser_and_no_other_batch(tmp_path, accumulate):
    rules = {"ema": ema(0.7), "rows": half_life(samples=16), "late": swa().timed(start_epoch=1)}
    callback = AveragingCallback(rules)
    run = trainer(callback, tmp_path, gradient_accumulation_steps=accumulate)
    run.train()
    steps = 12 // accumulate
    assert callback.averages.step == len(run.steps) == steps
    assert callback.averages.epoch == 2
    close(callback.averages.average("ema"), of_ema(run.steps, 0.7))
    close(callback.averages.average("rows"), of_ema(run.steps, 0.5 ** (4 * accumulate / 16)))
    close(callback.averages.average("late"), mean(run.steps[steps // 2 :]))


def test_tokens_of_a_language_model_are_counted_and_its_tied_weights_stay_tied(tmp_path):
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=1, vocab_size=16, n_positions=8, use_cache=False
    )
    model = transformers.GPT2LMHeadModel(config)
    rows = [{"input_ids": torch.arange(8) % 7 + i, "labels": torch.arange(8)} for i in range(8)]
    callback = AveragingCallback({"ema": half_life(tokens=32)}, validate_with="ema")
    run = trainer(
        callback,
        tmp_path,
        model=model,
        data=rows,
        include_num_input_tokens_seen="all",
        save_strategy="epoch",
    )
    run.train()
    assert run.state.num_input_tokens_seen == 4 * 4 * 8
    average = callback.averages.average("ema")
    close(average, of_ema(run.steps, 0.5))
    loaded = transformers.GPT2LMHeadModel.from_pretrained(tmp_path / "checkpoint-4/averages/ema")
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert tiny.same(weights(loaded), {name: average[name] for name in weights(loaded)})


# Evaluation ---------------------------------------------------------------------------------------


def test_evaluation_sees_the_average_and_training_its_own_weights(tmp_path):
    callback = AveragingCallback({"ema": ema(0.7)}, validate_with="ema")
    run = trainer(callback, tmp_path)
    run.train()
    plain = trainer(AveragingCallback({"ema": ema(0.7)}), tmp_path)
    plain.train()
    assert tiny.same(run.model.state_dict(), plain.model.state_dict())
    for epoch, seen in enumerate(run.model.evaluated, 1):
        close(seen, of_ema(run.steps[: 6 * epoch], 0.7))
    for epoch, seen in enumerate(plain.model.evaluated, 1):
        assert tiny.same(seen, plain.steps[6 * epoch - 1])


def test_every_evaluation_set_sees_the_average(tmp_path):
    callback = AveragingCallback({"swa": swa()}, validate_with="swa")
    sets = {"one": ROWS[:4], "two": ROWS[4:8], "three": ROWS[8:12]}
    run = trainer(callback, tmp_path, held_out=sets, eval_strategy="steps", eval_steps=5)
    run.train()
    assert len(run.model.evaluated) in (6, 9)  # Transformers 5 evaluates at the end, too
    for step, seen in zip([5] * 3 + [10] * 3 + [12] * 3, run.model.evaluated, strict=False):
        close(seen, mean(run.steps[:step]))


def test_an_average_that_has_not_begun_is_not_swapped_in(tmp_path):
    callback = AveragingCallback({"ema": ema(0.5).timed(start_step=6)}, validate_with="ema")
    run = trainer(callback, tmp_path)
    run.train()
    assert tiny.same(run.model.evaluated[0], run.steps[5])
    close(run.model.evaluated[1], of_ema(run.steps[6:], 0.5))


def test_evaluation_after_training_takes_the_model_as_it_is(tmp_path):
    callback = AveragingCallback({"swa": swa()}, validate_with="swa")
    run = trainer(callback, tmp_path)
    run.train()
    del run.model.evaluated[:]
    run.evaluate()
    assert tiny.same(run.model.evaluated[0], run.steps[-1])
    with callback.averages.applied("swa"):
        run.evaluate()
    close(run.model.evaluated[1], mean(run.steps))


class Failing(transformers.TrainerCallback):
    def on_prediction_step(self, args, state, control, **others):
        raise KeyError("no such column")


def test_after_an_error_in_evaluation_own_weights_are_saved_and_trained(tmp_path):
    callback = AveragingCallback({"swa": swa()}, validate_with="swa")
    run = trainer(callback, tmp_path, callbacks=[Failing()])
    with pytest.raises(KeyError):
        run.train()
    run.save_model(tmp_path / "saved")
    assert tiny.same(weights(Net.from_pretrained(tmp_path / "saved")), run.steps[-1])
    assert tiny.same(weights(run.model), run.steps[-1])


# Checkpoints and resuming -------------------------------------------------------------------------


def test_a_checkpoint_has_own_weights_and_the_averages_beside_them(tmp_path):
    callback = AveragingCallback({"ema": ema(0.7), "swa": swa()}, validate_with="ema")
    run = trainer(callback, tmp_path, save_strategy="epoch")
    run.train()
    for step in (6, 12):
        folder = tmp_path / f"checkpoint-{step}"
        assert tiny.same(weights(Net.from_pretrained(folder)), run.steps[step - 1])
        close(weights(Net.from_pretrained(folder / "averages/swa")), mean(run.steps[:step]))
        close(weights(Net.from_pretrained(folder / "averages/ema")), of_ema(run.steps[:step], 0.7))
    assert tiny.same(
        Net.from_pretrained(folder / "averages/ema").state_dict(),
        callback.averages.model("ema").state_dict(),
    )
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.parametrize("save", [[], ["swa"]])
def test_only_the_averages_that_are_wanted_are_saved_as_models(tmp_path, save):
    rules = {"ema": ema(0.7), "swa": swa(), "late": swa().timed(start_step=6)}
    run = trainer(AveragingCallback(rules, save=save), tmp_path, save_strategy="epoch")
    run.train()
    assert [p.name for p in sorted((tmp_path / "checkpoint-6").glob("averages/*"))] == save


def test_an_average_that_has_not_begun_is_not_saved_as_a_model(tmp_path):
    callback = AveragingCallback({"late": swa().timed(start_step=6)})
    trainer(callback, tmp_path, save_strategy="epoch").train()
    assert not (tmp_path / "checkpoint-6" / "averages").exists()
    assert (tmp_path / "checkpoint-12" / "averages" / "late" / "model.safetensors").is_file()


def test_the_best_model_at_the_end_is_whole_after_an_evaluation_of_the_average(tmp_path):
    """Loading it into a swapped model would mix up weights and average."""
    callback = AveragingCallback({"swa": swa()}, validate_with="swa")
    run = trainer(
        callback,
        tmp_path,
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
    )
    run.train()
    best = int(run.state.best_model_checkpoint.rpartition("-")[2])
    assert tiny.same(weights(run.model), run.steps[best - 1])
    close(callback.averages.average("swa"), mean(run.steps))


RULES = {
    "warm": ema(0.9, warmup="power"),
    "swa": swa().timed(start_epoch=1),
    "ends": swa().timed(update_every="epoch"),
    "epochs": tanh_ema(0.9, scale=2.0, unit="epochs"),
    "rows": half_life(samples=20).timed(update_every=2),
}


@pytest.mark.parametrize("every", ["epoch", "steps"])
def test_resumed_from_any_checkpoint_gives_the_same_bits(tmp_path, every):
    """The warm-up's counter is saved (lightly-train #892), and so is all the rest."""
    options = {"num_train_epochs": 3, "save_strategy": every, "save_steps": 4}
    options |= {"gradient_accumulation_steps": 1 if every == "epoch" else 2}
    made = partial(AveragingCallback, RULES, validate_with="warm")
    whole = made()
    run = trainer(whole, tmp_path, **options)
    run.train()
    folders = sorted(tmp_path.glob("checkpoint-*"))[:-1]
    assert len(folders) == 2
    for folder in folders:
        again = made()
        other = trainer(again, tmp_path, **options)
        other.train(resume_from_checkpoint=str(folder))
        assert tiny.same(other.model.state_dict(), run.model.state_dict())
        assert (again.averages.step, again.averages.epoch) == (run.state.global_step, 3)
        for name in RULES:
            assert tiny.same(again.averages.average(name), whole.averages.average(name))


def test_a_checkpoint_that_moved_is_named(tmp_path):
    made = partial(AveragingCallback, {"swa": swa()})
    run = trainer(made(), tmp_path, save_strategy="epoch")
    run.train()
    moved = shutil.move(tmp_path / "checkpoint-6", tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"resumes at step 6, but there is no .*resume_from="):
        trainer(made(), tmp_path).train(resume_from_checkpoint=moved)
    again = made(resume_from=moved)
    trainer(again, tmp_path).train(resume_from_checkpoint=moved)
    close(again.averages.average("swa"), mean(run.steps))
    longer = trainer(made(resume_from=moved), tmp_path, num_train_epochs=3)
    with pytest.raises(CheckpointError, match="has the averages of step 6, but training resumes"):
        longer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-12"))


def test_averages_may_begin_where_training_resumes(tmp_path):
    run = trainer(AveragingCallback({"swa": swa()}), tmp_path, save_strategy="epoch")
    run.train()
    (tmp_path / "checkpoint-6" / STATE).unlink()
    callback = AveragingCallback({"swa": swa()}, anew=True)
    other = trainer(callback, tmp_path)
    other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    close(callback.averages.average("swa"), mean(run.steps[6:]))


def test_other_rules_are_refused_on_resuming(tmp_path):
    trainer(AveragingCallback({"ema": ema(0.9)}), tmp_path, save_strategy="epoch").train()
    with pytest.raises(CheckpointError, match="ema"):
        trainer(AveragingCallback({"ema": ema(0.8)}), tmp_path).train(
            resume_from_checkpoint=str(tmp_path / "checkpoint-6")
        )


def test_the_averages_of_an_earlier_training_are_replaced(tmp_path):
    for decay in (0.9, 0.5):
        callback = AveragingCallback({"ema": ema(decay)})
        run = trainer(callback, tmp_path, save_strategy="epoch")
        run.train()
    close(
        weights(Net.from_pretrained(tmp_path / "checkpoint-12/averages/ema")),
        of_ema(run.steps, 0.5),
    )


class Plain(nn.Module):
    """No model of Transformers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.compile(nn.Linear(4, 3), backend="eager")

    def forward(self, x, labels):
        return {"loss": nn.functional.cross_entropy(self.net(x), labels)}


def test_any_module_and_a_compiled_part_are_averaged_and_saved(tmp_path):
    """wandb/senpai #2899: `_orig_mod.` in the names made it a silent no-op."""
    callback = AveragingCallback({"swa": swa()}, validate_with="swa")
    run = trainer(callback, tmp_path, model=Plain(), save_strategy="epoch")
    run.train()
    state, _ = safetensors.read(tmp_path / "checkpoint-12" / "averages/swa/model.safetensors")
    expected = {name.replace("_orig_mod.", ""): value for name, value in mean(run.steps).items()}
    assert state.keys() == expected.keys()
    close(state, expected)


def test_names_and_rules_are_checked(monkeypatch):
    with pytest.raises(PolyfuseError, match=r"no average is called 'emma'; did you mean 'ema'\?"):
        AveragingCallback({"ema": ema()}, validate_with="emma")
    with pytest.raises(PolyfuseError, match="no average is called 'swa'"):
        AveragingCallback({"ema": ema()}, save=["swa"])
    base._with_bases.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polyfuse\[transformers\]'"):
        AveragingCallback({"ema": ema()})
