"""The Lightning callback in the Trainer of both packages: updates, validation, checkpoints."""

import copy
import importlib
import pickle
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from expected import close, mean, of_ema
from torch import nn

import tiny
from polyfuse.averaging import ema, half_life, swa, tanh_ema
from polyfuse.errors import MissingExtraError, PolyfuseError
from polyfuse.integrations import base
from polyfuse.integrations.lightning import OWN, AveragingCallback

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
PACKAGES = ["lightning.pytorch", "pytorch_lightning"]
BATCHES = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(i)), i % 3) for i in range(6)]


@pytest.fixture(scope="module", params=PACKAGES)
def package(request):
    """Return Lightning, by either name."""
    return pytest.importorskip(request.param)


@pytest.fixture(scope="module")
def lightning():
    return pytest.importorskip(PACKAGES[0])


def made(package, net=None, **hooks):
    """Return a LightningModule that notes its weights after each step and in each validation."""

    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            parts = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
            self.net = nn.Sequential(*parts) if net is None else net
            self.steps, self.validated = [], []

        def training_step(self, batch, batch_idx):
            return nn.functional.cross_entropy(self.net(batch[0]), torch.full((8,), batch[1]))

        def validation_step(self, batch, batch_idx):
            self.validated.append(weights(self))

        def optimizer_step(self, *args, **options):
            super().optimizer_step(*args, **options)
            self.steps.append(weights(self))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    for name, hook in hooks.items():
        setattr(Module, name, hook)
    return Module()


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def trainer(package, callbacks, folder, **options):
    fixed = {"accelerator": "cpu", "devices": 1, "logger": False, "max_epochs": 2}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False}
    saving = {"enable_checkpointing": False, "num_sanity_val_steps": 0}
    return package.Trainer(
        callbacks=callbacks, default_root_dir=folder, **{**fixed, **quiet, **saving, **options}
    )


def fit(
    package,
    callback,
    folder,
    *,
    model=None,
    batches=BATCHES,
    ckpt_path=None,
    callbacks=(),
    **options,
):
    model = model or made(package)
    run = trainer(package, [callback, *callbacks], folder, **options)
    run.fit(model, loader(batches), loader(BATCHES[:1]), ckpt_path=ckpt_path)
    return model, run


def loader(batches):
    return torch.utils.data.DataLoader(batches, batch_size=None)


# Updates ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_an_update_follows_each_step_of_the_optimiser_and_no_other_batch(
    package, tmp_path, accumulate
):
    callback = AveragingCallback({"ema": ema(0.7), "swa": swa()})
    model, run = fit(package, callback, tmp_path, accumulate_grad_batches=accumulate)
    assert callback.averages.step == len(model.steps) == run.global_step
    assert len(model.steps) == 2 * -(-6 // accumulate)
    close(callback.averages.average("ema"), of_ema(model.steps, 0.7))
    close(callback.averages.average("swa"), mean(model.steps))


def test_samples_and_epochs_are_counted(lightning, tmp_path):
    rules = {
        "rows": half_life(samples=16),
        "ends": swa().timed(update_every="epoch"),
        "late": swa().timed(start_epoch=1),
    }
    callback = AveragingCallback(rules, samples=lambda batch: len(batch[0]))
    model, _ = fit(lightning, callback, tmp_path, accumulate_grad_batches=2)
    close(callback.averages.average("rows"), of_ema(model.steps, 0.5))
    close(callback.averages.average("ends"), mean(model.steps[2::3]))
    close(callback.averages.average("late"), mean(model.steps[3:]))
    assert callback.averages.epoch == 2


def test_two_optimisers_that_step_in_one_batch_are_one_update(lightning, tmp_path):
    def training_step(self, batch, batch_idx):
        loss = self.net(batch[0]).square().mean()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        self.steps.append(weights(self))

    def configure_optimizers(self):
        halves = self.net[0].parameters(), self.net[2].parameters()
        return [torch.optim.SGD(half, lr=0.1) for half in halves]

    model = made(lightning, training_step=training_step, configure_optimizers=configure_optimizers)
    model.automatic_optimization = False
    callback = AveragingCallback({"swa": swa()})
    fit(lightning, callback, tmp_path, model=model)
    assert callback.averages.step == 12
    close(callback.averages.average("swa"), mean(model.steps))


# Validation ---------------------------------------------------------------------------------------


def test_validation_sees_the_average_and_training_its_own_weights(package, tmp_path):
    callback = AveragingCallback({"ema": ema(0.7)}, validate_with="ema")
    model, _ = fit(package, callback, tmp_path)
    plain, _ = fit(package, AveragingCallback({"ema": ema(0.7)}), tmp_path)
    assert tiny.same(model.state_dict(), plain.state_dict())
    for epoch, seen in enumerate(model.validated, 1):
        close(seen, of_ema(model.steps[: 6 * epoch], 0.7))
    for epoch, seen in enumerate(plain.validated, 1):
        assert tiny.same(seen, plain.steps[6 * epoch - 1])


@pytest.mark.parametrize("options", [{"num_sanity_val_steps": 1}, {"val_check_interval": 3}])
def test_an_average_that_has_not_begun_is_not_swapped_in(lightning, tmp_path, options):
    """Lightning's own callback validates with the weights of the start then (#21724)."""
    rules = {"ema": ema(0.5).timed(start_step=6)}
    model, _ = fit(lightning, AveragingCallback(rules, validate_with="ema"), tmp_path, **options)
    if "val_check_interval" in options:
        assert [tiny.same(model.validated[i], model.steps[3 * i + 2]) for i in (0, 1)] == [True] * 2
        close(model.validated[2], of_ema(model.steps[6:9], 0.5))
    else:
        assert tiny.same(model.validated[0], weights(made(lightning)))  # the sanity check
        close(model.validated[2], of_ema(model.steps[6:], 0.5))


def test_an_error_in_validation_gives_the_weights_back(lightning, tmp_path):
    def validation_step(self, batch, batch_idx):
        raise KeyError("no such column")

    model = made(lightning, validation_step=validation_step)
    callback = AveragingCallback({"ema": ema(0.7)}, validate_with="ema")
    saving = saver(lightning, tmp_path, save_on_exception=True)
    with pytest.raises(KeyError):
        fit(
            lightning,
            callback,
            tmp_path,
            model=model,
            callbacks=[saving],
            enable_checkpointing=True,
        )
    assert tiny.same(weights(model), model.steps[-1])
    [file] = tmp_path.glob("*.ckpt")
    assert tiny.same(load(file)["state_dict"], model.state_dict())


def test_only_fitting_validates_with_the_average(lightning, tmp_path):
    callback = AveragingCallback({"ema": ema(0.7)}, validate_with="ema")
    model, run = fit(lightning, callback, tmp_path)
    del model.validated[:]
    run.validate(model, loader(BATCHES[:1]), verbose=False)
    assert tiny.same(model.validated[0], model.steps[-1])


# Checkpoints and resuming -------------------------------------------------------------------------


def saver(package, folder, **options):
    callbacks = importlib.import_module(f"{package.__name__}.callbacks")
    every = {"save_top_k": -1, "filename": "{epoch}-{step}", "dirpath": folder}
    return callbacks.ModelCheckpoint(**{**every, **options})


def load(file):
    return torch.load(file, weights_only=True)


RULES = {
    "warm": ema(0.9, warmup="power"),
    "swa": swa().timed(start_epoch=1),
    "ends": swa().timed(update_every="epoch"),
    "epochs": tanh_ema(0.9, scale=2.0, unit="epochs"),
    "rows": half_life(samples=20).timed(update_every=2),
}
WHEN = {
    "validation": {},
    "end of the training epoch": {"save_on_train_epoch_end": True},
    "mid-epoch": {"every_n_train_steps": 2},
}
counting = partial(AveragingCallback, RULES, samples=lambda batch: len(batch[0]))


@pytest.mark.parametrize("own", [None, "warm"])
@pytest.mark.parametrize("when", WHEN)
def test_resumed_from_any_checkpoint_gives_the_same_bits(package, tmp_path, when, own):
    """The warm-up's counter is saved (lightly-train #892), and so is all the rest."""
    options = {"max_epochs": 3, "enable_checkpointing": True}
    if when == "mid-epoch":  # Lightning begins the data anew then, so all batches are alike
        options |= {"accumulate_grad_batches": 2, "batches": BATCHES[:1] * 6}
    whole = counting(validate_with="warm", checkpoint_with=own)
    saves = saver(package, tmp_path, **WHEN[when])
    model, _ = fit(package, whole, tmp_path, callbacks=[saves], **options)
    files = sorted(tmp_path.glob("*.ckpt"))
    assert len(files) >= 3
    for file in files[:-1]:
        again = counting(validate_with="warm", checkpoint_with=own)
        other, run = fit(package, again, tmp_path / "x", ckpt_path=file, **options)
        assert tiny.same(other.state_dict(), model.state_dict())
        assert (again.averages.step, again.averages.epoch) == (run.global_step, 3)
        for name in RULES:
            assert tiny.same(again.averages.average(name), whole.averages.average(name))


def test_a_checkpoint_has_the_weights_in_training(package, tmp_path):
    callback = AveragingCallback({"ema": ema(0.7)}, validate_with="ema")
    saves = saver(package, tmp_path)
    model, _ = fit(package, callback, tmp_path, callbacks=[saves], enable_checkpointing=True)
    kept = load(tmp_path / "epoch=1-step=12.ckpt")
    assert tiny.same(kept["state_dict"], model.state_dict())
    assert OWN not in kept


def test_a_checkpoint_has_the_average_where_that_is_wanted(package, tmp_path):
    callback = AveragingCallback({"ema": ema(0.7), "swa": swa()}, checkpoint_with="swa")
    saves = saver(package, tmp_path)
    model, _ = fit(package, callback, tmp_path, callbacks=[saves], enable_checkpointing=True)
    kept = load(tmp_path / "epoch=1-step=12.ckpt")
    close(kept["state_dict"], mean(model.steps))
    assert tiny.same(kept["state_dict"], callback.averages.average("swa"))
    assert tiny.same(kept[OWN], model.state_dict())
    fresh = made(package)
    fresh.load_state_dict(kept["state_dict"])
    assert tiny.same(fresh.state_dict(), callback.averages.model("swa").state_dict())


@pytest.mark.parametrize("only", [False, True])
def test_no_checkpoint_is_saved_while_an_average_is_in_the_module(lightning, tmp_path, only):
    """nequip #590: it would hold the average as if it were the weights in training."""

    def validation_step(self, batch, batch_idx):
        self.trainer.save_checkpoint(tmp_path / "sly.ckpt", weights_only=only)

    callback = AveragingCallback({"ema": ema(0.7)}, validate_with="ema")
    model = made(lightning, validation_step=validation_step)
    with pytest.raises(PolyfuseError, match="the model holds an average just now"):
        fit(lightning, callback, tmp_path, model=model)
    assert not (tmp_path / "sly.ckpt").exists()
    assert tiny.same(weights(model), model.steps[-1])


def test_a_checkpoint_without_callbacks_cannot_hold_the_average(lightning, tmp_path):
    callback = AveragingCallback({"ema": ema(0.7)}, checkpoint_with="ema")
    saves = saver(lightning, tmp_path, save_weights_only=True)
    with pytest.raises(PolyfuseError, match="save_weights_only=True, so callbacks are left out"):
        fit(lightning, callback, tmp_path, callbacks=[saves], enable_checkpointing=True)


def test_fitting_on_goes_on_and_another_module_begins_anew(lightning, tmp_path):
    callback = AveragingCallback({"swa": swa()})
    model, run = fit(lightning, callback, tmp_path)
    run.fit_loop.max_epochs = 3
    run.fit(model, loader(BATCHES), loader(BATCHES[:1]))
    assert callback.averages.step == len(model.steps) == 18
    close(callback.averages.average("swa"), mean(model.steps))
    other, _ = fit(lightning, callback, tmp_path)
    assert callback.averages.step == 12
    close(callback.averages.average("swa"), mean(other.steps))


def test_a_compiled_part_is_averaged_under_its_own_names(lightning, tmp_path):
    """wandb/senpai #2899: `_orig_mod.` in the names made it a silent no-op."""
    torch.manual_seed(0)
    net = torch.compile(nn.Linear(4, 3), backend="eager")
    callback = AveragingCallback({"swa": swa()}, validate_with="swa", checkpoint_with="swa")
    saves = saver(lightning, tmp_path)
    model = made(lightning, net)
    fit(lightning, callback, tmp_path, model=model, callbacks=[saves], enable_checkpointing=True)
    kept = load(tmp_path / "epoch=1-step=12.ckpt")["state_dict"]
    assert (
        kept.keys()
        == model.state_dict().keys()
        == {f"net._orig_mod.{name}" for name in ("weight", "bias")}
    )
    close(kept, mean(model.steps))
    close(model.validated[-1], mean(model.steps))


# What is refused ----------------------------------------------------------------------------------


def test_names_and_rules_are_checked():
    pytest.importorskip("lightning")
    with pytest.raises(PolyfuseError, match=r"no average is called 'emma'; did you mean 'ema'\?"):
        AveragingCallback({"ema": ema()}, validate_with="emma")
    with pytest.raises(PolyfuseError, match="no average is called 'swa'"):
        AveragingCallback({"ema": ema()}, checkpoint_with="swa")
    with pytest.raises(PolyfuseError, match="no rules"):
        AveragingCallback({})
    with pytest.raises(PolyfuseError, match="there are no averages yet; they begin with training"):
        AveragingCallback({"ema": ema()}).averages


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch):
    base._with_bases.cache_clear()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polyfuse\[lightning\]'"):
        AveragingCallback({"ema": ema()})


def test_it_is_a_callback_of_both_packages_and_can_be_pickled_and_subclassed():
    parts = [pytest.importorskip(f"{name}.callbacks") for name in PACKAGES]
    callback = Mine({"ema": swa()})
    assert all(isinstance(callback, part.Callback) for part in parts)
    assert isinstance(copy.copy(callback), Mine)
    assert callback.state_key == "Mine"
    assert isinstance(
        pickle.loads(pickle.dumps(AveragingCallback(SimpleRules()))), AveragingCallback
    )


class Mine(AveragingCallback):
    """A user's own."""


class SimpleRules(dict):
    def __init__(self):
        super().__init__(own=SimpleNamespace(name="own"))
